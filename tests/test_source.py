"""SOURCE against exact unrolling where its assumptions hold, against written-out matrices, and in its limits."""

import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import sgd_runs
import torch
from scipy.stats import spearmanr

from tda.attribution import attribute
from tda.attribution.source import by_segment
from tda.attribution.unroll import unrolled
from tda.curvature import factors, named, operator
from tda.curvature.named import averaged
from tda.curvature.second_derivatives import dense_ggn
from tda.provenance import Stopwatch
from tda.task import Checkpoint, Task, take
from tda.tools.gradients import matrix
from tda.tools.recorded import Recording, replayed
from tda.tools.segments import Segment, propagate, responses, scores_of, segments_of

N, WIDTH = 12, 5


class Dense:
    """The least that SOURCE asks of a curvature: functions of the eigenvalues of a written-out matrix."""

    def __init__(self, written):
        self.values, self.vectors = torch.linalg.eigh(written)

    def functions(self, several, v):
        return [v @ self.vectors * f(self.values) @ self.vectors.T for f in several]


def squared(params, batch, reduction="mean"):
    """Linear regression: the gradient of an example is affine in the parameters, its Hessian constant."""
    example = 0.5 * (batch["inputs"] @ params["w"] - batch["labels"]).square()
    return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()


def frozen(params, batch, reduction="mean"):
    """SOURCE's assumptions made true: linear examples, and a few springs (labels > 0) that hold all the curvature."""
    example = batch["inputs"] @ params["w"] + 0.5 * batch["labels"] * (params["w"] @ CURVATURE @ params["w"])
    return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROOT = draw(7, WIDTH, WIDTH)
CURVATURE = ROOT @ ROOT.T / WIDTH


def setting(loss_fn=squared, steps=40, lr=0.2, momentum=0.0, weight_decay=0.0, segments=1):
    """(data, queries, recording, task at the end, segments with one checkpoint each): full batches, constant rate."""
    data = {"inputs": draw(0, N, WIDTH), "labels": draw(1, N)}
    queries = {"inputs": draw(2, 3, WIDTH), "labels": draw(3, 3)}
    if loss_fn is frozen:
        data["labels"] = torch.tensor([0.0] * (N - 1) + [N], dtype=torch.float64)
    recording = Recording(
        {"w": draw(4, WIDTH)}, [(np.arange(N), N)] * steps, np.full(steps, lr), momentum, weight_decay
    )
    found = []
    for stretch in np.array_split(np.arange(steps), segments):
        upto = replace(recording, steps=recording.steps[: stretch[-1] + 1], rates=recording.rates[: stretch[-1] + 1])
        task = Task("toy", loss_fn, replayed(loss_fn, data, upto))
        found.append(Segment((task,), recording.rates[stretch], np.ones(N, bool)))
    return data, queries, recording, task, found


def hessian(loss_fn, params, data):
    return torch.func.hessian(lambda w: loss_fn({"w": w}, data, "mean"))(params["w"])


def scored(loss_fn, variant, segments=1, **options):
    """(SOURCE by segment [L, Q, N], unrolled by the same stretches)."""
    data, queries, recording, task, parts = setting(loss_fn, segments=segments, **options)
    operators = [Dense(hessian(loss_fn, part.tasks[0].params, data)) for part in parts]
    asked = matrix(task, queries)
    found = scores_of(parts, operators, data, asked, recording.momentum, recording.weight_decay, variant)
    cuts = np.cumsum([len(part.rates) for part in parts])[:-1]
    wanted = unrolled(loss_fn, data, queries, recording, cuts=cuts).numpy()
    plain = slice(0, N - 1) if loss_fn is frozen else slice(None)  # the spring's own gradient moves
    return found[..., plain], wanted[..., plain]


