"""Half-model influence: the halves, influence at each, the balance, the weights of the dampings, and its refusals."""

from dataclasses import replace

import classifiers
import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from tda import designs, models
from tda.attribution import attribute
from tda.attribution import half_influence as method
from tda.curvature import kronecker
from tda.curvature.second_derivatives import SmallGGN, dense_ggn
from tda.evaluation.lds import lds
from tda.recipe import Recipe
from tda.task import n_examples, take
from tda.tools import halves
from tda.tools.gradients import matrix
from tda.training import train_recorded

RECIPE = Recipe(epochs=30, batch=16, lr=0.1, weight_decay=0.0, optimizer="sgd", momentum=0.9, checkpoints=3)
GGN = {"curvature": "ggn", "models": 8}


@pytest.fixture(scope="module")
def data():
    return classifiers.digits(48, 8)


def trained_on(train):
    model = classifiers.mlp(hidden=6)
    init = {k: v.detach() for k, v in model.named_parameters()}
    base = classifiers.task_of(model, init)
    params, run = train_recorded(base.loss_fn, init, train, RECIPE, 0)
    return replace(base, params=params, run=run)


@pytest.fixture(scope="module")
def task(data):
    return trained_on(data[0])


def joined(train, examples, labels=None):
    """``train`` and a copy of ``examples`` behind it, perhaps with other labels."""
    added = examples if labels is None else examples | {"labels": labels}
    return {k: torch.cat([train[k], added[k]]) for k in train}


# --- the halves


def test_halves_come_in_pairs_and_more_of_them_are_the_same_and_new_ones():
    five, nine = halves.draw(20, 5, 3), halves.draw(20, 9, 3)
    assert np.array_equal(five, nine[:5]) and (five.sum(1) == 10).all()
    assert np.array_equal(five[1], ~five[0]) and np.array_equal(five[3], ~five[2])
    assert len({row.tobytes() for row in nine}) == 9
    assert not {r.tobytes() for r in nine} & {r.tobytes() for r in halves.draw(20, 9, 3, stream=1)}
    assert not {r.tobytes() for r in nine} & {r.tobytes() for r in halves.draw(20, 9, 4)}


def test_halves_of_a_regression_are_independent():
    masks = halves.draw(20, 40, 3, stream=1)
    assert not any(np.array_equal(one, ~two) for one, two in zip(masks[::2], masks[1::2], strict=True))


def test_two_halves_show_every_document_on_both_sides():
    halves.require_both_sides(halves.draw_covering(31, 2, 0))


def test_a_document_on_one_side_only_is_refused_with_the_number_that_suffices():
    with pytest.raises(ValueError, match=r"are in all of the 2 subsets or in none.*Take (\d+) of them") as refused:
        halves.draw_covering(60, 2, 0, share=0.7)
    enough = int(str(refused.value).split("Take ")[1].split()[0])
    halves.require_both_sides(halves.draw_covering(60, enough, 0, share=0.7))
    with pytest.raises(ValueError, match="in all of"):
        halves.draw_covering(60, enough - 1, 0, share=0.7)


def test_models_of_ones_own_have_seeds_that_nobody_else_has():
    mine = {s for seed in range(3) for stream in range(4) for s in halves.seeds_from(seed, 500, stream)}
    assert len(mine) == 6000 and min(mine) >= halves.FIRST_SEED


def test_models_that_share_a_seed_lose_what_it_does_to_all():
    seeds = halves.seeds_from(0, 40, 1, sharing=16)
    assert [seeds.count(s) for s in sorted(set(seeds))] == [16, 16, 8] and seeds[:32] == halves.seeds_from(0, 32, 1, 16)
    values = np.random.default_rng(0).normal(size=(2, 40))
    shifted = values + 9.0 * (np.array(seeds) - seeds[0])
    found = halves.without_seeds(shifted, seeds)
    assert np.allclose(found, halves.without_seeds(values, seeds))
    assert np.allclose(found[:, np.array(seeds) == seeds[20]].mean(1), 0)


