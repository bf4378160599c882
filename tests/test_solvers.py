"""Solvers against dense solves: convergence, counts of products, and what they must refuse."""

import numpy as np
import pytest
import torch
from small_tasks import slow_ggn, slow_gradients, small

from tda import curvature as cv
from tda.curvature import second_derivatives, solvers
from tda.studies.solvers import traced
from tda.task import n_examples

DAMPING = 0.05


@pytest.fixture(scope="module")
def system():
    """(GGN matrix-free, right-hand sides [3, P], exact solution) of the small MLP."""
    task, train = small("mlp", 40)
    matrix = slow_ggn(task, train)
    v = torch.randn(3, len(matrix), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.linalg.solve(matrix + DAMPING * torch.eye(len(matrix), dtype=torch.float64), v.T).T
    return cv.ggn(task, train), v, wanted


def gap(found, wanted):
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).mean())


def counted(operator, monkeypatch):
    """Counts the examples that go through products, one right-hand side at a time."""
    seen, plain = [], second_derivatives.OverData.matvec

    def matvec(self, v):
        seen.append(n_examples(self.train) / n_examples(operator.train))
        return plain(self, v)

    monkeypatch.setattr(second_derivatives.OverData, "matvec", matvec)
    return seen


def check_trace(solved, wanted):
    hvps, seconds = ([row[k] for row in solved.trace] for k in ("hvps", "seconds"))
    assert hvps == sorted(hvps) and seconds == sorted(seconds) and seconds[0] >= 0
    assert all(set(row) == {"hvps", "seconds", "residual", "error"} for row in solved.trace)
    np.testing.assert_allclose(solved.trace[-1]["error"], gap(solved.solution, wanted), atol=1e-12)


def test_cg_converges_and_counts(system, monkeypatch):
    operator, v, wanted = system
    seen = counted(operator, monkeypatch)
    solved = traced(solvers.cg(operator, v, DAMPING, tolerance=1e-10), wanted)
    assert gap(solved.solution, wanted) < 1e-8
    assert solved.trace[-1]["hvps"] == len(seen) <= operator.size
    check_trace(solved, wanted)
    true = v - solved.solution @ slow_ggn(operator.task, operator.train) - DAMPING * solved.solution
    np.testing.assert_allclose(solved.trace[-1]["residual"], (true.norm(dim=1) / v.norm(dim=1)).mean(), atol=1e-9)
    assert [row["residual"] for row in solved.trace][0] == 1 and solved.trace[-1]["residual"] < 1e-10
    early = traced(solvers.cg(operator, v, DAMPING, iterations=3))
    assert early.trace[-1]["hvps"] == 3 and gap(early.solution, wanted) > 1e-4
    assert np.isnan(early.trace[-1]["error"])


def test_cg_right_hand_sides_do_not_mix(system):
    operator, v, wanted = system
    zero = torch.cat([v, torch.zeros_like(v[:1]), 1e-6 * v[:1]])
    solved = traced(solvers.cg(operator, zero, DAMPING, tolerance=1e-10))
    assert gap(solved.solution[:3], wanted) < 1e-8
    assert (solved.solution[3] == 0).all()
    assert gap(solved.solution[4:], 1e-6 * wanted[:1]) < 1e-8


def test_preconditioned_cg_needs_fewer_products(system):
    operator, v, wanted = system
    ekfac = cv.ekfac(operator.task, operator.train, "exact")
    wanted = cv.dense_ggn(operator.task, operator.train).function(lambda w: 1 / (w + DAMPING / 50), v)
    known = {"damping": DAMPING / 50, "tolerance": 1e-9}
    plain, faster = (traced(solvers.cg(operator, v, preconditioner=p, **known), wanted) for p in (None, ekfac))
    assert gap(faster.solution, plain.solution) < 1e-5
    for step in (5, 10):
        assert faster.trace[step]["error"] < 0.7 * plain.trace[step]["error"]
    best = traced(solvers.cg(operator, v, DAMPING, preconditioner=cv.dense_ggn(operator.task, operator.train)))
    assert best.trace[-1]["hvps"] <= 2, "the inverse itself as preconditioner"


def test_preconditioner_that_leaves_parameters_out(system):
    operator, v, wanted = system
    half = cv.ekfac(operator.task, operator.train, "exact", layers="0")
    solved = traced(solvers.cg(operator, v, DAMPING, tolerance=1e-10, preconditioner=half))
    assert gap(solved.solution, wanted) < 1e-8


