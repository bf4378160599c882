# %% 1 solution
unprojected = empirical.linear_scores("full", task, bed.train, held_out, 0.01)
draw = projection.projector("sparse", width, n, 0)
phi_, asked_ = torch.cat([draw(block) for block in G.split(64)]), draw(A)
projected = (projection.damped_inverse(phi_, 0.01, "trak")(asked_) @ phi_.double().T).numpy()

# %% 1 wrong
unprojected = limit  # the limit belongs to the damping of the figure
draw = projection.projector("sparse", width, n, 0)
phi_, asked_ = torch.cat([draw(block) for block in G.split(64)]), draw(A)
projected = (projection.damped_inverse(phi_, 0.01, "trak")(asked_) @ phi_.double().T).numpy()

# %% 2 solution
from unittest.mock import patch


def shared(members, train, queries, **options):
    with patch.object(trak, "MEMBER", 0):
        return trak.ensemble(members, train, queries, **options)


# %% 2 wrong
def shared(members, train, queries, **options):
    return trak.ensemble(members, train, queries, **options | {"seed": 0})  # the members add their own number to it


# %% 3 solution
def asked_alone(mixing):
    known = scores.options_of(bed, scores.row_of(bed, "trackstar")) | {"mixing": mixing}
    parts = (queries, take(queries, slice(0, 1)))
    together, alone = (attribution.attribute("trackstar", task, bed.train, part, **known)[0] for part in parts)
    return spearmanr(together, alone).statistic


agreement = {mixing: asked_alone(mixing) for mixing in (0.0, 0.99)}

# %% 3 wrong
stored = scores.load(bed, "trackstar")[0][0]  # the row's own mixing, whatever the other has
known = scores.options_of(bed, scores.row_of(bed, "trackstar"))
one = take(queries, slice(0, 1))
agreement = {
    mixing: spearmanr(
        stored, attribution.attribute("trackstar", task, bed.train, one, **known | {"mixing": mixing})[0]
    ).statistic
    for mixing in (0.0, 0.99)
}

# %% 4 solution
from dataclasses import replace

inside = [f"{name}.weight" for name, _ in layers]
fixed = {k: v for k, v in task.params.items() if k not in inside}
lean = replace(
    task,
    params={k: task.params[k] for k in inside},
    loss_fn=lambda params, *rest: task.loss_fn(fixed | params, *rest),
    outputs_fn=lambda params, batch: task.outputs_fn(fixed | params, batch),
)
options_ = scores.options_of(bed, scores.row_of(bed, "trak"))
lean_lds = score(attribution.attribute("trak", lean, bed.train, held_out, **options_))

# %% 4 wrong
from dataclasses import replace

inside = [name for name in task.params if name.endswith(".weight")]  # embeddings and norms have weights, too
fixed = {k: v for k, v in task.params.items() if k not in inside}
lean = replace(
    task,
    params={k: task.params[k] for k in inside},
    loss_fn=lambda params, *rest: task.loss_fn(fixed | params, *rest),
    outputs_fn=lambda params, batch: task.outputs_fn(fixed | params, batch),
)
options_ = scores.options_of(bed, scores.row_of(bed, "trak"))
lean_lds = score(attribution.attribute("trak", lean, bed.train, held_out, **options_))
