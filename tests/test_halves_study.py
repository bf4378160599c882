"""Chapter 25's study: leverage and Newton steps against written-out matrices, and a judge that shares its seeds."""

from dataclasses import replace

import classifiers
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from test_half_influence import trained_on

from tda.attribution import half_influence
from tda.curvature.second_derivatives import dense_ggn, pseudo_gradients
from tda.evaluation.ceiling import ceiling, with_seeds
from tda.evaluation.lds import lds
from tda.studies.halves import judge, rungs
from tda.task import take
from tda.tools import halves
from tda.tools.gradients import matrix

DAMPING = 0.5


@pytest.fixture(scope="module")
def world():
    train, queries = classifiers.digits(30, 5)
    task = trained_on(train)
    mask = halves.draw(30, 1, 0)[0]
    params = halves.trained(task, mask[None], [7])[0][0]
    return replace(task, params=params), train, queries, mask


@pytest.fixture(scope="module")
def dense(world):
    """(C + d in float64, A [N, C, P], query gradients, document gradients, size of the half)."""
    task, train, queries, mask = world
    curvature = dense_ggn(task, take(train, mask)).matrix
    shift = DAMPING * float(curvature.trace()) / len(curvature)
    rows = torch.stack(list(pseudo_gradients(task, train, "exact", chunk=30)), 1).double()
    whole = curvature.double() + shift * torch.eye(len(curvature), dtype=torch.float64)
    return whole, rows, *(matrix(task, part).double() for part in (queries, train)), int(mask.sum())


def test_leverage_and_newton_steps_are_those_of_the_written_out_matrices(world, dense):
    task, train, queries, mask = world
    whole, rows, of_queries, of_train, size = dense
    plain = half_influence.at_model(task, train, queries, mask, "ggn", (DAMPING,), 0, 32)[0]
    trace, newton = rungs.leverages_and_newton(task, train, queries, mask, DAMPING, plain)
    for i in range(30):
        own = rows[i].T @ rows[i] / size
        assert np.isclose(trace[i], float(torch.trace(torch.linalg.solve(whole, own))), rtol=1e-3)
        changed = whole - own if mask[i] else whole + own
        expected = of_queries @ torch.linalg.solve(changed, of_train[i])
        assert np.abs(newton[:, i] - expected.numpy()).max() < 2e-3 * float(expected.abs().max()) + 1e-5
    assert 0 < trace[mask].mean() < trace[~mask].mean()


def test_a_newton_step_is_larger_inside_and_smaller_outside(world):
    """In the direction of the document's own effect: what the balance does with one factor a side."""
    task, train, _, mask = world
    plain = half_influence.at_model(task, train, train, mask, "ggn", (DAMPING,), 0, 32)[0]
    _, newton = rungs.leverages_and_newton(task, train, train, mask, DAMPING, plain)
    ratio = np.diag(newton) / np.diag(plain)
    assert (ratio[mask] > 1).all() and (ratio[~mask] < 1).all()


def test_a_groups_newton_step_is_that_of_its_own_matrix(world):
    task, train, queries, _ = world
    subsets = halves.draw(30, 3, 5, stream=1)
    found = rungs.group_newton(task, train, queries, subsets, DAMPING)
    of_queries, of_train = (matrix(task, part).double() for part in (queries, train))
    for m, subset in enumerate(subsets):
        curvature = dense_ggn(task, take(train, subset)).matrix.double()
        shift = DAMPING * float(curvature.trace()) / len(curvature)
        slope = of_train[torch.from_numpy(subset)].mean(0)
        expected = of_queries @ torch.linalg.solve(curvature + shift * torch.eye(len(curvature)), slope)
        assert np.abs(found[:, m] - expected.numpy()).max() < 2e-3 * float(expected.abs().max())


