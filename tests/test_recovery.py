"""Designs by counting; recovery against planted weights, the conditions of optimality and the slow obvious solution."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from tda.steering import recovery
from tda.steering.recovery import left_regular, penalties, recover


def planted(n=120, K=90, k=4, queries=5, noise=0.0, seed=0, d=8):
    """(measure, y, weights): k documents a query matter, by 1 to 2 either way; intercepts of about 10."""
    random = np.random.default_rng(seed)
    measure, weights = left_regular(n, K, d, seed), np.zeros((queries, n))
    for line in weights:
        at = random.choice(n, k, replace=False)
        line[at] = random.choice([-1, 1], k) * random.uniform(1, 2, k)
    y = measure @ weights.T + random.normal(10, 3, queries)
    return measure, y + noise * y.std(0) * random.normal(size=y.shape), weights


def standard(measure, y):
    return measure - measure.mean(0), y - y.mean(0)


# --- designs


@pytest.mark.parametrize("n, K, d", [(100, 40, 5), (7, 30, 5), (60, 6, 5), (600, 1000, 10), (30, 30, 1), (13, 7, 3)])
def test_left_regular_is_regular_balanced_and_covers(n, K, d):
    measure = left_regular(n, K, d, seed=3)
    assert measure.shape == (K, n) and measure.dtype == bool
    assert (measure.sum(0) == d).all()
    sizes = measure.sum(1)
    assert sizes.min() >= 1 and np.ptp(sizes) <= 1


def test_left_regular_mixes_documents():
    """Pairs meet as often as chance has it: no document is tied to its neighbours in the corpus, none kept apart."""
    together = sum(m.T.astype(int) @ m for m in (left_regular(12, 10, 3, seed=s) for s in range(600)))
    pairs = together[~np.eye(12, dtype=bool)] / 600
    assert abs(pairs.mean() - (6 * 4 * 3 + 4 * 3 * 2) / (12 * 11)) < 1e-9, "six subsets of 4, four of 3"
    assert np.ptp(pairs) < 0.2, "each within sampling error of the others"
    assert not np.array_equal(left_regular(50, 20, 4, 0), left_regular(50, 20, 4, 1))
    np.testing.assert_array_equal(left_regular(50, 20, 4, 1), left_regular(50, 20, 4, 1))


def test_left_regular_graphs_expand():
    """Any few documents reach nearly d subsets each (what the theory asks of the design)."""
    measure, random = left_regular(400, 200, 10, 0), np.random.default_rng(0)
    reached = [measure[:, random.choice(400, 5, replace=False)].any(1).sum() for _ in range(200)]
    assert min(reached) > 0.75 * 5 * 10 and np.mean(reached) > 0.9 * 5 * 10


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: left_regular(10, 5, 5), r"d=5, K=5, n=10; .* d a whole number from 1 to K - 1"),
        (lambda: left_regular(10, 5, 0), "d=0, K=5"),
        (lambda: left_regular(10, 5, 2.0), r"d=2\.0"),
        (
            lambda: left_regular(4, 9, 2),
            "some of 9 subsets empty; .* is needed. Raise d to 3, or lower K to 8",
        ),
        (lambda: left_regular(0, 9, 2), "K=9, n=0"),
    ],
)
def test_impossible_designs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- recovery


def test_noiseless_sparse_weights_are_recovered_from_fewer_subsets_than_documents(monkeypatch):
    measure, _, weights = planted()
    y = measure @ weights.T - 7.0
    found = recover(measure, y)
    np.testing.assert_allclose(found, weights, atol=0.02)
    for line, wanted in zip(found, weights, strict=True):
        assert set(np.argsort(-np.abs(line))[:4]) == set(np.flatnonzero(wanted))
    monkeypatch.setattr(recovery, "TOLERANCE", 1e-9)
    np.testing.assert_allclose(recover(measure, y, penalty=1e-5), weights, atol=2e-4)


def test_too_few_subsets_do_not_recover():
    """The test above would be empty if any design recovered anything."""
    measure, y, weights = planted(n=120, K=24, d=4, k=12)
    assert np.abs(recover(measure, y, penalty=1e-4) - weights).max() > 0.5


@pytest.mark.parametrize("penalty", [0.5, 0.1, 0.01])
def test_lasso_meets_the_conditions_of_optimality(penalty):
    """The gradient of the squared error is lambda against the sign of w where w is not 0, and smaller elsewhere."""
    measure, y, _ = planted(noise=0.5)
    X, Y = standard(measure, y)
    found = recover(measure, y, penalty=penalty)
    for q, w in enumerate(found):
        top = np.abs(X.T @ Y[:, q]).max()
        slope = X.T @ (Y[:, q] - X @ w) / top
        assert np.abs(slope).max() <= penalty + 2e-3
        np.testing.assert_allclose(slope[w != 0], penalty * np.sign(w[w != 0]), atol=2e-3)
        assert (w != 0).any()
    np.testing.assert_array_equal(recover(measure, y, penalty=1.0), 0)


def test_lasso_is_the_library_s_with_an_intercept():
    measure, y, _ = planted(noise=0.5)
    X, Y = standard(measure, y)
    each = np.array([0.3, 0.2, 0.1, 0.05, 0.02])
    for q, w in enumerate(recover(measure, y, penalty=each)):
        alpha = each[q] * np.abs(X.T @ Y[:, q]).max() / len(y)
        wanted = Lasso(alpha=alpha, tol=1e-10, max_iter=100_000).fit(measure.astype(float), y[:, q]).coef_
        np.testing.assert_allclose(w, wanted, atol=5e-3)


def test_ridge_is_the_normal_equations_with_a_free_intercept():
    measure, y, _ = planted(n=30, K=50, noise=0.5, d=10)
    X, _ = standard(measure, y)
    eigenvalues = np.linalg.eigvalsh(X.T @ X)
    for penalty in (3.0, 0.1):
        delta = penalty * eigenvalues[eigenvalues > 1e-9].mean()
        A = np.hstack([np.ones((50, 1)), measure.astype(float)])
        free = np.diag([0.0] + [delta] * 30)
        wanted = np.linalg.solve(A.T @ A + free, A.T @ y)[1:].T
        np.testing.assert_allclose(recover(measure, y, "ridge", penalty=penalty), wanted, atol=1e-9)


def test_correlation_is_the_mean_with_less_the_mean_without():
    measure, y, _ = planted(noise=0.5)
    for design in (measure, np.random.default_rng(1).random((90, 120)) < 0.2):
        found = recover(design, y, "correlation")
        for q, i in ((0, 0), (3, 17), (4, 119)):
            inside = design[:, i]
            np.testing.assert_allclose(found[q, i], y[inside, q].mean() - y[~inside, q].mean())
    X, Y = standard(measure, y)
    raw = (X.T @ Y).T
    found = recover(measure, y, "correlation")
    np.testing.assert_allclose(found / found[0, 0], raw / raw[0, 0], err_msg="regular: M^T y up to one factor")


def test_a_document_in_no_subset_or_in_all_weighs_nothing():
    measure, y, _ = planted(noise=0.5)
    measure = measure.copy()
    measure[:, 5], measure[:, 6] = False, True
    for method in recovery.METHODS:
        found = recover(measure, y, method)
        np.testing.assert_array_equal(np.abs(found[:, 5:7]) < 1e-12, True)
        assert np.isfinite(found).all() and (found[:, 7:] != 0).any()


@pytest.mark.parametrize("method", recovery.METHODS)
def test_signs_units_and_intercept(method):
    """A planted helper is positive and a harmer negative; a constant changes nothing; twice the effect, twice the
    weight; every query on its own.
    """
    measure, y, weights = planted(noise=0.2)
    found = recover(measure, y, method)
    helps, harms = weights > 0, weights < 0
    assert found[helps].min() > 0 > found[harms].max()
    np.testing.assert_allclose(recover(measure, y + [1e3, -1e3, 5, 0, 1], method), found, atol=1e-6)
    np.testing.assert_allclose(recover(measure, -2 * y, method), -2 * found, atol=1e-9)
    np.testing.assert_allclose(recover(measure, y[:, [2]], method)[0], found[2], atol=1e-12)
    order = np.random.default_rng(0).permutation(120)
    np.testing.assert_allclose(recover(measure[:, order], y, method), found[:, order], atol=1e-3)


@pytest.mark.parametrize("method, noise", [("lasso", 0.3), ("lasso", 1.0), ("ridge", 0.3), ("ridge", 1.0)])
def test_penalty_is_the_best_on_measurements_held_out(method, noise, monkeypatch):
    """Against a loop that fits every penalty of the path on the kept subsets and predicts the others."""
    measure, y, _ = planted(noise=noise)
    monkeypatch.setattr(recovery, "PATIENCE", 25)
    monkeypatch.setattr(recovery, "HELD_OUT", 0.3)
    monkeypatch.setattr(recovery, "LASSO_PATH", np.geomspace(1, 0.03, 12))
    order = np.random.default_rng(7).permutation(len(y))
    fit, out = order[:63], order[63:]
    path = recovery.LASSO_PATH if method == "lasso" else recovery.RIDGE_PATH
    errors = []
    for penalty in path:
        w = recover(measure[fit], y[fit], method, penalty=penalty)
        intercept = (y[fit] - measure[fit] @ w.T).mean(0)
        errors.append(((y[out] - measure[out] @ w.T - intercept) ** 2).mean(0))
    found = penalties(measure, y, method, seed=7)
    at = np.array([np.flatnonzero(path == p)[0] for p in found])
    chosen, best = np.array(errors)[at, range(5)], np.min(errors, axis=0)
    np.testing.assert_allclose(chosen, best, rtol=2e-2)
    assert np.abs(at - np.argmin(errors, axis=0)).max() <= 1
    chosen_inside = recover(measure, y, method, seed=7)
    np.testing.assert_allclose(chosen_inside, recover(measure, y, method, penalty=found), atol=1e-12)


def test_leaving_the_path_early_chooses_as_the_whole_path(monkeypatch):
    measure, y, _ = planted(n=200, K=160, queries=30, noise=0.7)
    monkeypatch.setattr(recovery, "LASSO_PATH", np.geomspace(1, 0.03, 12))
    early = penalties(measure, y)
    monkeypatch.setattr(recovery, "PATIENCE", 25)
    assert np.mean(early == penalties(measure, y)) >= 0.9


def test_noise_is_worth_a_larger_penalty_and_pure_noise_the_largest():
    clean, noisy = (np.log(penalties(*planted(queries=20, noise=noise)[:2])).mean() for noise in (0.01, 1.0))
    assert noisy > clean + 1
    measure = planted()[0]
    y = np.random.default_rng(0).normal(size=(90, 40))
    assert np.median(penalties(measure, y)) > 0.4
    assert np.median((recover(measure, y) != 0).mean(1)) < 0.1


def test_sparse_beats_ridge_beats_chance_where_the_truth_is_sparse():
    measure, y, weights = planted(noise=0.3, queries=20)
    error = {m: ((recover(measure, y, m) - weights) ** 2).sum() / (weights**2).sum() for m in recovery.METHODS}
    assert error["lasso"] < 0.25 < error["ridge"] < 1


# --- refusals


def test_bad_measurements_are_refused():
    measure, y, _ = planted()
    empty, flat, bad = measure.copy(), y.copy(), y.copy()
    empty[[3, 8]], flat[:, 2], bad[4, 1] = False, 1.5, np.inf
    cases = [
        ((measure, y, "omp"), r"method='omp'; one of \('lasso', 'ridge', 'correlation'\)"),
        ((measure.astype(int), y), r"measure is int64 \(90, 120\)"),
        ((measure, y.T), r"y \(5, 90\); a bool matrix \[K, n\]"),
        ((measure, y[:, 0]), r"y \(90,\)"),
        ((measure, y[:, :0]), r"y \(90, 0\)"),
        ((empty, y), r"subsets \[3, 8\] are empty"),
        ((measure, flat), r"queries \[2\] are the same on every subset"),
        ((measure, bad), r"queries \[1\] are not finite"),
        ((measure[:2], y[:2, :2], "lasso"), "2 measurements are too few to hold some out"),
        ((measure, y, "lasso", 0, 0.0), r"penalty=0\.0; it must be finite and above 0"),
        ((measure, y, "ridge", 0, np.nan), "penalty=nan"),
        ((measure, y, "correlation", 0, 0.1), "correlation has no penalty; leave it out"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            recover(*arguments)
    with pytest.raises(ValueError, match="correlation has no penalty; choose"):
        penalties(measure, y, "correlation")