def test_moments_end_with_the_model_that_retraining_gives(task, data):
    masks = halves.draw(48, 2, 0)
    several = halves.trained(task, masks, [5, 6], 3)
    once = halves.trained(task, masks, [5, 6], 1)
    assert [len(moments) for moments in several] == [3, 3]
    for many, one in zip(several, once, strict=True):
        assert all(torch.equal(many[-1][k], one[0][k]) for k in one[0])
        assert not all(torch.equal(many[0][k], one[0][k]) for k in one[0])


def test_a_half_learns_only_from_its_documents(task, data):
    """The gradient of the half's mean loss is small at its model, and the others' labels do not matter."""
    mask, twisted = halves.draw(48, 1, 0)[0], dict(data[0])
    twisted["labels"] = torch.where(torch.from_numpy(mask), twisted["labels"], (twisted["labels"] + 1) % 10)
    other = trained_on(twisted)
    one, two = (halves.trained(t, mask[None], [5])[0][0] for t in (task, other))
    assert all(torch.equal(one[k], two[k]) for k in one)


# --- influence at one half


def test_both_ways_to_the_gauss_newton_matrix_agree(task, data):
    few = take(data[0], slice(0, 12))  # 120 pseudo-gradients, 460 parameters
    assert SmallGGN(task, few).rows is not None and SmallGGN(task, data[0]).rows is None
    v = torch.randn(3, 460, generator=torch.Generator().manual_seed(0))
    for part in (few, data[0]):
        small, dense = SmallGGN(task, part), dense_ggn(task, part)
        assert np.isclose(small.scale, dense.scale, rtol=1e-5)
        one, two = small.solve(v, 0.1), dense.function(lambda w: 1 / (w + 0.1), v)
        # what float32 loses of a vector is multiplied by the largest value of the function, 1 / 0.1
        close = 16 * torch.finfo(torch.float32).eps * float(v.norm(dim=1).max()) / 0.1
        assert float((one - two).abs().max()) < close


def test_influence_at_a_half_is_the_written_out_formula(task, data):
    train, queries = data
    mask = halves.draw(48, 1, 0)[0]
    found = method.at_model(task, train, queries, mask, "ggn", (0.1, 1.0), 0, 16)
    curvature = dense_ggn(task, take(train, mask)).matrix.float()
    unit = float(curvature.trace()) / len(curvature)
    of_queries, of_train = (matrix(task, part).double() for part in (queries, train))
    for damping, scores in zip((0.1, 1.0), found, strict=True):
        inverse = torch.linalg.inv(curvature.double() + damping * unit * torch.eye(len(curvature)))
        expected = (of_queries @ inverse @ of_train.T).numpy()
        lengths = of_queries.norm(dim=1)[:, None] * of_train.norm(
            dim=1
        )  # float32 loses eps of them, times 1 / (d unit)
        close = 16 * np.finfo(np.float32).eps * lengths.numpy() / (damping * unit)
        assert (np.abs(scores - expected) < close).all()
        assert close.max() < 0.05 * np.abs(expected).max()


def test_balance_by_hand():
    scores = np.array([[3.0, 4.0, 10.0, 0.0]])
    mask = np.array([True, True, False, False])
    inside, outside = np.sqrt((9 + 16) / 2), np.sqrt(100 / 2)
    assert np.allclose(method.balance(scores, mask), [[3 / inside, 4 / inside, 10 / outside, 0]])


def test_dampings_are_weighted_by_losses_of_models_that_are_left_out():
    rng = np.random.default_rng(0)
    masks, parts = halves.draw(30, 6, 0), rng.normal(size=(6, 3, 5, 30))
    log_losses = rng.normal(size=(5, 6)) - np.stack([parts.mean(0)[1] @ mask for mask in masks], 1)
    rows, y = [], []
    for q in range(5):
        x = np.array([[parts[np.arange(6) != j, d, q].mean(0) @ masks[j] for d in range(3)] for j in range(6)])
        rows.append((x - x.mean(0)) / log_losses[q].std())
        y.append(-(log_losses[q] - log_losses[q].mean()) / log_losses[q].std())
    weights = nnls(np.concatenate(rows), np.concatenate(y))[0]
    expected = np.einsum("d,dqi->qi", weights, parts.mean(0))
    assert np.allclose(method.combine(parts, masks, log_losses), expected)


