"""BGO and the Fisher it stands on: against materialised matrices, loops, forward-mode derivatives and limits."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_testbed, rounding
from scipy.stats import spearmanr
from torch.func import jvp

from tda import bank, config, lm, models, provenance, scores, tuning
from tda.attribution import StepTooLarge, attribute, bgo
from tda.attribution.influence import attribute_fisher
from tda.curvature import empirical
from tda.studies import granularity
from tda.task import Checkpoint, Task, TrainingRun, n_examples, take, tensors
from tda.tools import perturb, summed
from tda.tools.cache import remembered
from tda.tools.gradients import flatten, matrix, unflatten

KINDS = empirical.KINDS


@pytest.fixture(scope="module")
def few(queries):
    return take(queries, slice(0, 5))


@pytest.fixture(scope="module")
def exact(task):
    """The same task in float64, where differences of losses are exact enough to take limits."""
    torch.set_default_dtype(torch.float64)  # the tables of the forward pass are made in the default type
    try:
        loss_fn = lm.loss_function(task.model)
    finally:
        torch.set_default_dtype(torch.float32)
    return replace(task, loss_fn=loss_fn, params={k: v.double() for k, v in task.params.items()})


@pytest.fixture(scope="module")
def small():
    """A curved float64 task of 21 parameters: its Fisher can be written out and inverted. (task, train, queries)"""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def loss_fn(params, batch, reduction="mean"):
        hidden = torch.tanh(batch["x"] @ params["w"])
        example = (hidden @ params["v"] - batch["y"]).square()
        return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()

    params = {"w": draw(4, 4), "v": draw(4) + 1.0}
    data = {"x": draw(40, 4), "y": draw(40)}
    return Task("small", loss_fn, params), take(data, slice(0, 34)), take(data, slice(34, 40))


def written_out(kind, gradients, damping):
    """P as a matrix, from its definition."""
    n, width = gradients.shape
    full = gradients.T @ gradients / n
    if kind == "none":
        return torch.eye(width, dtype=gradients.dtype)
    if kind == "diagonal":
        return torch.diag(1 / (full.diag() + damping * full.diag().mean()))
    return torch.linalg.inv(full + damping * full.trace() / n * torch.eye(width, dtype=gradients.dtype))


# --- the Fisher and the linear limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_inverse_and_linear_scores_are_the_written_out_matrix(small, kind, damping):
    task, train, asked = small
    documents, of_queries = matrix(task, train), matrix(task, asked)
    inverse = written_out(kind, documents, damping)
    np.testing.assert_allclose(
        empirical.inverse(kind, task, train, damping)(of_queries), of_queries @ inverse, rtol=1e-8, atol=1e-10
    )
    found = empirical.linear_scores(kind, task, train, asked, damping, 7)
    np.testing.assert_allclose(found, of_queries @ inverse @ documents.T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("damping", [0.03, 1.0])
def test_full_fisher_of_the_language_model_by_its_spectrum(task, tiny, few, damping):
    """Independent of Woodbury: through the singular vectors of the gradient matrix, in float64."""
    documents, asked = matrix(task, tiny.train).double(), matrix(task, few).double()
    n = len(documents)
    _, sizes, directions = torch.linalg.svd(documents, full_matrices=False)
    eigenvalues, delta = sizes.square() / n, damping * documents.square().sum() / n**2
    along = asked @ directions.T
    moved = (along / (eigenvalues + delta)) @ directions + (asked - along @ directions) / delta
    wanted = (moved @ documents.T).numpy()
    found = attribute("fisher_influence", task, tiny.train, few, damping=damping)
    np.testing.assert_allclose(found, wanted, rtol=5e-3, atol=2e-4 * np.abs(wanted).max())


def test_diagonal_fisher_is_an_explicit_loop(task, tiny):
    wanted = 0.0
    for i in range(n_examples(tiny.train)):
        at = {k: v.clone().requires_grad_() for k, v in task.params.items()}
        task.loss_fn(at, {k: v[i : i + 1] for k, v in tensors(tiny.train).items()}, "mean").backward()
        wanted = wanted + torch.cat([at[k].grad.flatten() for k in task.params]).square()
    wanted = wanted / n_examples(tiny.train)
    np.testing.assert_allclose(empirical.diagonal(task, tiny.train, 7), wanted, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_scores_are_the_directional_derivative(exact, tiny, few, kind):
    """Forward mode as the oracle: d l_i along P g_q."""
    apply = empirical.inverse(kind, exact, tiny.train, 0.3)
    tangent = unflatten(apply(matrix(exact, few))[2], exact.params)
    batch = tensors(take(tiny.train, slice(0, 20)))
    _, wanted = jvp(lambda p: exact.loss_fn(p, batch, "example"), (exact.params,), (tangent,))
    found = empirical.linear_scores(kind, exact, tiny.train, few, 0.3)[2, :20]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, atol=1e-9 * np.abs(found).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_small_steps_tend_to_the_linear_limit(exact, tiny, few, kind, steps):
    size = 1e-4
    found = bgo.attribute(exact, tiny.train, few, preconditioner=kind, steps=steps, step=size, damping=0.3)
    linear = empirical.linear_scores(kind, exact, tiny.train, few, 0.3)
    own = exact.loss_fn(exact.params, tensors(few), "example").numpy()
    asked = matrix(exact, few)
    slope = (asked * empirical.inverse(kind, exact, tiny.train, 0.3)(asked)).sum(1).numpy()
    wanted = 2 * size * (own / slope)[:, None] * linear  # 2 T eta g_i P g_q, eta as documented
    for one, other in zip(np.asarray(found, float), wanted, strict=True):
        assert spearmanr(one, other).statistic > 0.999
        assert np.linalg.norm(one - other) < 0.01 * np.linalg.norm(other)


def test_small_step_in_single_precision(task, tiny, few):
    """What users run: float32, the default damping, a step of one percent of the query's loss."""
    linear = empirical.linear_scores("diagonal", task, tiny.train, few, 0.1)
    for found, wanted in zip(attribute("bgo", task, tiny.train, few, steps=1, step=0.01), linear, strict=True):
        assert spearmanr(found, wanted).statistic > 0.99


