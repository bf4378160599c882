"""The ladder of curvature matrices against matrices written out with autograd, on nets of a few dozen parameters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_tasks import slow_ggn, slow_gradients, slow_hessian, small, task_of
from torch import nn

from tda import curvature as cv
from tda.curvature.second_derivatives import pseudo_gradients
from tda.studies.hessians import basis, indefinite, ladder, spanned
from tda.studies.hessians.spanned import spanned_ggn
from tda.task import take
from tda.tools import memory_limit

DAMPINGS, DECAY = (1e-3, 1e-1, 5.0), 1e-1
FUNCTIONS = {
    "inverse": lambda w: 1 / (w + 0.03),
    "decay": lambda w: torch.exp(-w),
    "identity": lambda w: w,
    "pseudo-inverse": lambda w: torch.where(w > 1e-6, 1 / w, 0.0),
}


def close(found, wanted, rtol=1e-8):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


@pytest.fixture(scope="module")
def deep():
    """139 parameters and 6 examples of 3 classes: 18 pseudo-gradients, fewer than two layers of three have."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2), nn.Linear(2, 3))
    generator = torch.Generator().manual_seed(4)
    train = {
        "inputs": torch.randn(6, 4, generator=generator, dtype=torch.float64),
        "labels": torch.randint(0, 3, (6,), generator=generator),
    }
    return task_of(net), train, take(small("mlp")[1], slice(0, 5))


# --- the Gauss-Newton matrix in the span of its rows


@pytest.mark.parametrize("name", FUNCTIONS)
def test_spanned_functions_are_those_of_the_matrix(deep, name):
    task, train, _ = deep
    full, f = slow_ggn(task, train), FUNCTIONS[name]
    found = spanned_ggn(task, train)
    assert isinstance(found, spanned.Spanned)
    values, vectors = torch.linalg.eigh(full)
    v = torch.randn(7, len(full), dtype=torch.float64)
    close(found.function(f, v), v @ vectors @ torch.diag(f(values.clamp(min=0))) @ vectors.T)
    assert found.function(f, v.float()).dtype == torch.float32
    close(found.function(f, v.float()).double(), found.function(f, v), rtol=1e-4)


def test_spanned_has_all_eigenvalues_and_an_orthogonal_basis(deep):
    task, train, _ = deep
    full, found = slow_ggn(task, train), spanned_ggn(task, train)
    close(found.spectrum(), torch.linalg.eigvalsh(full).flip(0), rtol=1e-10)
    unit = torch.eye(len(full), dtype=torch.float64)
    close(found.project(unit) @ found.project(unit).T, unit)
    close(found.lift(found.project(unit)), unit)
    close(found.materialise(), full)
    np.testing.assert_allclose(found.scale, cv.dense_ggn(task, train).scale, rtol=1e-8)
    doubled = found.with_eigenvalues(2 * found.eigenvalues)
    close(doubled.materialise(), 2 * full)
    close(found.materialise(), full)


@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_every_block_has_its_smaller_form(deep, by):
    task, train, _ = deep
    found, wanted = spanned_ggn(task, train, by), cv.block_ggn(task, train, by)
    kinds = {name: type(block) for name, (_, block) in found.blocks.items()}
    assert set(kinds.values()) == {spanned.Spanned, cv.Dense}
    assert all((kind is spanned.Spanned) == (len(found.blocks[name][0]) > 18) for name, kind in kinds.items())
    v = torch.randn(4, found.size, dtype=torch.float64)
    for f in FUNCTIONS.values():
        close(found.function(f, v), wanted.function(lambda w, f=f: f(w.clamp(min=0)), v))
    close(found.spectrum(), wanted.spectrum(), rtol=1e-10)