def test_losses_that_no_damping_predicts_are_refused():
    masks, parts = halves.draw(30, 4, 0), np.ones((4, 2, 3, 30))
    with pytest.raises(ValueError, match="at no damping of .* do the scores predict the losses of the 4 own models"):
        method.combine(parts, masks, np.random.default_rng(0).normal(size=(3, 4)))


# --- the method


def test_a_copy_of_the_query_comes_first_and_its_contradiction_is_an_opponent(data):
    train, queries = data
    few = take(queries, slice(0, 4))
    task = trained_on(joined(train, few))
    scores = attribute("half_influence", task, joined(train, few), few, **GGN)
    assert (scores.argmax(1) == np.arange(48, 52)).all()
    with torch.no_grad():
        guess = task.outputs_fn(task.params, few)[0][:, 0].softmax(-1)
    wrong = guess.scatter(1, few["labels"][:, None], -1.0).argmax(1)
    twisted = joined(train, few, wrong)
    opposed = attribute("half_influence", trained_on(twisted), twisted, few, **GGN)
    assert (opposed[np.arange(4), np.arange(48, 52)] < 0).all()


def test_scores_do_not_depend_on_the_chunk(task, data):
    one, two = (attribute("half_influence", task, *data, chunk=chunk, **GGN) for chunk in (5, 48))
    assert np.abs(one - two).max() < 1e-3 * np.abs(one).max()


def test_a_querys_scores_do_not_depend_on_the_others_at_one_damping(task, data):
    whole = attribute("half_influence", task, *data, damping=0.1, **GGN)
    alone = attribute("half_influence", task, data[0], take(data[1], slice(2, 3)), damping=0.1, **GGN)
    assert np.abs(whole[2:3] - alone).max() < 1e-3 * np.abs(whole).max()


def test_halves_predict_halves_better_than_the_whole_does_and_the_residual_helps(task, data):
    """On 64 other halves of two seeds: the order of the chapter, one model < 8 halves < with 160 losses more."""
    train, queries = data
    subsets = np.stack([np.random.default_rng([7, i]).permutation(48) < 24 for i in range(64)])
    bank = [list(task.run.retrain_many(subsets, [s + i for i in range(64)], 1)) for s in (0, 500)]
    outputs = np.stack([np.exp(halves.log_losses(task, [p[0] for p in part], queries)).T for part in bank], 1)
    of = lambda name, **options: lds(attribute(name, task, train, queries, **options), subsets, outputs).mean()  # noqa: E731
    one = of("influence", curvature="ggn", damping=0.1)
    averaged = of("half_influence", curvature="ggn", models=8)
    regressed = of("half_influence", curvature="ggn", models=8, residual=160)
    assert one + 0.05 < averaged < regressed - 0.02


def test_halves_are_trained_once_for_all_queries(task, data):
    calls = []

    def counted(masks, seeds, moments):
        calls.append(masks)
        return task.run.retrain_many(masks, seeds, moments)

    watched = replace(task, run=replace(task.run, retrain_many=counted))
    halves.trained.forget()
    for part in (slice(0, 3), slice(3, 8)):
        attribute("half_influence", watched, data[0], take(data[1], part), seed=5, residual=32, **GGN)
    assert [len(masks) for masks in calls] == [8, 32]
    assert not {mask.tobytes() for mask in calls[0]} & {mask.tobytes() for mask in calls[1]}, "m further halves"


