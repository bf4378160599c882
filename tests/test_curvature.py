"""Curvature operators against matrices written out with autograd, on nets of a few dozen parameters."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from small_tasks import flat, slow_ggn, slow_gradients, slow_hessian, small, task_of
from torch import nn

from tda import curvature as cv
from tda.curvature import empirical, kronecker, layers, named, second_derivatives
from tda.curvature.second_derivatives import pseudo_gradients
from tda.output_loss import FISHERS, LOSSES
from tda.studies.hessians.basis import in_basis
from tda.task import n_examples, take, tensors
from tda.tools import memory_limit
from tda.tools.gradients import matrix

NAMES = ("logistic", "mlp", "conv", "sequence")
SPECTRAL = ("hessian", "ggn", "block_ggn", "kfac", "ekfac", "diagonal", "empirical_fisher", "identity")


@pytest.fixture(scope="module")
def nets():
    return {name: small(name) for name in NAMES}


def close(found, wanted, rtol=1e-8):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


def block(matrix, index):
    return matrix[index][:, index]


def written(operator):
    """The matrix of an operator on its unit vectors, whatever its own ``materialise`` does."""
    return operator.matvec(torch.eye(operator.size, dtype=torch.float64))


def captured(task, train):
    """Per layer what goes in and what comes back from the losses of all examples."""
    return next(layers.passes(task, tensors(train), cv.tracked(task)))[0]


# --- memory


def test_budget_refuses_what_does_not_fit():
    free = psutil.virtual_memory().available
    memory_limit.require(0.3 * free, "a matrix", "")
    with pytest.raises(ValueError, match=r"a matrix needs \d+ MB; \d+ MB are free and at most 60% .* Take less\."):
        memory_limit.require(0.9 * free, "a matrix", "Take less.")


def test_large_matrices_are_refused_before_they_are_made(nets, monkeypatch):
    monkeypatch.setattr(memory_limit, "SHARE", 1e-9)
    task, train = nets["mlp"]
    cv.named._dual.forget()
    for make in (cv.dense_hessian, cv.dense_ggn, cv.block_ggn, lambda *a: cv.operator("empirical_fisher", *a)):
        with pytest.raises(ValueError, match=r"MB are free.*(curvature='ekfac'|solver='cg')"):
            make(task, train)
    cv.factors.forget()
    with pytest.raises(ValueError, match=r"Kronecker factors of 2 layers .* '0', 5 x 5: .* curvature='diagonal'"):
        cv.ekfac(task, train)


# --- exact matrices


@pytest.mark.parametrize("name", NAMES)
def test_hessian_is_written_out(nets, name):
    task, train = nets[name]
    wanted = slow_hessian(task, train)
    operator = cv.hessian(task, train, chunk=5)
    close(operator.materialise(), wanted)
    close(cv.dense_hessian(task, train).materialise(), wanted)
    v = torch.randn(3, operator.size, dtype=torch.float64)
    close(operator.matvec(v), v @ wanted)


@pytest.mark.parametrize("name", NAMES)
def test_ggn_is_written_out(nets, name):
    task, train = nets[name]
    wanted = slow_ggn(task, train)
    close(cv.ggn(task, train, chunk=5).materialise(), wanted)
    close(cv.dense_ggn(task, train, chunk=5).materialise(), wanted)
    assert not torch.allclose(wanted, slow_hessian(task, train), rtol=1e-2) or name == "logistic"


def test_ggn_of_logistic_regression_is_its_hessian(nets):
    close(cv.ggn(*nets["logistic"]).materialise(), slow_hessian(*nets["logistic"]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_block_ggn_keeps_the_diagonal_blocks(nets, name, by):
    task, train = nets[name]
    full, wanted = slow_ggn(task, train), 0
    groups = second_derivatives.parameter_groups(task, by)
    for index in groups.values():
        mask = torch.zeros(len(full), dtype=torch.float64)
        mask[index] = 1.0
        wanted = wanted + torch.outer(mask, mask) * full
    close(written(cv.block_ggn(task, train, by)), wanted)
    assert len(groups) == len(task.params) if by == "tensor" else len(groups) <= len(task.params)


def test_a_mini_batch_is_the_operator_of_its_examples(nets):
    task, train = nets["mlp"]
    index = np.array([1, 4, 6])
    close(cv.ggn(task, train).subset(index).materialise(), slow_ggn(task, take(train, index)))


@pytest.mark.parametrize("name", NAMES)
def test_scale_is_the_mean_eigenvalue(nets, name):
    task, train = nets[name]
    wanted = float(slow_ggn(task, train).trace()) / len(flat(task))
    np.testing.assert_allclose(cv.dense_ggn(task, train).scale, wanted, rtol=1e-8)
    if name == "sequence":  # estimated there, with one sampled label a position
        wanted = float(sum(rows.square().sum() for rows in pseudo_gradients(task, train, "sampled")) / 12 / 77)
    for make in (cv.ggn, cv.hessian, cv.dense_hessian):
        np.testing.assert_allclose(make(task, train).scale, wanted, rtol=1e-8)


# --- Fishers


@pytest.mark.parametrize("name", NAMES)
def test_exact_pseudo_gradients_make_the_ggn(nets, name):
    task, train = nets[name]
    rows = torch.cat(list(pseudo_gradients(task, train, "exact", chunk=5)))
    close(rows.T @ rows / n_examples(train), slow_ggn(task, train))


@pytest.mark.parametrize("name", NAMES)
def test_empirical_pseudo_gradients_are_the_gradients(nets, name):
    task, train = nets[name]
    rows = torch.cat(list(pseudo_gradients(task, train, "empirical", chunk=5)))
    close(rows, slow_gradients(task, train))
    close(rows, matrix(task, train))


@pytest.mark.parametrize("name", ["mlp", "sequence"])
def test_sampled_fisher_is_the_ggn_on_average(nets, name):
    task, train = nets[name]
    draws = [torch.cat(list(pseudo_gradients(task, train, "sampled", seed))) for seed in range(400)]
    mean = sum(rows.T @ rows for rows in draws) / len(draws) / n_examples(train)
    wanted = slow_ggn(task, train)
    assert (mean - wanted).norm() < 0.06 * wanted.norm()
    assert not torch.equal(draws[0], draws[1])


def test_sampled_labels_depend_on_neither_order_nor_chunk(nets):
    task, train = nets["sequence"]
    order = torch.tensor([5, 2, 9, 0])
    whole = torch.cat(list(pseudo_gradients(task, train, "sampled", chunk=12)))
    close(torch.cat(list(pseudo_gradients(task, take(train, order), "sampled", chunk=3))), whole[order])


@pytest.mark.parametrize("kind", FISHERS)
def test_diagonal_is_the_diagonal(nets, kind):
    task, train = nets["sequence"]
    rows = torch.cat(list(pseudo_gradients(task, train, kind)))
    found = cv.diagonal(task, train, kind, chunk=5)
    close(written(found), torch.diag(rows.square().sum(0) / n_examples(train)))
    if kind == "empirical":
        close(found.eigenvalues, empirical.diagonal(task, train))


def test_dual_is_the_empirical_fisher(nets):
    for name in ("mlp", "sequence"):
        task, train = nets[name]
        g = slow_gradients(task, train)
        wanted = g.T @ g / len(g)
        found = cv.operator("empirical_fisher", task, train)
        close(written(found), wanted)
        close(found.spectrum(), torch.linalg.eigvalsh(wanted).flip(0)[: len(g)], rtol=1e-6)
        v = torch.randn(4, found.size, dtype=torch.float64)
        close(
            found.function(lambda w: 1 / (w + 0.01), v),
            torch.linalg.solve(wanted + 0.01 * torch.eye(len(v[0])), v.T).T,
            1e-6,
        )
        close(cv.inverse("empirical_fisher", task, train, 0.3)(v), empirical.inverse("full", task, train, 0.3)(v), 1e-6)


# --- layers


@pytest.mark.parametrize("name", NAMES)
def test_captured_halves_make_the_gradient(nets, name):
    task, train = nets[name]
    wanted, chosen = slow_gradients(task, train), cv.tracked(task)
    for layer, (a, g) in captured(task, train).items():
        assert a.shape[:2] == g.shape[:2] and (g.shape[2], a.shape[2]) == chosen[layer].shape
        close(torch.einsum("bso,bsi->boi", g, a).flatten(1), wanted[:, chosen[layer].index])
    covered = torch.cat([layer.index for layer in chosen.values()])
    rest = cv.untracked(task, chosen)
    assert sorted([*covered.tolist(), *(i for index in rest.values() for i in index.tolist())]) == list(
        range(len(flat(task)))
    )
    assert list(rest) == (["embed.weight", "norm.weight", "norm.bias"] if name == "sequence" else [])


def test_hooks_are_gone_afterwards(nets):
    task, train = nets["mlp"]
    captured(task, train)
    broken = replace(task, outputs_fn=lambda p, b: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        captured(broken, train)
    assert not any(module._forward_hooks for module in task.model.modules())


def test_layers_that_cannot_be_treated_are_named(nets):
    task, train = nets["sequence"]
    with pytest.raises(ValueError, match=r"no Kronecker factor fits the parameters \['embed.weight', 'norm.weight'"):
        cv.kfac(task, train, "empirical", rest="refuse")
    with pytest.raises(ValueError, match=r"layers='attention' finds no linear .*'shared', 'twice', 'head'"):
        cv.kfac(task, train, "empirical", layers="attention")
    with pytest.raises(ValueError, match="rest='x'; one of"):
        cv.kfac(task, train, "empirical", rest="x")
    grouped = nn.Sequential(
        nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten(), nn.Linear(32, 3)
    )
    other = task_of(grouped)
    assert list(cv.tracked(other)) == ["3"]
    assert set(cv.untracked(other, cv.tracked(other))) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_layer_at_other_positions_than_the_targets_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(5, 3), nn.Linear(3, 5)

        def forward(self, ids):
            return self.layer(F.pad(self.embed(ids), (0, 0, 1, 0)))[:, 1:]

    _, train = small("sequence")
    with pytest.raises(ValueError, match="layer 'layer' is applied at 5 positions and the task has 4 targets"):
        cv.factors(task_of(Odd(), sequence=True), train, "empirical")


def test_a_task_without_outputs_is_refused(nets):
    task, train = nets["mlp"]
    for curvature in ("ggn", "ekfac", "diagonal", "block_ggn"):
        with pytest.raises(ValueError, match="has no outputs_fn or no model"):
            cv.operator(curvature, replace(task, outputs_fn=None), train)


# --- Kronecker factors


def test_factors_of_a_linear_model_by_hand(nets):
    task, train = nets["logistic"]
    a, s = cv.factors(task, train, "exact", chunk=5)[""]
    x = torch.cat([train["inputs"], torch.ones(12, 1, dtype=torch.float64)], 1)
    p = task.outputs_fn(task.params, train)[0][:, 0].softmax(-1)
    close(a, x.T @ x / 12)
    close(s, torch.diag(p.mean(0)) - p.T @ p / 12)


def test_factors_of_a_shared_layer_by_hand(nets):
    """The mean over real positions (up to the last target, gaps included) for A, the sum over positions for S."""
    task, train = nets["sequence"]
    model, ids = task.model, train["inputs"]
    x = model.norm(model.embed(ids)).detach()
    real = [[s <= max(t for t in range(4) if row[t] != -100) for s in range(4)] for row in train["labels"][:, 1:]]
    kept = torch.cat([x[i, [s for s in range(4) if real[i][s]]] for i in range(12)])
    kept = torch.cat([kept, torch.ones(len(kept), 1, dtype=torch.float64)], 1)
    a, s = cv.factors(task, train, "empirical", chunk=5)["shared"]
    close(a, kept.T @ kept / len(kept))
    assert 0 < len(kept) < 48, "some positions are padding"
    y = model.shared(x).detach().requires_grad_()
    after = torch.tanh(y).cumsum(1) / torch.arange(1, 5).unsqueeze(1)
    logits = model.head(torch.tanh(model.twice(torch.tanh(model.twice(after)))))
    each = F.cross_entropy(logits.transpose(1, 2), train["labels"][:, 1:], reduction="none").sum(1)
    (each / (train["labels"][:, 1:] != -100).sum(1)).sum().backward()
    close(s, sum(g.T @ g for g in y.grad) / 12)


def test_factor_a_of_a_convolution_by_hand(nets):
    task, train = nets["conv"]
    padded, rows = F.pad(train["inputs"], (1, 1, 1, 1)), []
    for image in padded:
        for i in (0, 2):
            for j in (0, 2):
                rows.append(torch.cat([image[:, i : i + 3, j : j + 3].flatten(), torch.ones(1, dtype=torch.float64)]))
    rows = torch.stack(rows)
    close(cv.factors(task, train, "empirical")["0"][0], rows.T @ rows / len(rows))


@pytest.mark.parametrize("name", NAMES)
def test_kfac_is_the_kronecker_product(nets, name):
    task, train = nets[name]
    found = written(cv.kfac(task, train, "sampled"))
    for layer, (a, s) in cv.factors(task, train, "sampled").items():
        close(block(found, cv.tracked(task)[layer].index), torch.kron(s, a))


@pytest.mark.parametrize("kind", FISHERS)
@pytest.mark.parametrize("name", NAMES)
def test_ekfac_is_the_diagonal_of_the_fisher_in_the_kronecker_basis(nets, name, kind):
    task, train = nets[name]
    rows = torch.cat(list(pseudo_gradients(task, train, kind)))
    full = slow_ggn(task, train) if kind == "exact" else rows.T @ rows / n_examples(train)
    found = written(cv.ekfac(task, train, kind, chunk=5))
    for layer, (a, s) in cv.factors(task, train, kind).items():
        index = cv.tracked(task)[layer].index
        basis = torch.kron(torch.linalg.eigh(s)[1], torch.linalg.eigh(a)[1])
        wanted = basis @ torch.diag((basis.T @ block(full, index) @ basis).diag()) @ basis.T
        close(block(found, index), wanted)
    outside = torch.cat([torch.empty(0, dtype=torch.long), *cv.untracked(task, cv.tracked(task)).values()])
    assert (found[outside] == 0).all() and (found[:, outside] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_ekfac_is_the_ggn_projected_on_its_basis(nets, name):
    """Its own rung of the ladder: right eigenvalues in the K-FAC basis."""
    task, train = nets[name]
    close(
        in_basis(cv.kfac(task, train, "exact"), cv.ggn(task, train)).eigenvalues,
        cv.ekfac(task, train, "exact").eigenvalues,
    )


def test_ranked_eigenvalues_are_the_block_s_own(nets):
    task, train = nets["mlp"]
    base, full = cv.kfac(task, train, "exact"), slow_ggn(task, train)
    found = in_basis(base, cv.dense_ggn(task, train), "ranked")
    for name, (index, part) in found.blocks.items():
        close(part.spectrum().flip(0), torch.linalg.eigvalsh(block(full, index)))
        order = base.blocks[name][1].eigenvalues.argsort()
        assert (part.eigenvalues[order].diff() >= 0).all(), "the largest sits on the largest"
    own = cv.block_ggn(task, train)
    for how in ("projected", "ranked"):  # a matrix in its own basis is itself
        close(written(in_basis(own, cv.dense_ggn(task, train), how)), written(own))
    with pytest.raises(ValueError, match="how='x'"):
        in_basis(own, own, "x")


@pytest.mark.parametrize("name", NAMES)
def test_ekfac_is_closer_to_the_ggn_than_kfac(nets, name):
    task, train = nets[name]
    full = slow_ggn(task, train)
    ours = [written(make(task, train, "exact")) for make in (cv.ekfac, cv.kfac)]
    for layer in cv.tracked(task).values():
        good, poor = ((block(m, layer.index) - block(full, layer.index)).norm() for m in ours)
        assert good <= poor * (1 + 1e-9)
    whole = torch.cat([layer.index for layer in cv.tracked(task).values()])
    assert (block(ours[0], whole) - block(full, whole)).norm() < (block(ours[1], whole) - block(full, whole)).norm()


@pytest.mark.parametrize("name", ["mlp", "logistic"])
def test_both_are_exact_for_one_example(nets, name):
    """Then a block *is* a Kronecker product: one input, one covariance of slopes."""
    task, train = nets[name][0], take(nets[name][1], slice(3, 4))
    full = slow_ggn(task, train)
    for make in (cv.kfac, cv.ekfac):
        found = written(make(task, train, "exact"))
        for layer in cv.tracked(task).values():
            close(block(found, layer.index), block(full, layer.index), rtol=1e-7)


def test_kfac_is_exact_for_a_deep_layer_with_a_constant_input():
    """Zero weights below: every example gives the last layer the same input, whatever its slopes."""
    task = task_of(nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Linear(2, 3)))
    task.params["0.weight"].zero_()
    train = small("mlp")[1]
    full, index = slow_ggn(task, train), cv.tracked(task)["2"].index
    close(block(written(cv.kfac(task, train, "exact")), index), block(full, index))


def test_interacting_positions_break_kfac_and_not_ekfac():
    """A case where it must fail: one word repeated is one position four times, and K-FAC expand counts it as four."""
    task, _ = small("sequence")
    labels = torch.tensor([[1, -100, -100, -100, 2]] * 3)
    train = {"inputs": torch.full((3, 4), 1), "labels": labels}
    full, index = slow_ggn(task, train), cv.tracked(task)["shared"].index
    kfac, ekfac = (block(written(make(task, train, "exact")), index) for make in (cv.kfac, cv.ekfac))
    close(ekfac, block(full, index), rtol=1e-7)
    assert (kfac - block(full, index)).norm() > 0.3 * block(full, index).norm()


@pytest.mark.parametrize("kind", FISHERS)
def test_parameters_outside_the_layers_on_request(nets, kind):
    task, train = nets["sequence"]
    found = cv.ekfac(task, train, kind, rest="diagonal")
    plain = written(cv.ekfac(task, train, kind))
    outside = torch.cat(list(cv.untracked(task, cv.tracked(task)).values()))
    wanted = plain + torch.diag(
        cv.diagonal(task, train, kind).eigenvalues * torch.isin(torch.arange(found.size), outside)
    )
    close(written(found), wanted)
    assert found.covered.all() and not cv.ekfac(task, train, kind).covered.all()
    only = cv.ekfac(task, train, kind, layers="head")
    assert list(only.blocks) == ["head"] and int(only.covered.sum()) == 20


def test_operations_in_place_after_a_layer_change_nothing():
    """A ReLU in place overwrites the layer's output, and a residual in place its input."""

    class InPlace(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.a, self.b, self.inplace = nn.Linear(4, 4), nn.Linear(4, 3), inplace

        def forward(self, x):
            x = x * 1.0
            y = F.relu(self.a(x), inplace=self.inplace)
            x = x.add_(y) if self.inplace else x + y
            return self.b(x)

    torch.manual_seed(0)
    model = InPlace(True)
    train, other = small("mlp")[1], InPlace(False)
    other.load_state_dict(model.state_dict())
    one, two = (cv.factors(task_of(m), train, "exact") for m in (model, other))
    for name in one:
        for x, y in zip(one[name], two[name], strict=True):
            close(x, y)


# --- functions of the spectrum


@pytest.mark.parametrize("curvature", SPECTRAL)
@pytest.mark.parametrize("name", ["mlp", "sequence"])
def test_functions_agree_with_the_matrix(nets, name, curvature):
    task, train = nets[name]
    operator = cv.operator(curvature, task, train, "exact")
    whole = written(operator)
    close(whole, whole.T)
    v = torch.randn(5, operator.size, dtype=torch.float64)
    close(operator.function(lambda w: w, v), operator.matvec(v))
    close(operator.function(lambda w: w * w, v), operator.matvec(operator.matvec(v)), rtol=1e-7)
    covered = getattr(operator, "covered", torch.ones(operator.size, dtype=torch.bool))
    values, vectors = torch.linalg.eigh(whole)
    damping = 0.2 + float(values.abs().max())  # the Hessian stays positive
    for f in (lambda w: 1 / (w + damping), lambda w: torch.exp(-w)):
        wanted = v @ vectors @ torch.diag(f(values)) @ vectors.T
        close(operator.function(f, v)[:, covered], wanted[:, covered], rtol=1e-7)
        assert (operator.function(f, v)[:, ~covered] == 0).all()
    twice, thrice = operator.functions([lambda w: 2 * w, lambda w: 3 * w], v)
    close(twice / 2, operator.matvec(v))
    close(thrice / 3, operator.matvec(v))
    spectrum = operator.spectrum()
    assert (spectrum.diff() <= 0).all()
    close(spectrum.sum(), whole.trace(), rtol=1e-7)
    assert operator.size == len(flat(task))


def test_spectral_functions_in_single_precision(nets):
    task, train = nets["mlp"]
    for curvature in SPECTRAL:
        operator = cv.operator(curvature, task, train, "exact")
        v = torch.randn(5, operator.size)
        found = operator.function(lambda w: 1 / (w.abs() + 0.1), v)
        assert found.dtype == torch.float32
        close(found.double(), operator.function(lambda w: 1 / (w.abs() + 0.1), v.double()), rtol=1e-4)


@pytest.mark.parametrize("curvature", SPECTRAL)
def test_inverse_is_the_damped_inverse(nets, curvature):
    task, train = nets["mlp"]
    operator = cv.operator(curvature, task, train)
    v = torch.randn(3, operator.size, dtype=torch.float64)
    wanted = torch.linalg.inv(written(operator) + 20.0 * operator.scale * torch.eye(operator.size, dtype=torch.float64))
    close(cv.inverse(curvature, task, train, 20.0)(v), v @ wanted, rtol=1e-7)
    wanted = torch.linalg.inv(written(operator) + 0.9 * torch.eye(operator.size, dtype=torch.float64))
    close(cv.inverse(curvature, task, train, 0.9, unit="absolute")(v), v @ wanted, rtol=1e-7)


def test_indefinite_hessian(nets):
    task, train = nets["mlp"]
    values, vectors = torch.linalg.eigh(slow_hessian(task, train))
    assert values[0] < -1e-3
    v, small_damping = torch.randn(3, len(values), dtype=torch.float64), 1e-4
    known = {"unit": "absolute"}
    with pytest.raises(ValueError, match=f"eigenvalue {float(values[0]):.3g} and the damping is 0.0001"):
        cv.inverse("hessian", task, train, small_damping, **known)(v)
    for indefinite, changed in (("keep", values), ("absolute", values.abs()), ("clip", values.clamp(min=0))):
        wanted = v @ vectors / (changed + small_damping) @ vectors.T
        close(cv.inverse("hessian", task, train, small_damping, indefinite=indefinite, **known)(v), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="indefinite='x'"):
        cv.inverse("hessian", task, train, 1.0, indefinite="x")(v)


def test_bad_values_are_refused(nets):
    task, train = nets["mlp"]
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="it must be positive"):
            cv.inverse("ekfac", task, train, damping)
    with pytest.raises(ValueError, match="unit='x'"):
        cv.inverse("ekfac", task, train, 1.0, unit="x")
    with pytest.raises(ValueError, match="curvature='kfacs'; one of"):
        cv.operator("kfacs", task, train)
    with pytest.raises(ValueError, match="fisher='true'; one of"):
        cv.ekfac(task, train, "true")
    with pytest.raises(ValueError, match="by='x'"):
        cv.block_ggn(task, train, "x")
    with pytest.raises(ValueError, match="matrix-free|without eigenvectors"):
        cv.inverse("ggn", task, train, 1.0, dense=False)
    broken = replace(task, params={k: v * float("nan") if k == "2.weight" else v for k, v in task.params.items()})
    for curvature in ("kfac", "ekfac", "diagonal", "block_ggn", "ggn", "hessian"):
        with pytest.raises(ValueError, match="not finite"):
            cv.operator(curvature, broken, train)
    with pytest.raises(ValueError, match="layer '0' is not finite"):
        cv.operator("kfac", broken, train, "empirical")
    flat_task = replace(task, params={k: v * 0 for k, v in task.params.items()})
    flat_train = train | {"inputs": train["inputs"] * 0}
    sure = replace(
        flat_task,
        outputs_fn=lambda p, b: (task.outputs_fn(p, b)[0] * 0 + torch.tensor([1e3, 0, 0]), task.outputs_fn(p, b)[1]),
    )
    with pytest.raises(ValueError, match="mean eigenvalue of the curvature is 0"):
        cv.inverse("ekfac", sure, flat_train | {"labels": flat_train["labels"] * 0}, 0.1)