def test_a_net_with_more_pseudo_gradients_than_parameters_stays_dense_to_the_bit():
    task, train = small("mlp", n=40)
    assert torch.equal(spanned_ggn(task, train, chunk=32).materialise(), cv.dense_ggn(task, train, 32).materialise())
    for name, (_, block) in spanned_ggn(task, train, "layer", chunk=32).blocks.items():
        assert torch.equal(block.matrix, cv.block_ggn(task, train).blocks[name][1].matrix)


def test_spanned_treats_sequences_too():
    task, train = small("sequence", n=2)
    found = spanned_ggn(task, train, "layer")
    close(found.materialise(), cv.block_ggn(task, train).materialise())


def test_spanned_refuses(deep, monkeypatch):
    task, train, _ = deep
    with pytest.raises(ValueError, match="5 rows of 4 parameters; .* Use Dense"):
        spanned.Spanned(torch.ones(5, 4), 5)
    with pytest.raises(ValueError, match="pseudo-gradient is not finite"):
        spanned.Spanned(torch.full((2, 4), torch.nan), 2)
    with pytest.raises(ValueError, match="no outputs_fn"):
        spanned_ggn(replace(task, outputs_fn=None), train)
    monkeypatch.setattr(memory_limit, "SHARE", 1e-9)
    monkeypatch.setattr(spanned, "pseudo_gradients", lambda *a, **k: pytest.fail("asked for memory first"))
    with pytest.raises(ValueError, match=r"in 18 pseudo-gradients needs \d+ MB; .* solver='cg'"):
        spanned_ggn(task, train)


def test_forecast_of_the_spanned_form(deep, monkeypatch):
    task, train, _ = deep
    seen = []
    monkeypatch.setattr(spanned, "require", lambda size, *_: seen.append(size))
    rows = torch.cat(list(pseudo_gradients(task, train, "exact")))
    spanned_ggn(task, train)
    blocks = spanned_ggn(task, train, "layer").blocks.values()
    wide = sum(len(index) for index, block in blocks if isinstance(block, spanned.Spanned))
    held = sum(len(rows) ** 2 for _, block in blocks if isinstance(block, spanned.Spanned))
    assert 0 < wide < rows.shape[1], "some blocks of each form"
    dense = sum(len(index) ** 2 for index, block in blocks if isinstance(block, cv.Dense))
    assert seen[0] == 20 * rows.numel() + 24 * len(rows) ** 2
    assert seen[1] == 4 * rows.numel() + 16 * len(rows) * wide + 24 * (held + dense)


def test_ranked_eigenvalues_from_blocks_write_nothing_down(deep, monkeypatch):
    task, train, _ = deep
    base, blocks = cv.kfac(task, train, "exact"), spanned_ggn(task, train, "layer")
    wanted = basis.in_basis(base, cv.dense_ggn(task, train), "ranked")
    assert any(not torch.equal(index, blocks.blocks[k][0]) for k, (index, _) in base.blocks.items()), "another order"
    other = basis.in_basis(base, spanned_ggn(task, train, "tensor"), "ranked")  # other blocks: written down
    assert not torch.allclose(other.eigenvalues, wanted.eigenvalues)
    for operator in (cv.Blocks, spanned.Spanned, cv.Dense):
        monkeypatch.setattr(operator, "materialise", lambda self: pytest.fail("P x P"))
    found = basis.in_basis(base, blocks, "ranked")
    close(found.eigenvalues, wanted.eigenvalues, rtol=1e-9)


def test_blocks_of_other_parameters_are_not_taken_for_the_basis_s(deep):
    task, train, _ = deep
    base, blocks = cv.kfac(task, train, "exact"), spanned_ggn(task, train, "layer")
    rows = torch.cat(list(pseudo_gradients(task, train, "exact")))
    index = torch.arange(1, 1 + len(base.blocks["0"][0]))  # as many, under the same name
    other = cv.Blocks(base.size, {"0": (index, spanned.Spanned(rows[:, index], 6))})
    part = cv.Blocks(base.size, {"0": base.blocks["0"]})
    found = basis.in_basis(part, other, "ranked").eigenvalues.sort().values
    own = base.blocks["0"][0]
    close(found, torch.linalg.eigvalsh(other.materialise()[own][:, own]))
    assert not torch.allclose(found, other.blocks["0"][1].spectrum().flip(0))
    assert basis._alike(base.blocks, blocks.blocks) and not basis._alike(base.blocks, other.blocks)


