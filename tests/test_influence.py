"""Influence with every curvature and solver, against matrices written out with autograd, retraining, and its limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small_tasks import flat, slow_ggn, slow_gradients, slow_hessian, small, task_of
from torch import nn

from tda import curvature as cv
from tda.attribution import attribute, influence
from tda.curvature import kronecker, layers
from tda.task import Checkpoint, TrainingRun, n_examples, take
from tda.tools.gradients import matrix, unflatten
from tda.tools.summed import over_checkpoints

ITERATIVE = ("cg", "pcg", "lissa", "arnoldi", "nystrom")


@pytest.fixture(scope="module")
def mlp():
    task, both = small("mlp", 46)
    return task, take(both, slice(0, 40)), take(both, slice(40, 46))


def wanted_scores(curvature, damping, task, train, queries):
    inverse = torch.linalg.inv(curvature + damping * torch.eye(len(curvature), dtype=torch.float64))
    return (slow_gradients(task, queries) @ inverse @ slow_gradients(task, train).T).numpy()


def same(found, wanted, rtol=1e-5):
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


# --- the formula


@pytest.mark.parametrize("net", ["logistic", "mlp", "conv"])
@pytest.mark.parametrize("curvature", cv.CURVATURES)
def test_scores_are_the_written_out_matrix(net, curvature):
    task, both = small(net, 18)
    train, queries = take(both, slice(0, 14)), take(both, slice(14, 18))
    g = slow_gradients(task, train)
    ggn = slow_ggn(task, train)
    if curvature in ("kfac", "ekfac", "block_ggn"):  # their matrices are tested on their own
        whole = cv.operator(curvature, task, train, "exact").materialise()
    else:
        whole = {
            "hessian": lambda: slow_hessian(task, train),
            "ggn": lambda: ggn,
            "diagonal": lambda: torch.diag(ggn.diag()),
            "empirical_fisher": lambda: g.T @ g / 14,
            "identity": lambda: torch.eye(len(ggn), dtype=torch.float64),
        }[curvature]()
    damping = 1.5 + float(torch.linalg.eigvalsh(whole).abs().max())
    known = {"curvature": curvature, "fisher": "exact"}
    found = attribute("influence", task, train, queries, damping=damping, unit="absolute", **known)
    same(found, wanted_scores(whole, damping, task, train, queries))
    unit = float(whole.trace()) / {"empirical_fisher": 14}.get(curvature, len(whole))
    if curvature == "hessian":
        unit = float(ggn.trace()) / len(ggn)
    found = attribute("influence", task, train, queries, damping=damping / unit, **known)
    same(found, wanted_scores(whole, damping, task, train, queries))


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("solver", ITERATIVE)
def test_solvers_tend_to_the_exact_scores(mlp, solver, curvature):
    if (solver, curvature) == ("nystrom", "hessian"):
        pytest.skip("nystrom refuses a matrix with negative eigenvalues")
    task, train, queries = mlp
    known = {"curvature": curvature, "damping": 0.6, "unit": "absolute"}
    wanted = attribute("influence", task, train, queries, **known)
    size = len(flat(task))
    found = attribute(
        "influence", task, train, queries, solver=solver, iterations=200, rank=size, batch=40, scale=2.0, **known
    )
    if solver == "arnoldi":  # it drops what it does not span, which no gradient has a part in here but the null space
        assert spearmanr(found.ravel(), wanted.ravel()).statistic > 0.999
    else:
        same(found, wanted, 1e-4)


def test_datainf(mlp):
    task, train, queries = mlp
    known = {"curvature": "empirical_fisher", "solver": "datainf"}
    found = attribute("influence", task, train, queries, damping=0.1, **known)
    exact = attribute("influence", task, train, queries, damping=0.1, curvature="empirical_fisher")
    assert spearmanr(found.ravel(), exact.ravel()).statistic < 0.999
    huge = attribute("influence", task, train, queries, damping=1e6, unit="absolute", **known)
    same(huge * 1e6, attribute("gradient_dot", task, train, queries), 1e-3)


def test_influence_is_leaving_one_out_on_a_convex_model():
    """Logistic regression with weight decay d, trained to the optimum: score / N is the rise of q's loss without i."""
    decay, (task, both) = 0.05, small("logistic", 128)
    train, queries = take(both, slice(0, 120)), take(both, slice(120, 128))

    def fit(examples, n):
        theta = flat(task) * 0
        for _ in range(6):  # Newton; without example i the objective keeps its 1/N
            at = replace(task, params=unflatten(theta, task.params))
            share, eye = n_examples(examples) / n, torch.eye(len(theta), dtype=torch.float64)
            gradient = share * matrix(at, examples).mean(0) + decay * theta
            theta = theta - torch.linalg.solve(share * cv.hessian(at, examples).materialise() + decay * eye, gradient)
        return unflatten(theta, task.params)

    at = replace(task, params=fit(train, 120))
    scores = attribute("influence", at, train, queries, curvature="hessian", damping=decay, unit="absolute")
    before = task.loss_fn(at.params, queries, "example")
    rise = [task.loss_fn(fit(take(train, np.arange(120) != i), 120), queries, "example") - before for i in range(20)]
    rise = torch.stack(rise, 1).numpy()
    for one, other in zip(scores[:, :20] / 120, rise, strict=True):
        assert spearmanr(one, other).statistic > 0.99
        assert np.linalg.norm(one - other) < 0.25 * np.linalg.norm(other)
    dot = attribute("gradient_dot", at, train, queries)
    assert np.mean([spearmanr(a, b).statistic for a, b in zip(dot[:, :20], rise, strict=True)]) < 0.97