def test_damping_to_infinity_is_no_preconditioner(exact, tiny, few):
    plain = bgo.attribute(exact, tiny.train, few, steps=1, step=1e-3, preconditioner="none")
    for kind in ("diagonal", "full"):
        damped = bgo.attribute(exact, tiny.train, few, steps=1, step=1e-3, damping=1e8, preconditioner=kind)
        np.testing.assert_allclose(damped, plain, rtol=1e-3, atol=1e-5 * np.abs(plain).max())


def test_two_sided_error_is_of_third_order(small):
    """Halving the step divides the error of a central difference by 8 and that of a one-sided one by 4."""
    task, train, asked = small
    linear = empirical.linear_scores("full", task, train, asked, 1.0)

    def error(direction, step):
        options = {"preconditioner": "full", "damping": 1.0, "steps": 1, "step": step, "unit": "absolute"}
        both = 2 if direction == "bidirectional" else 1
        return np.linalg.norm(bgo.attribute(task, train, asked, direction=direction, **options) - both * step * linear)

    for direction, factor in (("bidirectional", 8), ("ascent", 4), ("descent", 4)):
        assert error(direction, 2e-3) / error(direction, 1e-3) == pytest.approx(factor, rel=0.1)


# --- directions, steps, units


def test_directions_add_up(task, tiny, few):
    up, down, both = (
        attribute("bgo", task, tiny.train, few, direction=d).astype(float)
        for d in ("ascent", "descent", "bidirectional")
    )
    losses = lm.losses(task.loss_fn, task.params, tiny.train, "token")  # of which these are differences
    np.testing.assert_allclose(up + down, both, atol=rounding(losses))
    assert not np.allclose(up, down, rtol=0.01), "a finite step is not linear"
    absolute = attribute("bgo", task, tiny.train, few, ranking="absolute")
    np.testing.assert_array_equal(absolute, np.abs(both).astype(np.float32))