# --- the Hessian without eigenvectors


@pytest.mark.parametrize("name", ["mlp", "conv", "sequence"])
@pytest.mark.parametrize("rows", [3, 128])
def test_the_triangle_is_the_hessian_s(monkeypatch, name, rows):
    monkeypatch.setattr(indefinite, "ROWS", rows)
    task, train = small(name)
    wanted, covered = slow_hessian(task, train), torch.zeros(0, dtype=torch.long)
    for start, columns in indefinite.hessian_triangle(task, train):
        top = len(wanted) - columns.shape[1]
        assert top <= start and len(columns) <= rows
        close(columns, wanted[start : start + len(columns), top:])
        covered = torch.cat([covered, torch.arange(start, start + len(columns))])
    assert covered.equal(torch.arange(len(wanted)))


def test_the_indefinite_solve(deep):
    task, train, _ = deep
    full, v = slow_hessian(task, train), torch.randn(5, 139, dtype=torch.float64)
    damping = -float(torch.linalg.eigvalsh(full)[0]) / 2
    assert damping > 1e-3, "indefinite"
    wanted = torch.linalg.solve(full + damping * torch.eye(len(full), dtype=torch.float64), v.T).T
    found, residual = indefinite.solve_hessian(task, train, v, damping)
    close(found, wanted, rtol=1e-6)
    assert residual < 1e-9
    single = replace(task, params={k: p.float() for k, p in task.params.items()})
    data = {k: x.float() if x.is_floating_point() else x for k, x in train.items()}
    found, residual = indefinite.solve_hessian(single, data, v.float(), damping)
    assert found.dtype == torch.float32 and residual < 1e-9, "in float64 whatever the task"


def test_the_residual_is_that_of_the_solution(deep, monkeypatch):
    task, train, _ = deep
    v = torch.randn(2, cv.hessian(task, train).size, dtype=torch.float64)
    solve = indefinite.lapack.dsysv
    monkeypatch.setattr(indefinite.lapack, "dsysv", lambda a, b, **k: (*solve(a, b, **k)[:2], 0 * b, 0))
    assert indefinite.solve_hessian(task, train, v, 0.1)[1] == pytest.approx(1.0)
    monkeypatch.setattr(indefinite.lapack, "dsysv", lambda a, b, **k: (a, None, b, 3))
    with pytest.raises(ValueError, match=r"H \+ 0.1 is singular .* info 3"):
        indefinite.solve_hessian(task, train, v, 0.1)
    monkeypatch.setattr(memory_limit, "SHARE", 1e-9)
    with pytest.raises(ValueError, match="the Hessian of .* MB"):
        indefinite.solve_hessian(task, train, v, 0.1)


# --- scores and errors


def slow_answer(true, inverse, own, asked, decay):
    x = own @ inverse
    back = x @ true + decay * x
    errors = [float((b - g).square().sum() / g.square().sum()) for b, g in zip(back, own, strict=True)]
    angles = [1 - float(b @ g) ** 2 / float(b @ b) / float(g @ g) for b, g in zip(back, own, strict=True)]
    return np.mean(errors), np.mean(angles), (asked @ inverse @ own.T).numpy()