# --- signs, invariances, limits


@pytest.mark.parametrize("curvature", cv.CURVATURES)
def test_a_copy_is_a_proponent_and_its_contradiction_an_opponent(curvature):
    torch.manual_seed(3)
    task, both = task_of(nn.Linear(4, 2)), small("logistic", 20)[1]
    both["labels"] %= 2
    query = take(both, slice(0, 1))
    train = {k: torch.cat([v, query[k], query[k]]) for k, v in both.items()}
    train["labels"][-1] = 1 - query["labels"][0]
    scores = attribute("influence", task, train, query, curvature=curvature, fisher="exact")[0]
    assert scores[-2] > 0 > scores[-1] and scores[-2] == pytest.approx(scores[0], rel=1e-4)


@pytest.mark.parametrize("curvature", cv.CURVATURES)
def test_chunks_and_order_do_not_matter(curvature):
    task, both = small("sequence", 16)
    train, queries = take(both, slice(0, 12)), take(both, slice(12, 16))
    known = {"curvature": curvature, "damping": 60.0}
    whole = attribute("influence", task, train, queries, **known)
    for chunk in (1, 5):
        same(attribute("influence", task, train, queries, chunk=chunk, **known), whole)
    order = np.random.default_rng(0).permutation(12)
    same(attribute("influence", task, take(train, order), queries, **known), whole[:, order])


@pytest.mark.parametrize("curvature", [c for c in cv.CURVATURES if c != "identity"])
def test_heavy_damping_is_gradient_dot_and_light_is_not(mlp, curvature):
    task, train, queries = mlp
    known = {"curvature": curvature, "unit": "absolute", "indefinite": "absolute"}
    dot = attribute("gradient_dot", task, train, queries)
    same(1e5 * attribute("influence", task, train, queries, damping=1e5, **known), dot, 1e-3)
    light = attribute("influence", task, train, queries, damping=1e-3, **known)
    assert np.mean([spearmanr(a, b).statistic for a, b in zip(light, dot, strict=True)]) < 0.98


def test_what_a_kronecker_operator_leaves_out_takes_no_part():
    """A case where it must fail: two examples that differ in nothing but an embedding look the same to `drop`."""
    task, both = small("sequence", 12)
    train, queries = take(both, slice(0, 10)), take(both, slice(10, 12))
    dropped, kept = (attribute("influence", task, train, queries, rest=rest) for rest in ("drop", "diagonal"))
    outside = torch.cat(list(cv.untracked(task, cv.tracked(task)).values()))
    g, of = slow_gradients(task, train), slow_gradients(task, queries)
    whole = cv.diagonal(task, train).eigenvalues[outside]
    operators = [cv.ekfac(task, train, rest=rest) for rest in ("drop", "diagonal")]
    shift = 0.1 * operators[1].scale
    part = (of[:, outside] / (whole + shift)) @ g[:, outside].T
    base = operators[0].function(lambda w: 1 / (w + shift), of) @ g.T
    same(kept, (base + part).numpy(), 1e-4)
    again = operators[0].function(lambda w: 1 / (w + 0.1 * operators[0].scale), of) @ g.T
    same(dropped, again.numpy(), 1e-4)
    named = attribute("influence", task, train, queries, layers="head|shared")
    assert not np.allclose(named, dropped)


