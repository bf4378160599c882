"""The regression on what scores leave: its exact left-out errors, its solution, and what it must not find."""

import numpy as np
import pytest

from tda.tools import residual


def world(m=48, n=16, queries=3, noise=0.3, seed=0):
    """Scores that know half of the truth, random subsets, and y = <truth, S> + noise."""
    rng = np.random.default_rng(seed)
    subsets = rng.random((m, n)) < 0.5
    scores, rest = rng.normal(size=(2, queries, n))
    truth = scores + rest * np.abs(scores)
    return scores, subsets, truth, truth @ subsets.T + noise * rng.normal(size=(queries, m))


def kriged(w0, subsets, y, ratio, floor=0.1):
    """``(weights, slope, predict)`` by the covariance of all pairs, with mu and a free: the slow obvious way."""
    spread = w0**2 + floor * (w0**2).mean()
    fixed = np.stack([np.ones(len(y)), subsets @ w0], 1)
    apart = np.eye(len(y)) - fixed @ np.linalg.pinv(fixed)
    kernel = subsets * spread @ subsets.T
    scale = np.trace(apart @ kernel @ apart) / (len(y) - 2)
    return spread / scale, fixed, kernel / scale


@pytest.mark.parametrize("n", [16, 90])  # fewer documents than models, and more
@pytest.mark.parametrize("ratio", [0.0, 0.3, 30.0])
def test_the_error_of_a_left_out_model_is_that_of_a_refit_without_it(ratio, n):
    scores, subsets, _, y = world(n=n)
    prior, fixed, kernel = kriged(scores[0], subsets.astype(float), y[0], ratio)
    errors = []
    for j in range(len(subsets)):
        rest = np.arange(len(subsets)) != j
        cov = np.linalg.inv(ratio * kernel[np.ix_(rest, rest)] + np.eye(rest.sum()))
        beta = np.linalg.solve(fixed[rest].T @ cov @ fixed[rest], fixed[rest].T @ cov @ y[0, rest])
        guess = fixed[j] @ beta + ratio * kernel[j, rest] @ cov @ (y[0, rest] - fixed[rest] @ beta)
        errors.append(guess - y[0, j])
    found = residual.Query(scores[0], subsets.astype(float), y[0], 0.1).error(ratio)
    assert np.isclose(found, np.mean(np.square(errors)) / y[0].var())


@pytest.mark.parametrize("n", [16, 90])
def test_the_weights_minimise_the_penalised_squares(n):
    scores, subsets, _, y = world(n=n)
    ratio, inputs = 3.0, subsets.astype(float)
    prior, fixed, _ = kriged(scores[0], inputs, y[0], ratio)
    design = np.concatenate([fixed, inputs], 1)
    penalty = np.diag([0.0, 0.0, *(1 / (ratio * prior))])
    solved = np.linalg.solve(design.T @ design + penalty, design.T @ y[0])
    weights, slope = residual.Query(scores[0], inputs, y[0], 0.1).solve(ratio)
    assert np.isclose(slope, solved[1])
    assert np.allclose(weights, solved[1] * scores[0] + solved[2:])


def test_without_a_residual_the_scores_keep_their_direction():
    scores, subsets, _, y = world()
    weights, slope = residual.Query(scores[0], subsets.astype(float), y[0], 0.1).solve(0.0)
    assert np.allclose(weights, slope * scores[0])
    assert np.isclose(slope, np.polyfit(subsets @ scores[0], y[0], 1)[0])


def test_it_finds_the_truth_that_the_scores_miss():
    scores, subsets, truth, y = world(m=400, noise=0.1)
    fit = residual.regress(scores, subsets, y)
    centred = lambda w: w - w.mean(1, keepdims=True)  # noqa: E731
    assert fit.ratio > 0
    assert np.abs(centred(fit.weights) - centred(truth)).max() < 0.1


def test_scores_that_know_all_are_left_alone():
    scores, subsets, _, _ = world(m=64, n=40, queries=6)
    rng = np.random.default_rng(3)
    y = 2 * scores @ subsets.T + 2 * rng.normal(size=(len(scores), len(subsets)))
    fit = residual.regress(scores, subsets, y)
    assert fit.ratio < 0.1 and np.abs(fit.slope - 2).max() < 0.5