@pytest.mark.parametrize("full", [True, False])
def test_every_rung_s_answers(deep, full):
    task, train, queries = deep
    made = ladder.build_rungs(task, train, full)
    assert tuple(made) == ladder.RUNGS[0 if full else 2 :]
    true, own, asked = slow_hessian(task, train), slow_gradients(task, train), slow_gradients(task, queries)
    answers = list(ladder.measure_rungs(task, made, train, queries, DAMPINGS, DECAY))
    assert [(a.rung, a.damping) for a in answers] == [(r, d) for r in made for d in (0.0, *DAMPINGS)]
    for answer in answers:
        values, vectors = torch.linalg.eigh(made[answer.rung].materialise())
        values = values.abs() if answer.rung == ladder.MAGNITUDES else values
        inverse = torch.where(values.abs() > 1e-4, 1 / values, 0.0)
        inverse = 1 / (values + answer.damping) if answer.damping else inverse
        inverse = vectors @ torch.diag(inverse) @ vectors.T
        error, angle, scores = slow_answer(true, inverse, own, asked, DECAY if answer.damping else 0.0)
        np.testing.assert_allclose([answer.error, answer.angle], [error, angle], rtol=1e-5, atol=1e-9)
        if answer.damping:
            np.testing.assert_allclose(answer.scores, scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max())
        else:
            assert answer.scores is None
    if full:
        exact = next(a for a in answers if (a.rung, a.damping) == ("Hessian", DECAY))
        assert exact.error < 1e-15 and exact.angle < 1e-12


def test_the_rungs_are_the_matrices_they_are_called(deep):
    task, train, _ = deep
    made, full = ladder.build_rungs(task, train), slow_ggn(task, train)
    close(made["Hessian"].materialise(), slow_hessian(task, train))
    close(made["Gauss-Newton"].materialise(), full)
    close(made["blocks"].materialise(), cv.block_ggn(task, train).materialise())
    close(made["diagonal"].eigenvalues, full.diag())
    close(made["identity"].materialise(), torch.eye(len(full), dtype=torch.float64) * full.trace() / len(full))
    for name, kind in (("K-FAC", cv.kfac), ("EK-FAC", cv.ekfac)):
        close(made[name].materialise(), kind(task, train, "exact").materialise())
    for r in ("right eigenvalues", "blocks"):
        close(made[r].spectrum(), made["blocks"].spectrum(), rtol=1e-9)


def test_errors_are_over_the_probes_only(deep):
    task, train, queries = deep
    made = {"identity": ladder.build_rungs(task, train, full=False)["identity"]}
    few = [a.error for a in ladder.measure_rungs(task, made, train, queries, DAMPINGS, DECAY, probes=2)]
    all_ = [a.error for a in ladder.measure_rungs(task, made, take(train, slice(0, 2)), queries, DAMPINGS, DECAY)]
    assert not np.allclose(few, all_), "the curvature is that of the whole"
    own, true = slow_gradients(task, train)[:2], slow_hessian(task, train)
    inverse = torch.eye(own.shape[1], dtype=torch.float64) / (made["identity"].eigenvalues[0] + DAMPINGS[1])
    np.testing.assert_allclose(few[2], slow_answer(true, inverse, own, own, DECAY)[0], rtol=1e-6)


def test_the_large_hessian_agrees_with_its_rung(deep):
    task, train, queries = deep
    values = torch.linalg.eigvalsh(slow_hessian(task, train))
    least, dampings = float(values[0]), (1e-3, DECAY, -2 * float(values[0]), 5.0)
    decay = -least / 2
    dampings = (1e-4, decay, *dampings[2:])
    answers, found, residual = ladder.measure_large_hessian(task, train, queries, dampings, decay)
    assert found == pytest.approx(least, rel=1e-6) and residual < 1e-9
    assert [a.damping for a in answers] == [decay, *dampings[2:]], "indefinite elsewhere"
    made = {"Hessian": cv.dense_hessian(task, train)}
    wanted = {a.damping: a for a in ladder.measure_rungs(task, made, train, queries, dampings, decay)}
    for answer in answers:
        other = wanted[answer.damping]
        np.testing.assert_allclose(answer.scores, other.scores, rtol=1e-3, atol=1e-4 * np.abs(other.scores).max())
        np.testing.assert_allclose([answer.error, answer.angle], [other.error, other.angle], rtol=1e-3, atol=1e-9)