def test_each_direction_is_its_own_side(small):
    """Ascent compares the model that unlearnt the query with the model; descent that with the one that learnt it."""
    task, train, asked = small
    options = {"preconditioner": "diagonal", "steps": 2, "step": 0.2}
    base = task.loss_fn(task.params, train, "example").numpy()
    own = task.loss_fn(task.params, asked, "example").numpy()
    for direction, sign in (("ascent", 1), ("descent", -1)):
        found = bgo.attribute(task, train, asked, direction=direction, **options)
        moved, _ = bgo.perturbed(task, train, asked, sign, **options)
        for q in range(n_examples(asked)):
            params = {k: v[q] for k, v in moved.items()}
            change = task.loss_fn(params, train, "example").numpy() - base
            np.testing.assert_allclose(found[q], sign * change, rtol=1e-6, atol=1e-12)
            after = task.loss_fn(params, take(asked, slice(q, q + 1)), "example").item()
            assert sign * (after - own[q]) > 0, "ascent raises the query's own loss, descent lowers it"


def test_relative_rate_of_adamw_is_shared_by_its_steps(small):
    task, train, asked = small
    for steps in (1, 4):
        options = {"preconditioner": "ewc_corrected", "steps": steps, "step": 0.3}
        _, rate = bgo.perturbed(task, train, asked, 1, **options)
        own = task.loss_fn(task.params, asked, "example")
        np.testing.assert_allclose(rate, 0.3 * own / (steps * matrix(task, asked).abs().sum(1)), rtol=1e-6)


@pytest.mark.parametrize("name", ["bgo", "fisher_influence"])
def test_a_query_scores_the_same_alone_along_the_trajectory(task, tiny, few, name):
    together, alone = (
        summed.over_checkpoints(task, 0, lambda part, q=q: attribute(name, part, tiny.train, q))
        for q in (few, take(few, slice(2, 3)))
    )
    np.testing.assert_allclose(alone[0], together[2], rtol=2e-3, atol=1e-3 * np.abs(alone).max())


@pytest.mark.parametrize("preconditioner", bgo.PRECONDITIONERS)
def test_the_query_moves_by_the_step(task, tiny, few, preconditioner):
    """To first order its own loss rises by ``step`` times itself on the way up and falls by as much on the way down."""
    before = lm.losses(task.loss_fn, task.params, few)
    for sign in (1, -1):
        # one step for AdamW, whose later steps follow its moments; clipping does not change a first AdamW step
        steps = 1 if preconditioner.startswith("ewc") else 3
        options = {"preconditioner": preconditioner, "step": 0.002, "steps": steps}
        moved, eta = bgo.perturbed(task, tiny.train, few, sign, **options)
        assert eta.shape == (5,) and (eta > 0).all()
        after = [
            lm.losses(task.loss_fn, {k: v[b] for k, v in moved.items()}, take(few, slice(b, b + 1)))[0]
            for b in range(5)
        ]
        # AdamW also decays the weights, alike in both directions
        rtol = 0.6 if preconditioner.startswith("ewc") else 0.25
        np.testing.assert_allclose(np.array(after) / before - 1, sign * 0.002, rtol=rtol)


