"""STRIDE: the losses against their definitions and finite differences, the start against a materialised influence."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from classifiers import digits, mlp, task_of, train
from small_tasks import small
from torch import nn

from tda import lm
from tda.attribution import attribute, stride
from tda.steering import fitting, operators, recovery
from tda.steering.fitting import Descent, Sampler, Weights
from tda.task import n_examples, take, tensors

N, Q = 40, 6


@pytest.fixture(scope="module")
def images():
    """(task, 40 training images, 6 queries) of a digits network in float64."""
    data, asked = digits(N, Q)
    params, _ = train(mlp(hidden=16), data, steps=60)
    data, asked = ({"inputs": d["inputs"].double(), "labels": d["labels"]} for d in (data, asked))
    return task_of(mlp(hidden=16).double(), {k: v.double() for k, v in params.items()}), data, asked


def logits_of(task, examples):
    with torch.no_grad():
        return task.outputs_fn(task.params, tensors(examples))


def explicit_effects(ops, task, examples):
    """y [K, n] by the definition: one subset and one example at a time, from shifted logits."""
    y = np.zeros((len(ops.codes), n_examples(examples)))
    for i in range(n_examples(examples)):
        one = take(examples, slice(i, i + 1))
        shot, (logits, targets) = operators.snapshot(task, one, ops.layer), logits_of(task, one)
        o, labels = logits[0][targets[0] != lm.IGNORE], targets[0][targets[0] != lm.IGNORE]
        for k, code in enumerate(ops.codes):
            shifted = o + ((shot.states - ops.mean) * ops.scale) @ ops.readout @ code
            y[k, i] = F.cross_entropy(o, labels) - F.cross_entropy(shifted, labels)
    return y


# --- the snapshot


@pytest.mark.parametrize("chunk", [3, 100])
def test_snapshot_of_a_language_model_is_its_last_block(task, tiny, chunk):
    few = take(tiny.train, slice(0, 9))
    shot = operators.snapshot(task, few, 1, chunk)
    logits, targets = logits_of(task, few)
    real = targets != lm.IGNORE
    torch.testing.assert_close(shot.probabilities, logits[real].softmax(-1), rtol=1e-4, atol=1e-6)
    assert torch.equal(shot.labels, targets[real]) and torch.equal(shot.start.diff(), real.sum(1))
    with torch.no_grad():
        again = task.model.lm_head(task.model.gpt_neox.final_layer_norm(shot.states)).softmax(-1)
    torch.testing.assert_close(again, shot.probabilities, rtol=1e-3, atol=1e-5)
    losses = torch.zeros(9).index_add(
        0, shot.example, -shot.probabilities[range(len(shot.labels)), shot.labels].log() * shot.weights
    )
    np.testing.assert_allclose(losses, lm.losses(task.loss_fn, task.params, few), rtol=1e-4)


def test_a_snapshot_that_does_not_fit_is_refused(images, monkeypatch):
    task, data, _ = images
    asked = []
    monkeypatch.setattr(operators, "require", lambda size, *text: asked.append(size))
    operators.snapshot(task, data, 1, chunk=30)
    assert asked == [10 * (16 + 10) * 8, 0], "ten images to come, of activations and outputs in float64"
    monkeypatch.undo()
    monkeypatch.setattr("tda.tools.memory_limit.SHARE", 0.0)
    with pytest.raises(ValueError, match="a snapshot of 26 numbers a target position needs"):
        operators.snapshot(task, data, 1, chunk=30)


def test_depth_zero_is_what_enters_the_first_block(task, tiny):
    few = take(tiny.train, slice(0, 2))
    shot = operators.snapshot(task, few, 0)
    ids = few["input_ids"][logits_of(task, few)[1] != lm.IGNORE]
    torch.testing.assert_close(shot.states, task.params["gpt_neox.embed_in.weight"][ids])


def test_depths_of_a_classifier_are_its_hidden_layers(images):
    task, data, _ = images
    hidden = task.model[1](task.model[0](data["inputs"]))
    assert torch.equal(operators.snapshot(task, data, 0).states, data["inputs"])
    task = replace(task, params=dict(task.model.named_parameters()))
    torch.testing.assert_close(operators.snapshot(task, data, -1).states, hidden.detach())


def test_positions_without_a_target_are_left_out():
    task, data = small("sequence")
    shot, targets = operators.snapshot(task, data, chunk=5), data["labels"][:, 1:]
    assert torch.equal(shot.labels, targets[targets != lm.IGNORE])
    assert torch.equal(shot.start.diff(), (targets != lm.IGNORE).sum(1))
    torch.testing.assert_close(shot.weights, 1 / (targets != lm.IGNORE).sum(1)[shot.example].double())


def test_the_default_layer_is_that_of_the_released_operators(images):
    model = nn.Module()
    for blocks, published in ((12, 8), (16, 10), (20, 12), (24, 15)):
        model.layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(blocks)])
        assert operators.depth(replace(images[0], model=model), -1) == published


# --- the losses


@pytest.fixture
def shifted():
    """Random (o [5, 7], labels [5], delta [5, 7]) in float64."""
    generator = torch.Generator().manual_seed(0)
    o, delta = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    return 2 * o, torch.randint(0, 7, (5,), generator=generator), delta


def test_losses_are_their_definitions(shifted):
    o, labels, delta = shifted
    p = o.softmax(-1)
    wanted = F.cross_entropy(o, labels, reduction="none") - F.cross_entropy(o + delta, labels, reduction="none")
    torch.testing.assert_close(operators.gain(p, labels, delta), wanted)
    wanted = F.kl_div((o + delta).log_softmax(-1), p, reduction="none").sum(-1)
    torch.testing.assert_close(operators.divergence(p, delta), wanted)
    tiny = 1e-9 * delta
    first = tiny[range(5), labels] - (p * tiny).sum(-1)
    torch.testing.assert_close(operators.gain(p, labels, tiny), first, rtol=1e-6, atol=0)


def test_linearity_is_a_ridge_on_the_sketch():
    rng = np.random.default_rng(0)
    M, y = rng.random((9, 6)) < 0.4, rng.standard_normal((9, 4))
    mixed = fitting.sketch(torch.from_numpy(M).double(), np.random.default_rng(1))
    a = mixed.numpy()
    assert a.shape == (9, 3) and np.allclose(a.mean(0), 0)
    R = np.random.default_rng(1).standard_normal((6, 3))
    np.testing.assert_allclose(a, M @ R - (M @ R).mean(0))
    c, gamma = y - y.mean(0), 1e-3 * np.mean(np.diag(a.T @ a))
    wanted = ((a @ np.linalg.inv(a.T @ a + gamma * np.eye(3)) @ a.T @ c - c) ** 2).sum() / 4
    np.testing.assert_allclose(fitting.linearity(torch.from_numpy(y), mixed), wanted)
    inside = torch.from_numpy(M @ R + 3.0)
    assert fitting.linearity(inside, mixed) < 1e-4 * inside.var() * 9, "linear effects cost nothing"


def descent(images, weights, measure, sample=None, seed=0):
    task, data, _ = images
    shot = operators.snapshot(task, data)
    X = (shot.states - shot.states.mean(0)) / 4
    slopes = fitting.subset_slopes(X, shot, measure)
    generator = np.random.default_rng(seed)
    sample = sample or Sampler(measure, shot.start, generator)
    return Descent(X, shot, measure, slopes, weights, sample, generator), X, shot


def parameters(K, width=16, rank=3, size=0.3):
    generator = torch.Generator().manual_seed(2)
    psi = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    return psi, size * torch.randn(K, rank, 10, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("only", ["fidelity", "stability", "linearity"])
def test_gradients_of_each_loss_are_finite_differences(images, only):
    measure = recovery.left_regular(N, 5, 2, 0)
    weights = Weights(**({"fidelity": 0.0, "stability": 1e-12, "linearity": 0.0} | {only: 1.7}))

    def objective(psi, codes):
        return descent(images, weights, measure)[0].objective(psi, codes)  # the same draws every time

    inputs = [x.requires_grad_() for x in parameters(5)]
    assert torch.autograd.gradcheck(objective, inputs, atol=1e-6)
    assert all(g.abs().max() > 1e-4 for g in torch.autograd.grad(objective(*inputs), inputs)), "it pulls on both"


def test_objective_is_the_published_sum_when_every_position_is_drawn(images):
    """With the sampler replaced by the whole subset and the whole complement, the decomposition is exact."""
    measure = recovery.left_regular(N, 4, 1, 0)  # four subsets of ten
    sets = {False: measure, True: ~measure}

    def whole(of_complement):
        return torch.stack([torch.from_numpy(np.flatnonzero(m)) for m in sets[of_complement]])

    weights = Weights(1.3, 4.0, 0.0)
    made, X, shot = descent(images, weights, measure, whole)
    psi, codes = parameters(4)
    logits, labels, wanted = logits_of(*images[:2])[0][:, 0], shot.labels, 0.0
    for k, code in enumerate(codes):
        o = logits + X @ psi @ code
        inside, outside = (torch.from_numpy(s[k]) for s in sets.values())
        fidelity = F.cross_entropy(o[inside], labels[inside]) - F.cross_entropy(logits[inside], labels[inside])
        kl = F.kl_div(o.log_softmax(-1), logits.softmax(-1), reduction="none").sum(-1)[outside].mean()
        wanted += 1.3 * fidelity + 4.0 * kl
    torch.testing.assert_close(made.objective(psi, codes), wanted)


def test_sampler_draws_documents_evenly_and_then_positions():
    measure = np.array([[True, True, False, False, False], [False, True, True, True, False]])
    start = torch.tensor([0, 2, 7, 8, 10, 13])
    sample = Sampler(measure, start, np.random.default_rng(0))
    for of_complement in (False, True):
        drawn = torch.cat([sample(of_complement) for _ in range(500)], 1).numpy()
        for k, members in enumerate(~measure if of_complement else measure):
            share = np.bincount(drawn[k], minlength=13) / drawn.shape[1]
            lengths = start.diff().numpy()
            wanted = np.repeat(members / members.sum() / lengths, lengths)
            np.testing.assert_allclose(share, wanted, atol=0.03)
            assert (share[wanted == 0] == 0).all()


# --- training


def test_start_is_the_minimum_of_the_bound(images):
    """Class by class, with the second moment of the read-out weighted by that class's probability, by loops."""
    task, data, _ = images
    shot, measure = operators.snapshot(task, data), recovery.left_regular(N, 12, 3, 0)
    ops = fitting.train(shot, measure, 1, 5, Weights(2.0, 7.0, 1.0), steps=0)
    B, p = ops.read(shot.states), shot.probabilities
    torch.testing.assert_close(B.T @ B / N, torch.eye(5).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(B.mean(0), torch.zeros(5).double(), atol=1e-8, rtol=0)
    for k, c in ((0, 0), (5, 3), (11, 9)):
        bound = sum(p[i, c] * torch.outer(B[i], B[i]) for i in range(N)) / N + 1e-3 * torch.eye(5)
        members = np.flatnonzero(measure[k])
        pull = sum(B[i] * (float(shot.labels[i] == c) - p[i, c]) for i in members) / len(members)
        torch.testing.assert_close(ops.codes[k, :, c], torch.linalg.solve(9.0 * bound, 2.0 * pull))


def test_slopes_are_gradients_of_the_mean_losses_of_documents():
    """Several targets a document: the mean over targets first, then over documents, by autograd."""
    task, data = small("sequence")
    shot, measure = operators.snapshot(task, data), recovery.left_regular(12, 4, 2, 0)
    found = fitting.subset_slopes(shot.states, shot, measure)
    logits, targets = logits_of(task, data)
    for k, members in enumerate(measure):
        code = torch.zeros(shot.states.shape[1], 5, dtype=torch.float64, requires_grad=True)
        steered = logits.clone()
        steered[targets != lm.IGNORE] += shot.states @ code
        losses = [F.cross_entropy(steered[i], targets[i], ignore_index=lm.IGNORE) for i in np.flatnonzero(members)]
        torch.stack(losses).mean().backward()
        torch.testing.assert_close(found[:, k], -code.grad)


def full_objective(ops, shot, weights):
    """The published objective without the linearity loss, over all positions (one an example)."""
    delta = torch.einsum("ir,krc->kic", ops.read(shot.states), ops.codes)
    p = shot.probabilities.expand(len(delta), -1, -1)
    won, kl = operators.gain(p, shot.labels.expand(len(delta), -1), delta), operators.divergence(p, delta)
    inside = torch.from_numpy(ops.measure)
    fidelity, stability = -(won * inside).sum(1) / inside.sum(1), (kl * ~inside).sum(1) / (~inside).sum(1)
    return (weights.fidelity * fidelity + weights.stability * stability).sum()


@pytest.mark.parametrize("stability", [1.0, 10.0])
def test_descent_lowers_the_objective_of_the_start(images, stability):
    task, data, _ = images
    shot, measure = operators.snapshot(task, data), recovery.left_regular(N, 20, 4, 0)
    weights = Weights(1.0, stability, 0.0)
    values = [full_objective(fitting.train(shot, measure, 1, 5, weights, steps=s), shot, weights) for s in (0, 60)]
    frozen = 0.0
    assert values[1] < values[0] < frozen, values


def test_dropping_the_linearity_loss_changes_nothing_else(images):
    """Its sketches and probes have their own numbers: a weight of next to nothing is a weight of nothing."""
    task, data, _ = images
    shot, measure = operators.snapshot(task, data), recovery.left_regular(N, 20, 4, 0)
    none, little = (fitting.train(shot, measure, 1, 5, Weights(1, 10, w), steps=8) for w in (0.0, 1e-12))
    torch.testing.assert_close(none.codes, little.codes, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(none.readout, little.readout, rtol=1e-7, atol=1e-10)


def test_linearity_loss_makes_effects_more_linear(images):
    task, data, _ = images
    shot, measure = operators.snapshot(task, data), recovery.left_regular(N, 60, 15, 0)
    left = []
    for weight in (0.0, 30.0):
        y = operators.effects(fitting.train(shot, measure, 1, 5, Weights(1, 1, weight), 60), shot)
        X, y = measure - measure.mean(0), y - y.mean(0)
        residual = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
        left.append((residual**2).sum() / (y**2).sum())
    assert left[1] < 0.9 * left[0], left


@pytest.mark.parametrize("steps", [0, 30])
def test_a_code_of_one_document_lowers_its_loss(images, task, tiny, steps):
    for one, examples in ((images[0], images[1]), (task, take(tiny.train, slice(0, 20)))):
        n = n_examples(examples)
        ops = stride.operators_for(one, examples, np.eye(n, dtype=bool), stride.Options(steps=steps))
        y = stride.measurements(ops, one, examples)
        assert (np.diag(y) > 0).all() and (np.diag(y) > y.mean(0)).all()


def test_the_closed_form_start_is_influence_with_the_curvature_of_the_bound(images):
    """No descent, strong stability. Every gradient in the code by autograd, the bound by loops, no subsets at all."""
    task, data, asked = images
    options = {"stability": 1e7, "steps": 0, "subsets": 80, "degree": 8, "rank": 5}
    found = attribute("stride", task, data, asked, recovery="ridge", penalty=1e-9, **options)
    ops = stride.operators(task, data, stride.Options(subsets=80, degree=8, rank=5, stability=1e7, steps=0))

    def gradients(examples):
        shot, rows = operators.snapshot(task, examples), []
        for i in range(n_examples(examples)):
            code = torch.zeros(5, 10, dtype=torch.float64, requires_grad=True)
            o = logits_of(task, examples)[0][i, 0] + ops.read(shot.states[i]) @ code
            F.cross_entropy(o, shot.labels[i]).backward()
            rows.append(code.grad)
        return torch.stack(rows)

    shot = operators.snapshot(task, data)
    B, p = ops.read(shot.states), shot.probabilities
    solved = torch.zeros(N, 5, 10, dtype=torch.float64)
    for c in range(10):
        bound = sum(p[i, c] * torch.outer(B[i], B[i]) for i in range(N)) / N + 1e-3 * torch.eye(5)
        solved[:, :, c] = torch.linalg.solve(bound, gradients(data)[:, :, c].T).T
    influence = (gradients(asked).flatten(1) @ solved.flatten(1).T).numpy()
    for s, wanted in zip(found, influence, strict=True):  # equal up to the intercept that equal sizes leave open
        assert np.corrcoef(s, wanted)[0, 1] > 0.999
    size = ops.measure.sum(1).mean()
    np.testing.assert_allclose(found.std(1) * size * (1 + 1e7), influence.std(1), rtol=0.02)


# --- measurements and recovery


def test_effects_are_shifted_losses(images, monkeypatch):
    sequences = small("sequence")
    for task, examples in ((images[0], images[1]), sequences):
        measure = recovery.left_regular(n_examples(examples), 6, 3, 0)
        ops = stride.operators_for(task, examples, measure, stride.Options(rank=3, steps=3))
        wanted = explicit_effects(ops, task, examples)
        np.testing.assert_allclose(stride.measurements(ops, task, examples), wanted, rtol=1e-8, atol=1e-12)
        monkeypatch.setattr(operators, "BLOCK", 50)
        np.testing.assert_allclose(stride.measurements(ops, task, examples, chunk=3), wanted, rtol=1e-8, atol=1e-12)


def test_sparse_influences_are_recovered_exactly_without_noise():
    """Through the design that STRIDE draws: fewer subsets than documents, five documents that matter."""
    rng, n, K = np.random.default_rng(0), 120, 60
    w = np.zeros((3, n))
    for row in w:
        row[rng.permutation(n)[:5]] = rng.choice([-1, 1], 5) * rng.uniform(0.5, 2, 5)
    measure = recovery.left_regular(n, K, 8, [0, 81])
    found = recovery.recover(measure, measure @ w.T + 0.3, "lasso", penalty=1e-4)
    np.testing.assert_allclose(found, w, atol=0.01)
    assert np.abs(recovery.recover(measure, measure @ w.T, "ridge", penalty=1e-6) - w).max() > 0.3


def test_the_design_has_the_stated_degree():
    measure = recovery.left_regular(70, 140, 10, [3, 81])
    assert (measure.sum(0) == 10).all() and (measure.sum(1) == 5).all()
    assert np.linalg.matrix_rank(measure - measure.mean(0)) == 69, "all that equal sizes leave is identified"
    assert not np.array_equal(measure, recovery.left_regular(70, 140, 10, [4, 81]))


def test_operators_are_trained_once_for_all_queries_and_recoveries(images, monkeypatch):
    task, data, asked = images
    calls = []
    real = stride.train
    monkeypatch.setattr(stride, "train", lambda *a, **k: calls.append(a) or real(*a, **k))
    stride.operators.forget()
    options = {"subsets": 50, "recovery": "ridge", "steps": 2}
    whole = attribute("stride", task, data, asked, **options)
    part = attribute("stride", task, data, take(asked, slice(2, 4)), **options)
    assert len(calls) == 1
    np.testing.assert_allclose(part, whole[2:4], rtol=1e-5)
    for recovery_only in ({"recovery": "correlation"}, {"penalty": 0.3}):
        attribute("stride", task, data, asked, **options | recovery_only)
    assert len(calls) == 1
    for trained_with in ({"seed": 1}, {"stability": 7.0}, {"degree": 9}):
        attribute("stride", task, data, asked, **options | trained_with)
    assert len(calls) == 4


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2}, r"layer=2; .* depths 0 \(its input\) to 1"),
        ({"layer": -2}, "layer=-2"),
        ({"rank": 17}, "rank=17, but the layer has 16 activations; choose 1 to 16"),
        ({"rank": -1}, "rank=-1"),
        ({"subsets": 500}, "leave some of 500 subsets empty"),
        ({"stability": -1.0}, "stability=-1.0; it must be a finite number of at least 0"),
        ({"fidelity": 0.0, "stability": 0.0}, "leave the codes nothing to train on"),
        ({"fidelity": 0.0}, "the same on every subset"),
        ({"steps": -1}, "steps=-1"),
        ({"rate": 0.0}, "rate=0"),
        ({"recovery": "basis pursuit"}, "one of .*lasso"),
    ],
)
def test_bad_options_are_refused(images, options, message):
    task, data, asked = images
    with pytest.raises(ValueError, match=message):
        attribute("stride", task, data, asked, **{"linearity": 0.0} | options)