def test_it_must_fail_where_no_document_has_an_effect_of_its_own():
    """y is the parity of four documents: no sum of weights predicts it, and the left-out error says so."""
    rng = np.random.default_rng(1)
    subsets = rng.random((200, 12)) < 0.5
    y = (subsets[:, :4].sum(1) % 2 * 2.0 - 1)[None]
    assert residual.regress(rng.normal(size=(1, 12)), subsets, y).errors.min() > 0.95


def test_cross_fitted_predictions_are_of_fits_without_the_fold():
    scores, subsets, _, y = world(m=64)
    found = residual.cross_fitted(scores, subsets, y, folds=4)
    rest = np.arange(64) % 4 != 1
    weights = residual.regress(scores, subsets[rest], y[:, rest]).weights
    centre = (weights @ subsets[rest].T).mean(1, keepdims=True)
    assert np.allclose(found[:, ~rest], weights @ subsets[~rest].T - centre)
    twisted = y.copy()
    twisted[:, 1] += 100
    assert np.allclose(residual.cross_fitted(scores, subsets, twisted, folds=4)[:, ~rest], found[:, ~rest])
    with pytest.raises(ValueError, match="64 models in 65 folds"):
        residual.cross_fitted(scores, subsets, y, folds=65)


def test_a_fold_holds_whole_seeds_where_there_are_enough():
    """Twisting the y of the models of one seed changes no prediction of that seed, and those of others."""
    scores, subsets, _, y = world(m=96)
    seeds = np.arange(96) // 16
    twisted, of_third = y.copy(), seeds == 3
    twisted[:, of_third] += np.random.default_rng(5).normal(size=(3, 16))
    found, other = (residual.cross_fitted(scores, subsets, values, 6, seeds) for values in (y, twisted))
    assert np.allclose(found[:, of_third], other[:, of_third]) and not np.allclose(found, other)
    few = [residual.cross_fitted(scores, subsets, values, 8, seeds) for values in (y, twisted)]
    assert not np.allclose(few[0][:, of_third], few[1][:, of_third]), "six seeds in eight folds: folds across seeds"


def test_seeds_have_a_mean_of_their_own():
    """Shifts of seeds change nothing, and without seeds to share the regression is the plain one."""
    scores, subsets, truth, y = world(m=96)
    seeds = np.arange(96) % 6
    shifted = y + 50.0 * seeds
    one, two = (residual.regress(scores, subsets, values, seeds=seeds) for values in (y, shifted))
    assert np.allclose(one.weights, two.weights) and one.ratio == two.ratio
    design = np.concatenate([np.eye(6)[seeds], (subsets @ scores[0])[:, None], subsets], 1)
    query = residual.Query(scores[0], subsets.astype(float), y[0], 0.1, seeds)
    penalty = np.diag([*np.zeros(7), *(1 / (2.0 * query.prior))])
    solved = np.linalg.solve(design.T @ design + penalty, design.T @ y[0])
    assert np.allclose(query.solve(2.0)[0], solved[6] * scores[0] + solved[7:])
    plain = residual.regress(scores, subsets, y)
    assert np.allclose(plain.weights, residual.regress(scores, subsets, y, seeds=np.zeros(96)).weights)
    with pytest.raises(ValueError, match="5 seeds of 96 models"):
        residual.regress(scores, subsets, y, seeds=[1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="49 seeds for 96 models: each has a mean of its own"):
        residual.regress(scores, subsets, y, seeds=np.minimum(np.arange(96), 48))
    with pytest.raises(ValueError, match="96 seeds for 96 models"):
        residual.datamodel(subsets, y, np.arange(96))


def test_what_cannot_be_regressed_is_refused():
    scores, subsets, _, y = world()
    with pytest.raises(ValueError, match="a residual of 31 models; at least 32 are needed"):
        residual.regress(scores, subsets[:31], y[:, :31])
    with pytest.raises(ValueError, match=r"scores \(3, 16\), subsets \(48, 16\), y \(2, 48\)"):
        residual.regress(scores, subsets, y[:2])
    with pytest.raises(ValueError, match="nothing to regress"):
        residual.regress(scores, subsets, np.ones_like(y))