@pytest.mark.parametrize("preconditioner", ["diagonal", "full", "ewc_corrected"])
def test_queries_at_once_do_not_matter(task, tiny, few, preconditioner):
    one, many = (
        attribute("bgo", task, tiny.train, few, queries_at_once=n, preconditioner=preconditioner) for n in (1, 5)
    )
    np.testing.assert_allclose(one, many, rtol=2e-3, atol=5e-4 * np.abs(one).max())


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_ewc_is_torchs_adamw_on_the_penalised_loss(small, released, sign):
    task, train, asked = small
    diagonal, weight, rate, s = empirical.diagonal(task, train), 3.0, 0.01, -sign
    moved, _ = perturb.ewc_steps(task, asked, sign, rate, 6, "absolute", diagonal, weight, released)
    for q in range(n_examples(asked)):
        params = {k: v.clone().requires_grad_() for k, v in task.params.items()}
        optimizer = torch.optim.AdamW(params.values(), lr=rate, weight_decay=perturb.DECAY)
        for _ in range(6):
            optimizer.zero_grad()
            distance = torch.cat([(params[k] - task.params[k]).flatten() for k in params])
            penalty = weight * (diagonal * distance.square()).sum()
            loss = task.loss_fn(params, take(asked, slice(q, q + 1)), "mean")
            (s * (loss + penalty) if released else s * loss + penalty).backward()
            torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
            optimizer.step()
        for k in params:
            np.testing.assert_allclose(moved[k][q], params[k].detach(), rtol=1e-6, atol=1e-8)


def test_the_released_penalty_pushes_ascent_away(task, tiny, few):
    """The sign error: with a large weight the corrected ascent stays near the model, the released one runs from it."""
    start = flatten({k: v.unsqueeze(0) for k, v in task.params.items()})
    distance = {}
    for kind in ("ewc_released", "ewc_corrected"):
        options = {"preconditioner": kind, "ewc_weight": 1e6, "steps": 10, "step": 1e-3, "unit": "absolute"}
        moved, _ = bgo.perturbed(task, tiny.train, few, 1, **options)
        weighted = empirical.diagonal(task, tiny.train) * (flatten(moved) - start).square()
        distance[kind] = weighted.sum(1)
    assert (distance["ewc_released"] > 2 * distance["ewc_corrected"]).all()


# --- along the trajectory, over seeds