def test_cg_refuses_negative_curvature(system):
    operator, v, _ = system
    hessian = cv.hessian(operator.task, operator.train)
    lowest = float(torch.linalg.eigvalsh(hessian.materialise())[0])
    assert lowest < 0
    with pytest.raises(ValueError, match=r"CG met a direction of curvature -.*curvature='ggn'.*indefinite='absolute'"):
        traced(solvers.cg(hessian, v, 1e-6))
    damping = -lowest + 0.1
    solved = traced(solvers.cg(hessian, v, damping, tolerance=1e-10))
    wanted = cv.dense_hessian(operator.task, operator.train).function(lambda w: 1 / (w + damping), v)
    assert gap(solved.solution, wanted) < 1e-7


def test_lissa_converges_with_full_batches(system, monkeypatch):
    operator, v, wanted = system
    seen = counted(operator, monkeypatch)
    solved = traced(solvers.lissa(operator, v, DAMPING, iterations=400, batch=40, scale=1.0), wanted)
    assert gap(solved.solution, wanted) < 1e-6 and len(seen) == solved.trace[-1]["hvps"] == 400
    check_trace(solved, wanted)


def test_lissa_with_mini_batches(system, monkeypatch):
    operator, v, wanted = system
    seen = counted(operator, monkeypatch)
    known = {"iterations": 150, "batch": 20}
    one = traced(solvers.lissa(operator, v, DAMPING, **known), wanted)
    np.testing.assert_allclose(one.trace[-1]["hvps"], sum(seen))
    many = traced(solvers.lissa(operator, v, DAMPING, repeats=6, **known))
    assert gap(many.solution, wanted) < 0.7 * gap(one.solution, wanted) and gap(many.solution, wanted) < 0.15
    again, other = (traced(solvers.lissa(operator, v, DAMPING, seed=seed, **known)) for seed in (0, 1))
    assert torch.equal(again.solution, one.solution) and not torch.equal(other.solution, one.solution)


def test_lissa_refuses_a_scale_that_is_too_small_and_names_one_that_is_not(system):
    operator, v, wanted = system
    top = float(torch.linalg.eigvalsh(operator.materialise())[-1])
    with pytest.raises(
        ValueError, match=r"LiSSA diverged by step \d+: scale=.* Use scale=([0-9.e-]+) or more"
    ) as error:
        traced(solvers.lissa(operator, v, DAMPING, iterations=300, batch=20, scale=0.3 * top))
    advised = float(str(error.value).split("Use scale=")[1].split()[0])
    solved = traced(solvers.lissa(operator, v, DAMPING, iterations=200, batch=20, scale=advised, repeats=2))
    assert gap(solved.solution, wanted) < 0.2
    with pytest.raises(ValueError, match="LiSSA diverged"):
        traced(solvers.lissa(cv.hessian(operator.task, operator.train), v, 1e-3, iterations=600, batch=40))


def test_largest_eigenvalue(system):
    top = float(torch.linalg.eigvalsh(system[0].materialise())[-1])
    assert 0.8 * top < solvers.largest(system[0]) <= top * (1 + 1e-9)


def test_lanczos_is_a_tridiagonal_section(system):
    operator, matrix = system[0], system[0].materialise()
    basis, diagonal, off = solvers.last(solvers.lanczos(operator, 12))
    torch.testing.assert_close(basis @ basis.T, torch.eye(12, dtype=torch.float64))
    section = torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
    torch.testing.assert_close(basis @ matrix @ basis.T, section)
    top = torch.linalg.eigvalsh(matrix)[-3:]
    torch.testing.assert_close(torch.linalg.eigvalsh(section)[-3:], top, rtol=0.05, atol=0)


def test_lanczos_stops_where_nothing_is_left():
    few = cv.Diagonal(torch.tensor([1.0, 2.0, 2.0, 5.0, 5.0, 5.0], dtype=torch.float64))
    basis, diagonal, off = solvers.last(solvers.lanczos(few, 6))
    assert len(diagonal) == 3 and len(off) == 2
    solved = traced(solvers.arnoldi(few, torch.ones(1, 6, dtype=torch.float64), 1.0, iterations=1))
    assert solved.solution.shape == (1, 6)