# --- around the method


def test_a_second_damping_needs_no_second_fit(mlp, monkeypatch):
    task, train, queries = mlp
    task = replace(task)
    attribute("influence", task, train, queries)
    monkeypatch.setattr(layers, "passes", None)
    monkeypatch.setattr(kronecker, "passes", None)
    other = attribute("influence", task, train, queries, damping=1.0)
    assert not np.allclose(other, attribute("influence", task, train, queries, damping=0.1))
    with pytest.raises(TypeError):
        attribute("influence", replace(task, name="another"), train, queries)


@pytest.mark.parametrize("curvature", ["ekfac", "ggn", "empirical_fisher"])
def test_self_influence_is_the_diagonal(mlp, curvature):
    task, train, queries = mlp
    whole = attribute("influence", task, train, train, curvature=curvature)
    same(influence.self_influence(task, train, curvature=curvature, chunk=7), whole.diagonal())
    rest = influence.self_influence(task, train, queries, curvature=curvature)
    assert (rest > 0).all() and len(rest) == 6


def test_self_influence_finds_a_flipped_label():
    torch.manual_seed(0)
    task, train = task_of(nn.Linear(4, 3)), small("logistic", 60)[1]
    train["labels"] = (train["inputs"][:, :3]).argmax(1)
    train["labels"][7] = (train["labels"][7] + 1) % 3
    task = replace(task, params={"weight": 4 * torch.eye(3, 4, dtype=torch.float64), "bias": torch.zeros(3).double()})
    assert influence.self_influence(task, train, fisher="exact").argsort()[::-1][:3].tolist().count(7) == 1


def test_trajectory_is_the_weighted_sum(mlp):
    task, train, queries = mlp
    other = {k: v * 0.7 for k, v in task.params.items()}
    points = tuple(
        Checkpoint(step, 0.1, weight, lambda p=p: (p, {}))
        for step, (p, weight) in enumerate(((other, 0.3), (task.params, 0.2)))
    )
    run = TrainingRun(0, points, np.zeros(2), np.zeros((1, 40)), {})

    def along(count):
        recorded = replace(task, run=run)
        return over_checkpoints(recorded, count, lambda part: attribute("influence", part, train, queries, damping=0.2))

    found = along(0)
    wanted = 0
    for params, weight in ((other, 0.3), (task.params, 0.2)):
        one = attribute("influence", replace(task, params=params), train, queries, damping=0.2)
        wanted = wanted + weight * one / np.abs(one).mean(1, keepdims=True)
    same(found, wanted, 1e-4)
    assert (
        spearmanr(along(1).ravel(), attribute("influence", task, train, queries, damping=0.2).ravel()).statistic > 0.9
    )


# --- refusals


def test_bad_input_is_refused(mlp):
    task, train, queries = mlp

    def run(**options):
        return attribute("influence", task, train, queries, **options)

    for damping in (0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"damping=.*it must be positive"):
            run(damping=damping)
        with pytest.raises(ValueError, match=r"damping=.*it must be positive"):
            run(damping=damping, curvature="empirical_fisher", solver="datainf")
    with pytest.raises(ValueError, match="influence: curvature='fim'; one of"):
        run(curvature="fim")
    with pytest.raises(ValueError, match=r"solver='cg' with curvature='ekfac'; for this curvature one of \['exact'\]"):
        run(solver="cg")
    with pytest.raises(ValueError, match=r"influence: solver='x'; one of"):
        run(solver="x", curvature="ggn")
    with pytest.raises(ValueError, match="the damped matrix is indefinite"):
        run(curvature="hessian", damping=1e-4)
    with pytest.raises(ValueError, match="CG met a direction of curvature"):
        run(curvature="hessian", damping=1e-4, solver="cg")
    with pytest.raises(ValueError, match="finds no linear"):
        run(layers="nothing")
    with pytest.raises(ValueError, match="'influence' needs 'outputs'"):
        attribute("influence", replace(task, model=None), train, queries)