def test_subsets_that_cannot_be_trained_are_refused(images):
    task, data, _ = images
    measure = recovery.left_regular(N, 6, 2, 0)
    for k, value, what in ((2, False, "hold no document"), (4, True, "hold every document")):
        bad = measure.copy()
        bad[k] = value
        with pytest.raises(ValueError, match=rf"subsets \[{k}\] of 6 {what}"):
            stride.operators_for(task, data, bad, stride.Options())
    with pytest.raises(ValueError, match="subsets of 39 documents, but there are 40"):
        stride.operators_for(task, data, measure[:, 1:], stride.Options())
    with pytest.raises(ValueError, match=r"measure is int64 .*; give bool"):
        stride.operators_for(task, data, measure.astype(int), stride.Options())


def test_operators_of_another_model_are_refused(images, task, tiny):
    ops = stride.operators(*images[:2], stride.Options(subsets=20, degree=2, rank=3, steps=0))
    with pytest.raises(ValueError, match=r"operators for 16 activations and 10 outputs, asked about 32"):
        stride.measurements(ops, task, take(tiny.train, slice(0, 2)))


def test_a_layer_that_is_called_twice_is_refused():
    task, data = small("sequence")
    with pytest.raises(ValueError, match="layer 1 is called 2 times"):
        stride.operators_for(task, data, recovery.left_regular(12, 4, 2, 0), stride.Options(layer=1))