def test_arnoldi_drops_or_damps_what_it_does_not_span(system, monkeypatch):
    operator, v, wanted = system
    values, vectors = torch.linalg.eigh(operator.materialise())
    top = vectors[:, -4:]
    kept = v @ top / (values[-4:] + DAMPING) @ top.T
    seen = counted(operator, monkeypatch)
    found = traced(solvers.arnoldi(operator, v, DAMPING, iterations=operator.size, rank=4), wanted)
    assert found.trace[-1]["hvps"] == len(seen)
    torch.testing.assert_close(found.solution, kept, rtol=1e-5, atol=1e-7)
    check_trace(found, wanted)
    found = traced(solvers.arnoldi(operator, v, DAMPING, iterations=operator.size, rank=4, complement=True))
    torch.testing.assert_close(found.solution, kept + (v - v @ top @ top.T) / DAMPING, rtol=1e-5, atol=1e-6)
    errors = [
        traced(solvers.arnoldi(operator, v, DAMPING, iterations=k, complement=True), wanted).trace[-1]["error"]
        for k in (2, 10, operator.size)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5
    with pytest.raises(ValueError, match="the damped matrix is indefinite"):
        traced(solvers.arnoldi(cv.hessian(operator.task, operator.train), v, 1e-4, iterations=40))


def test_nystrom_is_its_formula(system, monkeypatch):
    operator, v, wanted = system
    matrix = operator.materialise()
    seen = counted(operator, monkeypatch)
    found = traced(solvers.nystrom(operator, v, DAMPING, rank=9, seed=2), wanted)
    assert len(seen) == 1 and found.trace[-1]["hvps"] == 9
    chosen = np.sort(np.random.default_rng(2).choice(len(matrix), 9, replace=False))
    low = matrix[:, chosen] @ torch.linalg.pinv(matrix[chosen][:, chosen], hermitian=True) @ matrix[chosen]
    explicit = torch.linalg.solve(low + DAMPING * torch.eye(len(matrix), dtype=torch.float64), v.T).T
    torch.testing.assert_close(found.solution, explicit, rtol=1e-6, atol=1e-8)
    full = traced(solvers.nystrom(operator, v, DAMPING, rank=operator.size))
    assert gap(full.solution, wanted) < 1e-6 < gap(found.solution, wanted)
    with pytest.raises(ValueError, match="Nystroem: the sampled part of the curvature has the eigenvalue -"):
        traced(solvers.nystrom(cv.hessian(operator.task, operator.train), v, DAMPING, rank=operator.size))


@pytest.mark.parametrize("relative", [True, False])
def test_datainf_is_a_mean_of_inverses(system, relative):
    operator, v, _ = system
    rows = slow_gradients(operator.task, operator.train)
    groups = second_derivatives.parameter_groups(operator.task)
    found = solvers.datainf(rows, groups, v, 0.1, relative=relative)
    for index in groups.values():
        g, eye = rows[:, index], torch.eye(len(index), dtype=torch.float64)
        damping = 0.1 * g.square().sum(1).mean() / len(index) if relative else 0.1
        inverse = sum(torch.linalg.inv(torch.outer(row, row) + damping * eye) for row in g) / len(g)
        torch.testing.assert_close(found[:, index], v[:, index] @ inverse)
    with pytest.raises(ValueError, match="DataInf: every gradient of '0' vanishes"):
        solvers.datainf(rows * 0, groups, v, 0.1)


def test_solvers_in_single_precision(system):
    operator, v, wanted = system
    for run in (
        lambda x: traced(solvers.cg(operator, x, DAMPING)),
        lambda x: traced(solvers.arnoldi(operator, x, DAMPING, complement=True, iterations=40)),
        lambda x: traced(solvers.nystrom(operator, x, DAMPING, rank=operator.size)),
        lambda x: traced(solvers.lissa(operator, x, DAMPING, batch=40, iterations=400)),
    ):
        found = run(v.float()).solution
        assert found.dtype == torch.float32 and gap(found.double(), wanted) < 1e-3


class Alike:
    """``c`` times the identity for whatever mini-batch; ``train`` says how many examples there are."""

    def __init__(self, c, size=6, n=20):
        self.c, self.size, self.dtype, self.train = c, size, torch.float64, {"inputs": torch.zeros(n)}

    def subset(self, index):
        return self

    def matvec(self, v):
        return self.c * v


@pytest.mark.parametrize("repeats", [1, 3])
def test_lissa_finds_its_scale_and_counts_what_that_costs(repeats):
    """One step from v: 2 v - (c + d) v / s, over s = 1.5 c + d."""
    v, c, d = torch.ones(2, 6, dtype=torch.float64), 3.0, 0.5
    found = traced(solvers.lissa(Alike(c), v, d, iterations=1, batch=5, repeats=repeats))
    scale = 1.5 * c + d
    torch.testing.assert_close(found.solution, (2 - (c + d) / scale) / scale * v, rtol=1e-9, atol=0)
    assert found.trace[-1]["hvps"] == pytest.approx((8 * solvers.POWER_STEPS + repeats) * 5 / 20)
    known = traced(solvers.lissa(Alike(c), v, d, iterations=4, batch=5, repeats=repeats, scale=9.0))
    assert known.trace[-1]["hvps"] == pytest.approx(4 * repeats * 5 / 20), "a scale that is given costs nothing"