@pytest.mark.parametrize("curvature", ["ekfac", "ggn"])
def test_new_queries_find_the_curvature_of_every_half(task, data, monkeypatch, curvature):
    module, name = (kronecker, "_sweep") if curvature == "ekfac" else (method, "SmallGGN")
    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: calls.append(1) or original(*given))
    counts = []
    for part in (slice(0, 3), slice(3, 8)):
        attribute("half_influence", task, data[0], take(data[1], part), seed=6, models=12, curvature=curvature)
        counts.append(len(calls))
    assert counts[0] >= 12 and counts[1] == counts[0]


def test_the_matrices_of_a_larger_network_are_not_kept(task, data, monkeypatch):
    made, original = [], method.SmallGGN
    monkeypatch.setattr(method, "SmallGGN", lambda *given: made.append(1) or original(*given))
    monkeypatch.setattr(method, "KEPT", 1)
    method.small_ggn.forget()
    method.at_model.forget()
    first = attribute("half_influence", task, *data, seed=6, **GGN)
    method.at_model.forget()
    monkeypatch.setattr(method, "KEPT", 10**6)
    assert np.array_equal(first, attribute("half_influence", task, *data, seed=6, **GGN))
    assert len(made) == 2 * GGN["models"], "the second call found nothing that the first had kept"


def test_a_task_that_only_retrains_to_the_end_is_enough(task, data):
    plain = replace(task, run=replace(task.run, retrain_many=None))
    assert attribute("half_influence", plain, *data, **GGN).shape == (8, 48)
    with pytest.raises(ValueError, match="retrains to the end only"):
        attribute("half_influence", plain, *data, moment=1, **GGN)


@pytest.mark.parametrize("curvature", method.CURVATURES)
def test_every_curvature_and_moments(task, data, curvature):
    end = attribute("half_influence", task, *data, curvature=curvature, models=8)
    early = attribute("half_influence", task, *data, curvature=curvature, models=8, moment=2, around=1)
    assert np.isfinite(early).all() and not np.allclose(end, early)


def test_refusals(task, data):
    given = [
        ({"models": 1}, "models=1; it must be a whole number of at least 2"),
        ({"residual": 31}, "residual=31; at least 32 further halves, or 0 for none"),
        ({"around": 1}, "around needs a moment"),
        ({"moment": 4}, "moment=4; the recipe of 'digits' records 3 moments"),
        ({"share": 0.0}, "share=0.0 keeps 0 of 48 documents"),
        ({"share": 0.9}, "Take .* of them"),
    ]
    for options, words in given:
        with pytest.raises(ValueError, match=words):
            attribute("half_influence", task, *data, **({"models": 2} | options))
    with pytest.raises(ValueError, match="needs 'retrain'"):
        attribute("half_influence", replace(task, run=None), *data)


# --- apart from the bank


def test_subsets_and_seeds_of_a_bank_are_refused(tiny):
    run, n = models.load_task(tiny).run, len(tiny.documents)
    own, seeds = halves.draw(n, 1, 0), designs.bank_seeds(tiny, 1)
    with pytest.raises(ValueError, match=r"seeds \[.*\] train the bank 'half'"):
        run.retrain_many(own, seeds, 1)
    with pytest.raises(ValueError, match=r"subsets \[0\] are those of the bank 'half'"):
        run.retrain_many(designs.random_subsets(tiny, "half")[:1], [halves.FIRST_SEED], 1)


def test_a_testbeds_task_trains_as_its_bank_does(tiny):
    """The same mask and seed, asked for as a bank asks, end in the same parameters, with and without moments."""
    task, mask = models.load_task(tiny), halves.draw(len(tiny.documents), 1, 0)
    seed = halves.FIRST_SEED
    ((_, params, _, _),) = tiny.modality.train_models(tiny, [(mask[0], seed)], "filter")
    (one,), (several,) = (list(task.run.retrain_many(mask, [seed], moments)) for moments in (1, 3))
    assert len(several) == 3 and n_examples(tiny.train) == mask.shape[1]
    for found in (one[0], several[-1]):
        assert all(torch.equal(found[k], params[k]) for k in params)