def test_exact_fisher_of_a_long_sequence_is_refused():
    logits = torch.zeros(1, 40, 60)
    with pytest.raises(ValueError, match=r"40 positions x 60 outputs; at most 1000 .*fisher='sampled'"):
        next(LOSSES["cross_entropy"].vectors(logits, torch.zeros(1, 40, dtype=torch.long), "exact"))


# --- the language model


def test_language_model(task, tiny):
    """GPT-NeoX through the library's modules: halves against vmap gradients, products against each other."""
    train = take(tiny.train, slice(0, 10))
    chosen = cv.tracked(task)
    assert "lm_head" in chosen and len(chosen) == 5
    assert all(not name.startswith(tuple(chosen)) for name in cv.untracked(task, chosen))
    wanted = matrix(task, train)
    for name, (a, g) in captured(task, train).items():
        found = torch.einsum("bso,bsi->boi", g, a).flatten(1)
        torch.testing.assert_close(found, wanted[:, chosen[name].index], rtol=1e-3, atol=1e-5)
    a, b = torch.randn(2, 2, len(wanted[0]))
    for operator in (cv.ggn(task, train, chunk=4), cv.hessian(task, train, chunk=4)):
        one, other = (operator.matvec(a) * b).sum(1), (operator.matvec(b) * a).sum(1)
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
    assert ((cv.ggn(task, train).matvec(a) * a).sum(1) > 0).all()
    rows = torch.cat(list(pseudo_gradients(task, train, "sampled", seed=3, chunk=4)))
    found = cv.ekfac(task, train, "sampled", seed=3, chunk=7)
    energy = rows[:, found.covered].square().sum() / len(rows)
    torch.testing.assert_close(found.eigenvalues.sum(), energy.double(), rtol=1e-4, atol=0.0)
    assert kronecker.ekfac(task, train, "sampled", seed=3, chunk=7) is found, "remembered"


def test_the_unit_of_an_indefinite_operator_is_its_mean_magnitude():
    """Signed eigenvalues could average to nothing, and a relative damping with them."""
    one = cv.Diagonal(torch.tensor([3.0, -1.0, -2.0], dtype=torch.float64))
    assert one.scale == 2.0 and named.absolute_damping(one, 0.5) == 1.0
    other = cv.Diagonal(-torch.ones(1, dtype=torch.float64))
    assert cv.Blocks(4, {"a": (torch.arange(3), one), "b": (torch.tensor([3]), other)}).scale == 7 / 4