def test_rungs_of_models_of_everything_and_of_halves(world):
    train, queries = world[1:3]
    task = trained_on(train)
    options = half_influence.Options(models=4, curvature="ggn", damping=0.0)
    subsets = halves.draw(30, 8, 9, stream=3)
    outputs = np.random.default_rng(0).random((8, 2, 5))
    tune = np.array([True, True, True, False, False])
    everything = np.ones((4, 30), bool)
    of_everything = half_influence.own_models(task, everything, options)
    found = rungs.rungs(task, train, queries, options, of_everything, (subsets, outputs), tune)
    assert list(found)[1:4] == ["4 models of everything", "4 models of halves", "inside and outside balanced"]
    parts = half_influence.contributions(task, train, queries, everything, of_everything, options)
    reached = [lds(one[tune], subsets, outputs[..., tune]).mean() for one in parts.mean(0)]
    assert np.allclose(found["4 models of everything"], parts.mean(0)[int(np.argmax(reached))])
    same = half_influence.attribute(task, train, queries, models=4, curvature="ggn")
    assert np.allclose(found["dampings combined"], same, atol=1e-5)
    two = rungs.rungs(task, train, queries, options, of_everything[:2], (subsets, outputs), tune)
    halved = halves.draw_covering(30, 4, 0)
    own = half_influence.own_models(task, halved, options)
    first = half_influence.contributions(task, train, queries, halved, own, options)[:2].mean(0)
    assert any(np.array_equal(two["inside and outside balanced"], one) for one in first)
    assert list(two) == ["one model", "2 models of everything", "2 models of halves", "inside and outside balanced"]


def test_a_judges_subsets_share_their_seeds_and_nobody_else_has_them(world):
    train, queries = world[1:3]
    task, seen = trained_on(train), []

    def watched(masks, seeds, moments):
        seen.append((masks, list(seeds)))
        return task.run.retrain_many(masks, seeds, moments)

    listening = replace(task, run=replace(task.run, retrain_many=watched))
    found = judge.new_bank(listening, train, queries, 6, 2, None, 0.95, seed=3)
    assert found.outputs.shape == (6, 2, 5) and found.ceiling == found.bound.value
    assert [len(set(seeds)) for _, seeds in seen] == [1, 1] and seen[0][1] != seen[1][1]
    mine = {mask.tobytes() for stream in (0, 1) for mask in halves.draw(30, 40, 3, stream=stream)}
    assert not {mask.tobytes() for mask in found.subsets} & mine
    direct = np.exp(halves.log_losses(task, [p[0] for p in task.run.retrain_many(*seen[0], 1)], queries)).T
    assert np.allclose(found.outputs[:, 0], direct)


def test_shares_of_a_ceiling_of_other_models_are_scaled_and_err_with_it():
    rng = np.random.default_rng(0)
    masks, logs = halves.draw(20, 24, 0, stream=1), rng.normal(size=(4, 24))
    seeds = np.arange(24) // 8
    bank = ceiling(rng.normal(size=(30, 1, 4)) + rng.normal(size=(30, 3, 4)))
    one = judge.of_own_models(masks, seeds, logs, bank)
    assert np.isclose(one.ceiling, with_seeds(bank.value, 3, 1)) and one.outputs.shape == (24, 1, 4)
    slope = (with_seeds(bank.value + 1e-5, 3, 1) - with_seeds(bank.value - 1e-5, 3, 1)) / 2e-5
    assert np.isclose(one.error, slope * bank.slope * bank.agreement.se, rtol=1e-4) and one.error > 0
    scores = rng.normal(size=(4, 20))
    row = one.lds({"x": scores}, None, 0.95)["x"]
    apart = [halves.without_seeds(part, seeds) for part in (scores @ masks.T, -logs)]
    assert np.allclose(row.per_query, [spearmanr(a, b).statistic for a, b in zip(*apart, strict=True)])
    told = one.lds({}, None, 0.95, (), {"x": scores @ masks.T + 7.0 * seeds})["x"]
    assert np.allclose(told.per_query, row.per_query)
    known, share = replace(one, error=0.0).share(row, None, 0.95), one.share(row, None, 0.95)
    assert np.allclose(tuple(known), np.array(tuple(row.value)) / one.ceiling) and share.df == row.value.df
    relative = np.hypot(row.value.se / row.value.value, one.error / one.ceiling)
    assert np.isclose(share.se, abs(share.value) * relative) and share.value == known.value
    assert np.isclose((share.high - share.value) / share.se, (row.value.high - row.value.value) / row.value.se)


def test_unit_predictions():
    found = judge.unit(np.array([[1.0, 3.0], [2.0, 2.0]]))
    assert np.allclose(found, [[-1, 1], [0, 0]])