# --- against exact unrolling


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("segments", [1, 2, 3, 6])
def test_exact_variant_is_unrolling_where_gradients_and_curvature_are_constant(segments, momentum, weight_decay):
    found, wanted = scored(
        frozen, "exact", segments, momentum=momentum, weight_decay=weight_decay, lr=0.05 if momentum else 0.2
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_exact_variant_follows_a_schedule():
    data, queries, recording, task, _ = setting(frozen)
    recording = replace(recording, rates=0.3 * np.linspace(1, 0.1, 40), momentum=0.5)
    final = replace(task, params=replayed(frozen, data, recording))
    parts = [Segment((final,), stretch, np.ones(N, bool)) for stretch in np.split(recording.rates, [10, 33])]
    found = scores_of(parts, [Dense(CURVATURE)] * 3, data, matrix(final, queries), 0.5, 0.0, "exact")
    wanted = unrolled(frozen, data, queries, recording, cuts=(10, 33)).numpy()
    np.testing.assert_allclose(found[..., :-1], wanted[..., :-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_linear_regression_after_convergence_is_unrolling(momentum):
    """Gradients of the examples move along training and settle: one segment misses only the start of the run, which a
    long run forgets.
    """
    found, wanted = scored(squared, "exact", 1, steps=250, lr=0.5, momentum=momentum)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9 * np.abs(wanted).max())


def test_more_checkpoints_come_closer_to_unrolling():
    """Linear regression, far from converged: H is constant and the gradients are not. More segments follow them."""
    gaps = []
    for segments in (1, 3, 10, 40):
        found, wanted = scored(squared, "exact", segments, steps=40, lr=0.05)
        gaps.append(np.linalg.norm(found.sum(0) - wanted.sum(0)) / np.linalg.norm(wanted.sum(0)))
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] and gaps[0] > 5 * gaps[3], gaps


def test_a_checkpoint_before_every_step_is_unrolling():
    """Nothing is averaged any more: segments of one step, each with the parameters that its gradient was taken at."""
    data, queries, recording, task, parts = setting(squared, segments=40)
    before = [replace(task, params=recording.initial), *(part.tasks[0] for part in parts[:-1])]
    parts = [replace(part, tasks=(at,)) for part, at in zip(parts, before, strict=True)]
    curvature = Dense(hessian(squared, task.params, data))
    found = scores_of(parts, [curvature] * 40, data, matrix(task, queries), 0.0, 0.0, "exact")
    wanted = unrolled(squared, data, queries, recording, cuts=range(1, 40)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_exponential_variant_tends_to_the_exact_one_with_the_rate():
    """At a fixed eta K: halving the rate halves the difference."""
    gaps = []
    for halvings in range(3):
        found, wanted = scored(frozen, "exponential", 2, steps=30 * 2**halvings, lr=0.2 / 2**halvings)
        gaps.append(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    for one, other in zip(gaps, gaps[1:], strict=False):
        assert one / other == pytest.approx(2, rel=0.2)
    assert gaps[-1] < 0.05


def test_momentum_acts_as_a_larger_rate():
    """The exponential form with eta / (1 - mu) against unrolled momentum, at a small rate and a long run."""
    found, wanted = scored(frozen, "exponential", 1, steps=250, lr=0.01, momentum=0.8)
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(wanted)
    short, _ = scored(frozen, "exponential", 1, steps=250, lr=0.01, momentum=0.0)
    assert np.linalg.norm(short - wanted) > 0.4 * np.linalg.norm(wanted)


# --- against written-out matrix functions


def test_exponential_scores_are_the_formula():
    """matrix_exp and inverse, segment by segment, with weight decay, two checkpoints in a segment, unequal lengths."""
    data, queries, _, task, parts = setting(squared, segments=6)
    parts = [
        Segment((parts[i].tasks[0], parts[i + 1].tasks[0]), np.full(k, 0.1), np.ones(N, bool))
        for i, k in ((0, 5), (2, 9), (4, 3))
    ]
    matrices = [CURVATURE + 0.1 * i * torch.eye(WIDTH) for i in range(3)]
    found = scores_of(parts, [Dense(m) for m in matrices], data, matrix(task, queries), 0.5, 0.03, "exponential")
    asked, eye = matrix(task, queries), torch.eye(WIDTH, dtype=torch.float64)
    for place, part in enumerate(parts):
        total = [p.rates.sum() / 0.5 for p in parts]
        damped = [m + 0.03 * eye for m in matrices]
        moved = asked
        for later in reversed(range(place + 1, 3)):
            moved = moved @ torch.matrix_exp(-total[later] * damped[later])
        inner = (eye - torch.matrix_exp(-total[place] * damped[place])) @ torch.linalg.inv(damped[place])
        mean = sum(matrix(t, data) for t in part.tasks) / 2
        np.testing.assert_allclose(found[place], moved @ inner @ mean.T / N, rtol=1e-10, atol=1e-13)


def test_responses_of_plain_sgd_are_powers():
    """(1 - eta w)^K and (1 - (1 - eta w)^K) / w: zero, positive and negative eigenvalues."""
    w = torch.tensor([-0.2, 0.0, 0.5, 3.0], dtype=torch.float64)
    found = responses(w, np.full(7, 0.1), 0.0)
    torch.testing.assert_close(found[1, 0], (1 - 0.1 * w) ** 7)
    torch.testing.assert_close(found[0, 0] * w, 1 - (1 - 0.1 * w) ** 7)
    assert found[0, 0, 1] == pytest.approx(0.7)


def test_a_long_segment_is_influence_and_a_short_one_gradient_dot():
    data, queries, _, task, _ = setting(squared, steps=400)
    curvature = hessian(squared, task.params, data)
    asked, documents = matrix(task, queries), matrix(task, data)

    def one(total, variant="exponential"):
        return scores_of([Segment((task,), np.array([total]), np.ones(N, bool))], [Dense(curvature)], data, asked, 0, 0,
                         variant)[0]  # fmt: skip

    np.testing.assert_allclose(one(1e6), asked @ torch.linalg.inv(curvature) @ documents.T / N, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(one(1e-8) / 1e-8, asked @ documents.T / N, rtol=1e-6, atol=1e-9)


def test_zero_and_tiny_eigenvalues_are_the_limit():
    w = torch.tensor([0.0, 1e-18, 1e-9, 1e-4], dtype=torch.float64)
    operator = Dense(torch.diag(w))
    (direction,) = propagate([operator], [np.full(10, 0.3)], torch.ones(1, 4, dtype=torch.float64), 0.0, 0.0,
                             "exponential")  # fmt: skip
    np.testing.assert_allclose(direction[0], [3.0, 3.0, 3.0, 3.0 - 4.5e-4], rtol=1e-7)


# --- stages, sign, planted examples


def test_stages_are_attributed_where_they_were_trained():
    """Two stages with their own data: exact against unrolling, and nothing outside an example's own stage."""
    data, queries, _, task, _ = setting(frozen)
    stages = [np.arange(N) < 8, np.arange(N) >= 8]
    data["labels"][[7, 11]] = torch.tensor([8.0, 4.0], dtype=torch.float64)  # a spring in each stage
    steps = [(np.flatnonzero(stages[0]), 8)] * 15 + [(np.flatnonzero(stages[1]), 4)] * 25
    recording = Recording({"w": draw(4, WIDTH)}, steps, np.full(40, 0.2), 0.3, 0.01)
    final = replace(task, params=replayed(frozen, data, recording))
    parts = [Segment((final,), recording.rates[:15], stages[0]), Segment((final,), recording.rates[15:], stages[1])]
    found = scores_of(parts, [Dense(CURVATURE)] * 2, data, matrix(final, queries), 0.3, 0.01, "exact")
    wanted = unrolled(frozen, data, queries, recording, cuts=(15,)).numpy()
    plain = np.delete(np.arange(N), [7, 11])
    np.testing.assert_allclose(found[..., plain], wanted[..., plain], rtol=1e-9, atol=1e-12)
    assert (found[0][:, 8:] == 0).all() and (found[1][:, :8] == 0).all() and (found[0][:, :8] != 0).all()


@pytest.mark.parametrize("variant", ["exponential", "exact"])
def test_planted_duplicate_and_contradiction(variant):
    data, queries, recording, task, _ = setting(squared)
    query = take(queries, slice(0, 1))
    residual = query["inputs"] @ task.params["w"] - query["labels"]
    other = {"inputs": query["inputs"], "labels": query["labels"] + 2 * residual}  # wants the opposite change
    data = {k: torch.cat([data[k], query[k], other[k]]) for k in data}
    part = Segment((task,), recording.rates, np.ones(N + 2, bool))
    curvature = Dense(hessian(squared, task.params, data))
    found = scores_of([part], [curvature], data, matrix(task, query), 0.0, 0.0, variant)[0, 0]
    assert found.argmax() == N and found[N] > 0 > found[N + 1]


def test_chunk_does_not_matter():
    data, queries, _, task, parts = setting(squared, segments=3)
    whole, one = (
        scores_of(parts, [Dense(CURVATURE)] * 3, data, matrix(task, queries), 0.0, 0.0, "exponential", chunk)
        for chunk in (32, 1)
    )
    np.testing.assert_allclose(whole, one, rtol=1e-12)


# --- where it must fail


def test_an_early_checkpoint_fails_and_more_segments_help():
    """One segment that ends long before the model settles cannot know what the gradients were."""
    early, _ = scored(squared, "exact", 1, steps=10, lr=0.05)
    _, late = scored(squared, "exact", 1, steps=250, lr=0.5)
    assert np.corrcoef(early.ravel(), late.ravel())[0, 1] < 0.9


@pytest.mark.parametrize("variant", ["exponential", "exact"])
def test_exploding_segments_are_refused(variant):
    asked = torch.ones(1, WIDTH, dtype=torch.float64)
    negative = Dense(-CURVATURE)
    with pytest.raises(ValueError, match=rf"segment 1 of 2 multiplies .*variant='{variant}'.*never negative"):
        propagate([negative, Dense(CURVATURE)], [np.full(100, 0.2)] * 2, asked, 0.0, 0.0, variant)
    if variant == "exact":
        with pytest.raises(ValueError, match="segment 1 of 1 multiplies"):
            propagate([Dense(CURVATURE)], [np.full(40, 5.0)], asked, 0.0, 0.0, variant)


def test_segments_of_a_run():
    steps = (10, 20, 30, 40, 50, 60)
    run = [Checkpoint(s, 0.1, 1.0, lambda s=s: ({"w": torch.full((2,), float(s))}, {})) for s in steps]
    task = Task("toy", squared, {"w": torch.full((2,), 60.0)})
    rates = np.arange(60.0)
    for count, ends in ((1, [60]), (2, [30, 60]), (3, [20, 40, 60]), (4, [20, 30, 40, 60]), (6, list(steps))):
        parts = segments_of(task, run, rates, count, 5)
        assert [int(part.tasks[-1].params["w"][0]) for part in parts] == ends
        np.testing.assert_array_equal(np.concatenate([part.rates for part in parts]), rates)
        assert [len(part.rates) for part in parts] == np.diff([0, *ends]).tolist()
        assert sum(len(part.tasks) for part in parts) == 6 and all(part.members.all() for part in parts)
    for count in (0, 7, 1.5):
        with pytest.raises(ValueError, match="recorded 6 checkpoints"):
            segments_of(task, run, rates, count, 5)
    with pytest.raises(ValueError, match="recorded 0 checkpoints"):
        segments_of(task, [], rates, 1, 5)
    with pytest.raises(ValueError, match="last checkpoint is of step 60, the run has 61 learning rates"):
        segments_of(task, run, np.arange(61.0), 2, 5)


# --- curvature averaged over checkpoints


@pytest.fixture(scope="module")
def run():
    return sgd_runs.digits(double=True)


def checkpoints(task, places=(0, 2, 5)):
    return [replace(task, params=task.run.checkpoints[i].params) for i in places]


@pytest.mark.parametrize("kind", ["hessian", "ggn", "block_ggn", "diagonal", "empirical_fisher", "identity"])
def test_averaged_matrix_is_the_mean_of_the_matrices(run, kind):
    task, train, _ = run
    tasks = checkpoints(task)
    wanted = sum(operator(kind, one, train, fisher="exact").materialise() for one in tasks) / 3
    found = averaged(kind, tasks, train, fisher="exact").materialise()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
def test_averaged_kronecker_factors(run, kind):
    """Eigenvectors of the mean factors; K-FAC: products of their eigenvalues, EK-FAC: the mean block along them."""
    task, train, _ = run
    tasks = checkpoints(task)
    found = averaged(kind, tasks, train, fisher="exact")
    each = [factors(one, train, "exact") for one in tasks]
    mean_ggn = sum(operator("ggn", one, train).materialise() for one in tasks) / 3
    for name, (index, block) in found.blocks.items():
        a, s = (sum(one[name][side] for one in each) / 3 for side in (0, 1))
        vectors = torch.kron(torch.linalg.eigh(s)[1], torch.linalg.eigh(a)[1])
        of_block = torch.kron(s, a) if kind == "kfac" else mean_ggn[index][:, index]
        wanted = (vectors * (of_block @ vectors)).sum(0)
        torch.testing.assert_close(block.eigenvalues, wanted, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(block.matvec(torch.eye(len(index), dtype=torch.float64)),
                                   (vectors * wanted) @ vectors.T, rtol=1e-6, atol=1e-9)  # fmt: skip


@pytest.mark.parametrize("kind", ["ggn", "kfac", "ekfac", "diagonal", "empirical_fisher"])
def test_mean_of_one_checkpoint_repeated_is_that_checkpoint(run, kind):
    task, train, asked = run
    one, three = averaged(kind, [task], train), averaged(kind, [task] * 3, train)
    v = matrix(task, asked)
    f = lambda w: 1 / (w + 0.1)  # noqa: E731
    torch.testing.assert_close(three.function(f, v), one.function(f, v), rtol=1e-6, atol=1e-8)


def test_averaged_refuses(run, monkeypatch):
    task, train, _ = run
    with pytest.raises(ValueError, match="curvature='gnn'; one of"):
        averaged("gnn", checkpoints(task), train)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(ValueError, match="at 3 checkpoints needs .* Use more segments"):
        averaged("empirical_fisher", checkpoints(task), train)


# --- the method on a recorded run


@pytest.mark.parametrize("segments", [1, 2, 3, 6])
def test_the_method_is_the_formula_on_a_recorded_run(run, segments):
    """Dense mean Gauss-Newton matrices, matrix exponentials and explicit means of gradients."""
    task, train, asked = run
    found = by_segment(task, train, asked, segments=segments, curvature="ggn")
    recipe, per, moved = task.run.recipe, 6 // segments, matrix(task, asked)
    for place in reversed(range(segments)):
        tasks = checkpoints(task, range(place * per, (place + 1) * per))
        h = sum(operator("ggn", one, train).materialise() for one in tasks) / per
        h = h + recipe.weight_decay * torch.eye(len(h), dtype=torch.float64)
        total = sum(c.lr_sum for c in task.run.checkpoints[place * per : (place + 1) * per]) / (1 - recipe.momentum)
        decay = torch.matrix_exp(-total * h)
        mean = sum(matrix(one, train) for one in tasks) / per
        wanted = (moved - moved @ decay) @ torch.linalg.inv(h) @ mean.T / 60
        np.testing.assert_allclose(found[place], wanted, rtol=1e-5, atol=1e-8 * float(wanted.abs().max()))
        moved = moved @ decay
    whole = attribute("source", task, train, asked, segments=segments, curvature="ggn")
    np.testing.assert_allclose(whole, found.sum(0), rtol=1e-5, atol=1e-7)


def test_the_curvature_of_a_segment_is_built_once(run, monkeypatch):
    """Other queries, the exact form and a row along other segments read what is there, and get what a new object gets;
    another seed, another loss and FAST do not."""
    task, train, asked = replace(run[0], name="built once"), run[1], run[2]
    built, fitted = [], []
    monkeypatch.setattr(
        named, "averaged", lambda kind, tasks, *a, **o: built.append(len(tasks)) or averaged(kind, tasks, *a, **o)
    )
    monkeypatch.setattr(named, "dense_ggn", lambda *a: fitted.append(1) or dense_ggn(*a))

    def at(on=task, **options):
        return attribute("source", on, train, asked, **{"segments": 2, "curvature": "ggn"} | options)

    first = at()
    again = attribute("source", task, train, take(asked, slice(0, 2)), segments=2, curvature="ggn")
    np.testing.assert_allclose(again, first[:2], rtol=1e-6)
    shared = at(variant="exact")
    assert built == [3, 3] and len(fitted) == 6
    np.testing.assert_array_equal(shared, at(replace(task, name="new object"), variant="exact"))
    at(seed=1)
    assert len(built) == 6, "labels are drawn by the seed"
    doubled = replace(task, loss_fn=lambda p, b, r="mean": 2 * task.loss_fn(p, b, r))
    twice = by_segment(doubled, train, asked, segments=2, curvature="identity")  # its outputs are another loss's
    assert not np.allclose(twice.sum(0), at(curvature="identity"))
    fresh = replace(task, name="fresh")
    at(fresh)
    built.clear()
    fitted.clear()
    at(fresh, segments=3)
    assert built == [2, 2, 2] and not fitted
    at(fresh, variant="fast")
    assert built[3:] == [1, 1], "not remembered"
    at(fresh)
    assert len(built) == 5, "nor does it push out what is"


def test_whoever_reads_a_remembered_curvature_is_charged_for_its_eigenvectors(run, monkeypatch):
    task, train, asked = replace(run[0], name="charged"), run[1], run[2]
    bills, plain = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: time.sleep(0.2) or plain(a))
    for _ in range(2):
        with Stopwatch() as watch:
            attribute("source", task, train, asked, segments=2, curvature="ggn")
        bills.append(watch.seconds)
    assert bills[0] > 0.4 and bills[1] > 0.4, "0.2 seconds a segment, also for the second reader"


def test_fast_is_one_model_a_segment(run):
    task, train, asked = run
    found = by_segment(task, train, asked, segments=2, curvature="ggn", variant="fast")
    parts = segments_of(task, task.run.checkpoints, task.run.learning_rates, 2, 60)
    mean = {k: (parts[1].tasks[0].params[k] + parts[1].tasks[1].params[k] + parts[1].tasks[2].params[k]) / 3
            for k in task.params}  # fmt: skip
    middle = replace(task, params=mean)
    last = [Segment((middle,), parts[1].rates, np.ones(60, bool))]
    recipe = task.run.recipe
    wanted = scores_of(last, [operator("ggn", middle, train)], train, matrix(task, asked), recipe.momentum,
                       recipe.weight_decay, "exponential")  # fmt: skip
    np.testing.assert_allclose(found[1], wanted[0], rtol=1e-8, atol=1e-10)
    slow = by_segment(task, train, asked, segments=2, curvature="ggn")
    assert 0.8 < np.corrcoef(found.sum(0).ravel(), slow.sum(0).ravel())[0, 1] < 0.99999


def ranks(one, other):
    return np.mean([spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)])


def test_it_comes_closer_to_unrolling_than_influence(run):
    """A net at the start of its training, where the curvature of the net itself matters: the Hessian sees it, the
    Gauss-Newton matrix does not.
    """
    task, train, asked = run
    truth = attribute("unroll", task, train, asked)
    dot = attribute("gradient_dot", task, train, asked)
    influence = attribute("influence", task, train, asked, curvature="ggn", damping=1e-2, unit="absolute")
    ggn = attribute("source", task, train, asked, segments=6, curvature="ggn")
    exact = attribute("source", task, train, asked, segments=6, curvature="hessian", variant="exact")
    assert ranks(exact, truth) > 0.7 > ranks(ggn, truth) > 0.45 > max(ranks(influence, truth), ranks(dot, truth))
    assert 0.5 < np.linalg.norm(exact) / np.linalg.norm(truth) < 1.5, "the same unit as unrolling"
    assert ranks(ggn, dot) < 0.95 and ranks(ggn, influence) < 0.95


@pytest.mark.parametrize("curvature", ["ggn", "ekfac", "diagonal", "empirical_fisher"])
def test_planted_duplicate_ranks_first_and_contradiction_below_zero(curvature):
    def planted(asked):
        wrong = {"inputs": asked["inputs"], "labels": (asked["labels"] + 1) % 10}
        return {k: torch.cat([asked[k], wrong[k]]) for k in asked}

    task, train, asked = sgd_runs.digits(extra=planted)
    found = attribute("source", task, train, asked, curvature=curvature)
    for q in range(5):
        assert found[q].argmax() == 60 + q and found[q, 65 + q] < 0


def test_chunks_queries_and_repetition_do_not_matter(run):
    task, train, asked = run
    whole = attribute("source", task, train, asked)
    np.testing.assert_array_equal(attribute("source", task, train, asked), whole)
    np.testing.assert_allclose(attribute("source", task, train, asked, chunk=7), whole, rtol=1e-4, atol=1e-6)
    some = attribute("source", task, train, take(asked, np.array([3, 0])))
    np.testing.assert_allclose(some, whole[[3, 0]], rtol=1e-4, atol=1e-6)


def test_other_runs_are_refused(run):
    task, train, asked = run

    def refused(match, on=task, **options):
        with pytest.raises(ValueError, match=match):
            by_segment(on, train, asked, curvature="diagonal", **options)

    def with_run(**changes):
        return replace(task, run=replace(task.run, **changes))

    refused("source: the model was trained by 'adamw'", with_run(recipe=replace(task.run.recipe, optimizer="adamw")))
    refused("source: the gradients of the run were clipped", with_run(recipe=replace(task.run.recipe, clip=1.0)))
    refused("recorded 6 checkpoints", segments=7)
    refused("recorded 0 checkpoints", with_run(checkpoints=()))
    refused("last checkpoint is of step 40, the run has 48", with_run(checkpoints=task.run.checkpoints[:-1]))
    other, _, _ = sgd_runs.digits(double=True, seed=1)
    refused("the checkpoints are of another run", replace(other, run=task.run))
    refused("variant='slow'; one of", variant="slow")


def test_parameters_outside_the_layers_are_averaged_too(run):
    """The last layer left out of K-FAC and kept by its diagonal: the mean of the checkpoints' diagonals."""
    task, train, _ = run
    options = {"fisher": "exact", "rest": "diagonal", "layers": "^0$"}
    both = averaged("kfac", checkpoints(task), train, **options)
    each = [operator("kfac", one, train, **options) for one in checkpoints(task)]
    found, *parts = (one.blocks["(diagonal)"][1].eigenvalues for one in (both, *each))
    assert len(found) == 10 * 7 and not torch.allclose(parts[0], parts[2])
    torch.testing.assert_close(found, sum(parts) / 3, rtol=1e-9, atol=1e-12)
