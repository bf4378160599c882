# %% 1 solution
unprojected = empirical.linear_scores("full", task, train, held_out, 0.01)
projected = damped(*project_all("sparse", n, 0), 0.01)

# %% 1 wrong
unprojected = limit  # the limit belongs to the damping of the figure
projected = damped(*project_all("sparse", n, 0), 0.01)

# %% 2 solution
from unittest.mock import patch


def shared(members, train, queries, **options):
    with patch.object(trak, "MEMBER", 0):
        return trak.ensemble(members, train, queries, **options)


# %% 2 wrong
def shared(members, train, queries, **options):
    return trak.ensemble(members, train, queries, **options | {"seed": 0})  # the members add their own number to it


# %% 3 solution
def among_others(mixing):
    options = trackstar_options | {"mixing": mixing}
    sets = chapter.queries, take(chapter.queries, slice(0, 1))
    together, alone = (attribution.attribute("trackstar", task, train, queries, **options)[0] for queries in sets)
    return spearmanr(together, alone).statistic


agreement = {mixing: among_others(mixing) for mixing in (0.0, 0.99)}

# %% 3 wrong
stored = chapter.scores("trackstar")[0]  # the row's own mixing, whatever the other has
first = take(chapter.queries, slice(0, 1))
agreement = {}
for mixing in (0.0, 0.99):
    options = trackstar_options | {"mixing": mixing}
    alone = attribution.attribute("trackstar", task, train, first, **options)[0]
    agreement[mixing] = spearmanr(stored, alone).statistic

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
lean_lds = score(attribution.attribute("trak", lean, train, held_out, **trak_options))

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
lean_lds = score(attribution.attribute("trak", lean, train, held_out, **trak_options))