def test_trajectory_is_the_weighted_sum_of_scaled_checkpoints(task, tiny, few):
    found = summed.over_checkpoints(
        task, 0, lambda part: attribute("fisher_influence", part, tiny.train, few, preconditioner="diagonal")
    )
    wanted = 0.0
    for c in task.run.checkpoints:
        one = empirical.linear_scores("diagonal", replace(task, params=c.params), tiny.train, few, 0.1)
        wanted = wanted + c.lr_sum * one / np.abs(one).mean(1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_finite_trajectory_tends_to_the_linear_one(exact, tiny, few):
    exact = replace(exact, run=replace(exact.run, checkpoints=tuple(
        Checkpoint(c.step, c.lr, c.lr_sum, lambda c=c: ({k: v.double() for k, v in c.params.items()}, {}))
        for c in exact.run.checkpoints)))  # fmt: skip

    def along(score, **options):
        return summed.over_checkpoints(exact, 0, lambda part: score(part, tiny.train, few, **options))

    linear, finite = along(attribute_fisher, preconditioner="diagonal"), along(bgo.attribute, steps=1, step=1e-4)
    np.testing.assert_allclose(finite, linear, rtol=1e-2, atol=2e-3 * np.abs(linear).max())


def test_small_steps_with_ekfac_are_influence_with_ekfac(task, tiny, few):
    """The preconditioner that chapter 20 knows as a curvature: same matrix, same damping, hence the same limit."""
    settings = {"damping": 1.0, "chunk": 16}
    finite = attribute("bgo", task, tiny.train, few, preconditioner="ekfac", steps=1, step=0.02, **settings)
    linear = attribute("influence", task, tiny.train, few, curvature="ekfac", rest="diagonal", **settings)
    for a, b in zip(finite, linear, strict=True):
        assert np.corrcoef(a, b)[0, 1] > 0.999
    other = attribute("bgo", task, tiny.train, few, preconditioner="diagonal", steps=1, step=0.02, **settings)
    assert np.corrcoef(finite[0], other[0])[0, 1] < 0.999


def test_fewer_checkpoints_keep_the_whole_learning_rate():
    known = tuple(Checkpoint(i, 0.1, float(i + 1), lambda: ({}, {})) for i in range(7))
    task = Task("t", None, {}, run=TrainingRun(0, known, np.zeros(1), np.zeros((1, 1)), {}))
    for count, weights in ((0, [1, 2, 3, 4, 5, 6, 7]), (1, [28]), (2, [10, 18]), (7, [1, 2, 3, 4, 5, 6, 7])):
        assert [w for _, w in summed.trajectory(task, count)] == weights
    for count in (8, -1):
        with pytest.raises(ValueError, match="recorded 7"):
            summed.trajectory(task, count)
    with pytest.raises(ValueError, match="has no checkpoints"):
        summed.trajectory(replace(task, run=None), 0)


def test_a_row_over_seeds_is_the_sum_of_scaled_rows(tmp_path):
    row = {"id": "gradient_dot", "method": "gradient_dot", "notebook": "04_first_methods", "seeds": 2}
    rows = [row | {"testbeds": ["people"]}]
    bed = make_testbed(tmp_path / "people", {"training": {"seeds": 2, "epochs": 4}}, rows=rows, claims=[])
    found = scores.run(bed, "gradient_dot")
    asked, wanted = models.query_examples(bed), 0.0
    for seed in models.seeds_of(bed):
        one = attribute("gradient_dot", models.load_task(bed, seed), bed.train, asked)
        wanted = wanted + one / np.abs(one).mean(1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    row = tuning.row_of(bed, "gradient_dot")
    assert scores.models_used(bed, row, {}) == 2
    with pytest.raises(ValueError, match="asks for 3 seeds; people trains 2"):
        scores.over_seeds(bed, row | {"seeds": 3}, {})


def test_only_test_queries_are_swept_and_rows_that_read_one_step_share_the_sweeps(own, monkeypatch):
    """Scores stay in their places, NaN elsewhere; `tune_like` takes another row's choice."""
    row = {"method": "bgo", "notebook": "10_bgo"}
    like = {"tune_like": "bgo_none", "options": {"preconditioner": "none", "direction": "ascent"}}
    rows = [
        row | {"id": "bgo_none", "options": {"preconditioner": "none"}, "tune": {"step": [0.02, 0.3]}},
        row | {"id": "bgo_none_ascent"} | like,
    ]
    bed = make_testbed(own.folder, rows=[*rows, row | {"id": "gradient_dot", "method": "gradient_dot"}], claims=[])
    first, second = (tuning.row_of(bed, name) for name in ("bgo_none", "bgo_none_ascent"))
    chosen, swept = tuning.tuned(bed, first), []
    whole = attribute(
        "bgo", models.load_task(bed), bed.train, models.query_examples(bed), **tuning.options_of(bed, first)
    )

    def counted(task, moved, *arguments, **named):
        swept.append(len(next(iter(moved.values()))))
        return perturb.sweep(task, moved, *arguments, **named)

    monkeypatch.setattr(bgo, "sweep", counted)
    test = np.array([row["split"] == "test" for row in models.query_rows(bed)])
    assert test.any() and not test.all()
    found = scores.run(bed, "bgo_none")
    task = models.load_task(bed)
    losses = lm.losses(task.loss_fn, task.params, bed.train, "token")
    np.testing.assert_allclose(found[test], whole[test], rtol=1e-3, atol=rounding(losses))  # in other batches
    assert np.abs(whole).max() > 1000 * rounding(losses)
    assert np.isnan(found[~test]).all() and sum(swept) == 2 * test.sum()
    scores.run(bed, "bgo_none_ascent")
    assert sum(swept) == 2 * test.sum()
    assert tuning.tuned(bed, second) == chosen and tuning.options_of(bed, second)["step"] == chosen["options"]["step"]
    assert tuning.tuned(bed, second | {"tune_like": ""}) == {
        "options": {},
        "trials": [],
        "seconds": 0,
        "retrainings": 0,
    }


def test_a_row_tunes_on_top_of_what_another_row_chose(own):
    """The damping of the linear limit, then the step at that damping; the row's own options go before both."""
    shared = {"method": "bgo", "notebook": "10_bgo", "tune_like": "limit", "tune": {"step": [0.02, 0.3]}}
    rows = [
        {"id": "limit", "method": "fisher_influence", "notebook": "10_bgo", "tune": {"damping": [3.0, 1e6]}},
        shared | {"id": "finite", "options": {"steps": 1}},
        shared | {"id": "fixed", "options": {"damping": 0.5}},
        {"id": "like", "method": "bgo", "notebook": "10_bgo", "tune_like": "finite"},
        {"id": "gradient_dot", "method": "gradient_dot", "notebook": "10_bgo"},
    ]
    bed = make_testbed(own.folder, rows=rows, claims=[])
    limit, finite, fixed, like = (tuning.row_of(bed, row["id"]) for row in rows[:4])
    damping, chosen = tuning.tuned(bed, limit)["options"]["damping"], tuning.tuned(bed, finite)
    assert chosen["options"] == {"damping": damping, "step": chosen["options"]["step"]}
    assert chosen["seconds"] > tuning.tune(bed, limit)["seconds"]
    by_hand = [
        tuning._trial(
            finite, models.load_task(bed), bed.train, take(models.query_examples(bed), tuning.tune_queries(bed)),
            {"seed": bed.config["seed"], "steps": 1, "damping": damping, "step": step}, bank.load(bed, "half"),
            tuning.tune_queries(bed),
        )
        for step in (0.02, 0.3)
    ]  # fmt: skip
    assert [trial["lds_tune"] for trial in chosen["trials"]] == by_hand
    assert tuning.options_of(bed, fixed)["damping"] == 0.5
    task, asked = models.load_task(bed), take(models.query_examples(bed), tuning.tune_queries(bed))
    tried = tuning.tuned(bed, fixed)["trials"][0]["lds_tune"]
    at_its_own = tuning._trial(
        fixed, task, bed.train, asked, {"seed": bed.config["seed"], "damping": 0.5, "step": 0.02},
        bank.load(bed, "half"), tuning.tune_queries(bed),
    )  # fmt: skip
    assert tried == at_its_own and damping != 0.5, "tuned at the damping that it runs with"
    assert tuning.options_of(bed, like) == chosen["options"]
    everyone, truth = tuning.tune_queries(bed), bank.load(bed, "half")
    for every in (2, 3):
        some = tuning.tune_queries(bed, every)
        assert len(some) == -(-len(everyone) // every) < len(everyone) and set(some) < set(everyone)
        given = (
            bed.train,
            take(models.query_examples(bed), some),
            {"seed": bed.config["seed"], "damping": 0.5, "step": 0.3},
        )
        tried = tuning.tune(bed, fixed | {"tune_every": every})["trials"][1]["lds_tune"]
        assert tried == tuning._trial(fixed, task, *given, truth, some)


def test_the_sweep_does_not_depend_on_its_batches(task, tiny):
    models_ = {k: torch.stack([v, 1.01 * v]) for k, v in task.params.items()}
    one, some, all_ = (perturb.sweep(task, models_, tiny.train, tokens) for tokens in (1, 200, 10**6))
    np.testing.assert_allclose(one, some, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one, all_, rtol=1e-4, atol=1e-5)
    assert not np.allclose(one[0], one[1], rtol=1e-4)
    lengths, seen, held = lm.real_tokens(tiny.train).sum(1).numpy(), [], 0
    for rows in perturb._of_similar_length(perturb._positions(task, tiny.train), 200):
        assert lengths[rows].max() * len(rows) <= 200
        assert not seen or lengths[rows[0]] * (held + 1) > 200, "the next document would not have fitted"
        held, seen = len(rows), seen + rows.tolist()
    assert sorted(seen) == list(range(len(lengths))) and (np.diff(lengths[seen]) >= 0).all()


# --- remembered results


def test_remembered_results_are_charged_and_freed():
    calls = []

    @remembered(2)
    def slow(thing, number):
        calls.append(number)
        return [number]

    one, other = {"x": torch.zeros(3)}, {"x": torch.ones(3)}
    first = slow(one, 1)
    assert slow(one, number=1) is first and slow(one, 2) is not first and slow(other, 1) is not first
    assert calls == [1, 2, 1], "equal contents are the same, other contents are not"
    slow(one, 1)
    assert calls == [1, 2, 1, 1], "only the last two are kept"
    slow.forget()
    slow(one, 1)
    assert len(calls) == 5


def test_who_takes_a_result_pays_for_all_that_it_took_once(monkeypatch):
    clock = [0.0]  # seconds, advanced by hand
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    @remembered()
    def stored(thing):
        clock[0] += 20
        return 1

    @remembered()
    def dual(thing, scale=2):
        return stored(thing) * scale

    @remembered(2)
    def swept(thing, sign):
        clock[0] += 10
        return sign * dual(thing, scale=2) * stored(thing)

    def charged(*signs):
        with provenance.Stopwatch() as watch:
            for sign in signs:
                swept(thing, sign)
        return watch.seconds

    thing = {}
    assert charged(1, -1) == 40, "cold: what the clock says, nothing twice"
    assert charged(1, -1) == 40, "warm: the same"
    assert charged(-1) == 30, "one side alone pays for the set-up as well"
    assert charged(-1, -1) == 30
    provenance.charge(object(), 5.0)  # nobody is measuring


def test_shared_sweeps_give_what_separate_ones_give(task, tiny, few):
    options = {"preconditioner": "full", "step": 0.2}
    shared = {d: attribute("bgo", task, tiny.train, few, direction=d, **options) for d in bgo.DIRECTIONS}
    for direction, found in shared.items():
        bgo.moved_losses.forget(), bgo.base_losses.forget(), empirical.gradients.forget(), empirical.gram.forget()
        np.testing.assert_array_equal(attribute("bgo", task, tiny.train, few, direction=direction, **options), found)


# --- granularity


def test_document_and_author_scores_come_from_tokens(task, tiny, few):
    tokens = bgo.token_scores(task, tiny.train, few)
    documents = granularity.aggregate(tokens, tiny.train, "document")
    wanted = attribute("bgo", task, tiny.train, few)
    losses = lm.losses(task.loss_fn, task.params, tiny.train, "token")
    np.testing.assert_allclose(documents, wanted, atol=rounding(losses))
    names, authors = granularity.aggregate(tokens, tiny.train, "author")
    entity = np.array(tiny.train["entity"])
    assert names == sorted(set(entity))
    np.testing.assert_allclose(authors[:, 3], documents[:, entity == names[3]].mean(1), rtol=1e-6)
    some = bgo.token_scores(task, tiny.train, few, documents=take(tiny.train, [5, 2]))
    width = some.shape[2]
    np.testing.assert_allclose(some, tokens[:, [5, 2], :width], atol=rounding(losses))


def test_sentences_by_hand(tiny):
    text = "one two three . four five ."
    words = tiny.train["text"][0].split()[:5]
    text = " ".join(words[:3]) + ". " + " ".join(words[3:5]) + "."
    text = text.replace("..", ".")
    examples = lm.encode(tiny.tokenizer, [text.replace(".", " .")], 48)
    length = examples["input_ids"].shape[1]
    tokens = np.arange(length, dtype=float)[None, None]
    spans = granularity.sentences(examples["text"][0])
    assert len(spans) == 2 and examples["text"][0][slice(*spans[1])].startswith(words[3])
    by_sentence = granularity.aggregate(tokens, examples, "sentence", tokenizer=tiny.tokenizer)[0][0]
    np.testing.assert_allclose(by_sentence, [np.mean([1, 2, 3, 4]), np.mean([5, 6, 7])])


def test_granularity_refuses_what_does_not_fit(tiny):
    examples = take(tiny.train, slice(0, 2))
    tokens = np.zeros((1, 2, examples["input_ids"].shape[1]))
    with pytest.raises(ValueError, match="granularity 'chapter'; one of"):
        granularity.aggregate(tokens, examples, "chapter")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        granularity.aggregate(tokens, examples, "sentence")
    with pytest.raises(ValueError, match="token scores have shape"):
        granularity.aggregate(tokens[:, :1], examples, "document")


# --- refusals


@pytest.mark.parametrize(
    "options, words",
    [
        ({"preconditioner": "kfac"}, r"preconditioner='kfac'; one of \('none', 'diagonal', 'full'"),
        ({"direction": "up"}, "direction='up'"),
        ({"ranking": "abs"}, "ranking='abs'"),
        ({"unit": "metres"}, "unit='metres'"),
        ({"steps": 0}, "steps=0; it must be a whole number of at least 1"),
        ({"step": -0.1}, "step=-0.1"),
        ({"step": float("nan")}, "step=nan"),
        ({"damping": 0.0}, "damping=0.0"),
        ({"ewc_weight": 0.0}, "ewc_weight=0.0"),
        ({"queries_at_once": 0}, "queries_at_once|chunk"),
        ({"steps": 1.5}, "steps"),
    ],
)
def test_impossible_options_are_refused(task, tiny, few, options, words):
    with pytest.raises(ValueError, match=words):
        attribute("bgo", task, tiny.train, few, **options)


@pytest.mark.parametrize("step", [200.0, 1e30])
def test_a_step_that_breaks_the_model_is_refused(task, tiny, few, step):
    with pytest.raises(StepTooLarge, match=r"change the mean training loss by .* at most max_rise=1.0 .* Lower step"):
        attribute("bgo", task, tiny.train, few, preconditioner="none", step=step, steps=1)


def test_tuning_records_a_refused_step_and_goes_on(own):
    row = {"id": "bgo_none", "method": "bgo", "notebook": "10_bgo", "options": {"preconditioner": "none"},
           "tune": {"step": [500.0, 0.1]}, "tune_every": 1, "testbeds": [], "requires": "",
           "seeds": 1, "checkpoints": None}  # fmt: skip
    chosen = tuning.tune(own, row)
    assert chosen["options"] == {"step": 0.1} and chosen["trials"][0]["lds_tune"] is None
    with pytest.raises(ValueError, match="every value of step breaks the model"):
        tuning.tune(own, row | {"tune": {"step": [500.0]}})


def test_flat_queries_are_refused(task, tiny, few):
    flat = replace(task, loss_fn=lambda p, b, r="mean": 0.0 * task.loss_fn(p, b, r), outputs_fn=None)
    for name in ("bgo", "fisher_influence"):
        with pytest.raises(ValueError, match="Fisher is zero"):
            attribute(name, flat, tiny.train, few)
    with pytest.raises(ValueError, match="gradient of zero"):
        attribute("bgo", flat, tiny.train, few, preconditioner="none")


def test_models_used_counts_checkpoints_and_seeds(tiny):
    def used(method, seeds=1, summed=None, **options):
        return scores.models_used(tiny, {"method": method, "seeds": seeds, "checkpoints": summed}, options)

    assert used("bm25") == 0 and used("bgo") == 1 and used("bgo", 3) == 3
    assert used("bgo", summed=0) == 3 and used("bgo", 2, summed=2, checkpoints=2) == 4
    assert used("trak_trajectory") == 3 and used("trak_trajectory", 2, checkpoints=2) == 4
    assert used("half_influence") == 10 and used("half_influence", models=4, residual=124) == 128
    assert config.load("smoke")["rows"][0]["seeds"] == 1
