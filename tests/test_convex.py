"""Exact refits and their approximations against closed forms, another optimiser, loops and finite differences."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from tda.studies import convex
from tda.studies.convex import LOGISTIC, SQUARED, laws, removal, tables
from tda.studies.convex.sets import CHOICES

D = 5
KS = (1, 3, D, 12)  # fewer than, as many as and more than the parameters


def random_sets(n, k, sets, rng):
    return np.stack([rng.permutation(n)[:k] for _ in range(sets)])


def data(n=120, d=D, seed=0):
    rng = np.random.default_rng(seed)
    X, y = laws.gaussian(n, d, 1.0, rng)
    return X * np.linspace(0.5, 2, d) + 0.3, y, rng


def fitted(loss, ridge=0.7, n=120):
    X, y, rng = data(n)
    return convex.fit(X, y if loss is LOGISTIC else X[:, 0] - 2 * y + rng.standard_normal(n), loss, ridge), rng


def closed(X, y, ridge):
    return np.linalg.solve(X.T @ X + ridge * np.eye(X.shape[1]), X.T @ y)


def by_hand(fit, T):
    """Influence, rescaled influence, Newton step and next order for one set, with loops and inverses."""
    problem, d = fit.problem, len(fit.theta)
    g = [fit.problem.loss.first(x @ fit.theta, y) * x for x, y in zip(problem.X, problem.y, strict=True)]
    h = [problem.loss.second(x @ fit.theta, y) * np.outer(x, x) for x, y in zip(problem.X, problem.y, strict=True)]
    H = sum(h) + problem.ridge * np.eye(d)
    without = np.linalg.inv(H - sum(h[i] for i in T))
    step = without @ sum(g[i] for i in T)
    pull = np.zeros(d)
    for i in set(range(len(g))) - set(T):
        pull += problem.loss.third(problem.X[i] @ fit.theta, problem.y[i]) * (problem.X[i] @ step) ** 2 * problem.X[i]
    return {
        "influence": np.linalg.inv(H) @ sum(g[i] for i in T),
        "rescaled influence": sum(np.linalg.inv(H - h[i]) @ g[i] for i in T),
        "Newton step": step,
        "next order": step - 0.5 * without @ pull,
    }


@pytest.mark.parametrize("loss", [LOGISTIC, SQUARED], ids=lambda loss: loss.name)
def test_derivatives_of_the_losses(loss):
    z, y, e = np.linspace(-4, 4, 33), np.tile([0.0, 1.0, 1.0], 11), 1e-5
    for lower, upper in [("value", "first"), ("first", "second"), ("second", "third")]:
        f = getattr(loss, lower)
        np.testing.assert_allclose(getattr(loss, upper)(z, y), (f(z + e, y) - f(z - e, y)) / (2 * e), atol=1e-9)
    assert np.isfinite(loss.value(np.array([-800.0, 800.0]), np.ones(2))).all()


def test_the_fit_of_the_squared_loss_is_ridge_regression():
    fit, _ = fitted(SQUARED)
    np.testing.assert_allclose(fit.theta, closed(fit.problem.X, fit.problem.y, 0.7), rtol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.7, 30.0])
def test_the_logistic_fit_against_scikit_learn(ridge):
    X, y, rng = data()
    fit, T = convex.fit(X, y, ridge=ridge), random_sets(120, 20, 3, rng)
    exact = fit.theta + convex.refit(fit, T)
    kept = [np.arange(120), *(np.delete(np.arange(120), t) for t in T)]
    for found, rows in zip([fit.theta, *exact], kept, strict=True):
        other = LogisticRegression(C=1 / ridge if ridge else np.inf, fit_intercept=False, tol=1e-12, max_iter=10_000)
        np.testing.assert_allclose(found, other.fit(X[rows], y[rows]).coef_[0], atol=1e-5)


@pytest.mark.parametrize("k", KS)
def test_removal_from_ridge_regression_in_closed_form(k):
    fit, rng = fitted(SQUARED)
    T = random_sets(120, k, 7, rng)
    kept = [np.delete(np.arange(120), t) for t in T]
    exact = np.stack([closed(fit.problem.X[r], fit.problem.y[r], 0.7) for r in kept]) - fit.theta
    np.testing.assert_allclose(convex.refit(fit, T), exact, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(convex.newton_step(fit, T), exact, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(convex.next_order(fit, T), exact, rtol=1e-9, atol=1e-14)
    assert np.abs(convex.influence(fit, T) - exact).max() > 1e-4


@pytest.mark.parametrize("loss", [LOGISTIC, SQUARED], ids=lambda loss: loss.name)
def test_one_example_and_its_leverage(loss):
    """For k = 1 the Newton step is influence / (1 - h), and so is rescaled influence; leverages sum to the trace."""
    fit, _ = fitted(loss)
    T = np.arange(120)[:, None]
    expected = convex.influence(fit, T) / (1 - fit.leverages)[:, None]
    np.testing.assert_allclose(convex.newton_step(fit, T), expected, rtol=1e-10)
    np.testing.assert_allclose(convex.rescaled_influence(fit, T), expected, rtol=1e-10)
    trace = np.trace(np.linalg.inv(fit.hessian) @ (fit.hessian - 0.7 * np.eye(D)))
    assert fit.leverages.sum() == pytest.approx(trace, rel=1e-10) and (fit.leverages < 1).all()


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("loss", [LOGISTIC, SQUARED], ids=lambda loss: loss.name)
def test_batches_equal_loops(loss, k, monkeypatch):
    fit, rng = fitted(loss)
    T = random_sets(120, k, 5, rng)
    functions = convex.METHODS | {"next order": convex.next_order, "refit": convex.refit}
    whole = {name: function(fit, T) for name, function in functions.items()}
    for s, t in enumerate(T):
        for name, change in by_hand(fit, t).items():
            np.testing.assert_allclose(whole[name][s], change, rtol=1e-9, atol=1e-14, err_msg=name)
    monkeypatch.setattr(removal, "CHUNK", 2 * 120)  # two sets at a time, the last one alone
    for name, function in functions.items():
        np.testing.assert_allclose(function(fit, T), whole[name], rtol=1e-9, atol=1e-14, err_msg=name)


def test_derivatives_of_the_objective_without_a_set():
    fit, rng = fitted(LOGISTIC)
    problem, T, theta = fit.problem, random_sets(120, 9, 3, rng), rng.standard_normal((3, D))
    for s, t in enumerate(T):
        X, y = np.delete(problem.X, t, 0), np.delete(problem.y, t)
        p = 1 / (1 + np.exp(-X @ theta[s]))
        np.testing.assert_allclose(problem.gradients(theta, T)[s], X.T @ (p - y) + 0.7 * theta[s], rtol=1e-10)
        expected = (X.T * (p * (1 - p))) @ X + 0.7 * np.eye(D)
        np.testing.assert_allclose(problem.hessians(theta, T)[s], expected, rtol=1e-10)


def weighted(fit, T, weight):
    """Minimiser with the examples of T counted ``weight`` times, by another optimiser."""
    problem, w = fit.problem, np.ones(len(fit.problem.y))
    w[T] = weight

    def objective(theta):
        z = problem.X @ theta
        slopes = w * problem.loss.first(z, problem.y)
        value = w @ problem.loss.value(z, problem.y) + problem.ridge / 2 * theta @ theta
        return value, slopes @ problem.X + problem.ridge * theta

    def hessian(theta):
        return (
            problem.X.T * (w * problem.loss.second(problem.X @ theta, problem.y))
        ) @ problem.X + problem.ridge * np.eye(D)

    return minimize(objective, fit.theta, jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-11}).x


def test_influence_is_the_derivative_in_the_weight_of_the_examples():
    fit, rng = fitted(LOGISTIC)
    for t in random_sets(120, 6, 3, rng):
        slope = (weighted(fit, t, 1 - 1e-4) - weighted(fit, t, 1 + 1e-4)) / 2e-4
        np.testing.assert_allclose(convex.influence(fit, t[None])[0], slope, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(convex.refit(fit, t[None])[0], weighted(fit, t, 0.0) - fit.theta, atol=1e-9)


def test_refits_reach_the_tolerance():
    """The gradient over the kept examples alone, computed from them, is 1e-12 of its size at zero."""
    for fit, rng in (fitted(LOGISTIC), fitted(SQUARED)):
        problem, T = fit.problem, random_sets(120, 30, 6, rng)
        at_zero = [problem.loss.first(0.0, y) * x for x, y in zip(problem.X, problem.y, strict=True)]
        size = np.sqrt(sum(g * g for g in at_zero))
        for t, change in zip(T, convex.refit(fit, T), strict=True):
            X, y = np.delete(problem.X, t, 0), np.delete(problem.y, t)
            theta = fit.theta + change
            gradient = problem.loss.first(X @ theta, y) @ X + 0.7 * theta
            assert np.sqrt(np.mean((gradient / size) ** 2)) <= 1.01e-12


def test_a_start_far_away_still_arrives():
    """From weights so large that every example is saturated a full Newton step overshoots; the halved one does not."""
    fit, _ = fitted(LOGISTIC, ridge=1e-3)
    nobody, far = np.empty((1, 0), int), np.full((1, D), 12.0)
    found = fit.problem.minimise(nobody, far, fit.problem.hessians(far, nobody))[0]
    np.testing.assert_allclose(found, fit.theta, atol=1e-10)


def test_the_order_of_accuracy():
    """On average: influence < rescaled influence < Newton step < next order, each clearly; influence is too short."""
    X, y = laws.gaussian(2000, 20, 1.0, np.random.default_rng(3))
    fit = convex.fit(X, y)
    T = random_sets(2000, 20, 40, np.random.default_rng(4))
    found, exact = convex.errors(fit, T), convex.refit(fit, T)
    means = [found[name].mean() for name in convex.METHODS]
    means.append(np.linalg.norm(convex.next_order(fit, T) - exact, axis=1).mean())
    assert all(a > 1.3 * b for a, b in zip(means, means[1:], strict=False)), means
    step = convex.newton_step(fit, T)
    np.testing.assert_allclose(found["change"], np.linalg.norm(exact, axis=1))
    np.testing.assert_allclose(found["gap"], np.linalg.norm(step - convex.influence(fit, T), axis=1))
    np.testing.assert_allclose(found["Newton step"], np.linalg.norm(step - exact, axis=1))
    length = np.linalg.norm(convex.influence(fit, T), axis=1).mean()
    assert length < np.linalg.norm(step, axis=1).mean()


@pytest.mark.parametrize("method", [*convex.METHODS.values(), convex.refit])
def test_sign(method):
    """Without the examples of T the model predicts their labels less well."""
    fit, rng = fitted(LOGISTIC)
    T = random_sets(120, 4, 20, rng)
    moved = np.einsum("skd,sd->sk", fit.problem.X[T], method(fit, T))
    assert ((fit.slopes[T] * moved).sum(1) > 0).all()


TWO = np.array([[0, 1]])


@pytest.mark.parametrize(
    ("removed", "text"),
    [
        (np.array([[0, 0]]), "names an example twice"),
        (np.array([[0, 120]]), "0 to 120; indices are 0 to 119"),
        (np.array([[-1, 3]]), "-1 to 3"),
        (np.array([0, 1]), r"give indices \[S, k\]"),
        (np.array([[0.0, 1.0]]), "float64"),
        (np.ones((2, 120), bool), "bool"),
        (np.empty((2, 0), int), "k >= 1"),
        (np.arange(120)[None], "leave too few"),
    ],
)
def test_bad_removed_sets(removed, text):
    fit, _ = fitted(LOGISTIC)
    for function in (*convex.METHODS.values(), convex.next_order, convex.refit, convex.errors):
        with pytest.raises(ValueError, match=text):
            function(fit, removed)


def test_bad_problems():
    X, y, _ = data()
    bad = X.copy()
    bad[3, 1] = np.nan
    for arguments, text in [
        ((X, 2 * y - 1), "takes 0 and 1"),
        ((X, y[:-1]), "give X"),
        ((X[:0], y[:0]), "n, d >= 1"),
        ((bad, y), "NaN"),
        ((X, y, LOGISTIC, -1.0), "ridge -1"),
        ((X, y, LOGISTIC, np.inf), "ridge inf"),
        ((np.c_[X, X[:, 0]], y), "full column rank"),
        ((np.c_[X, X[:, 0]], X[:, 0], SQUARED), "full column rank"),
    ]:
        with pytest.raises(ValueError, match=text):
            convex.fit(*arguments)
    assert np.isfinite(convex.fit(np.c_[X, X[:, 0]], y, ridge=1.0).theta).all()


def test_separable_data_are_named_and_a_ridge_helps():
    X, _, rng = data()
    complete = (X[:, 1] > 0.1).astype(float)
    quasi_X = np.c_[X[:, :2], np.repeat([0.0, 1.0], 60)]  # a column that only positives have
    quasi = np.where(np.arange(120) < 60, rng.random(120) < 0.5, 1).astype(float)
    for design, labels in ((X, complete), (quasi_X, quasi)):
        assert convex.separable(design, labels)
        with pytest.raises(ValueError, match=r"are separable: logistic regression on n = 120.*ridge > 0"):
            convex.fit(design, labels)
        assert np.isfinite(convex.fit(design, labels, ridge=1.0).theta).all()
    assert not convex.separable(X, data()[1])
    y = data()[1]
    X[7] *= 1000 * np.sign((2 * y[7] - 1) * (X[7] @ convex.fit(X, y).theta))  # a large margin alone is no reason
    fit = convex.fit(X, y)
    assert (np.abs(fit.predictions) > 20).any() and not convex.separable(X, y)


def test_a_removal_that_leaves_separable_data_is_named():
    X, _, rng = data()
    y = (X[:, 1] > 0.1).astype(float)
    wrong = np.array([5, 17, 60])
    y[wrong] = 1 - y[wrong]
    fit = convex.fit(X, y)
    with pytest.raises(ValueError, match="data without removed set 1 are separable"):
        convex.refit(fit, np.stack([np.array([0, 1, 2]), wrong]))
    assert np.isfinite(convex.refit(fit, np.array([[0, 1, 2]]))).all()
    with pytest.raises(ValueError, match="leave too few"):
        convex.newton_step(fit, np.arange(116)[None])


def test_a_removal_that_takes_a_direction_along_is_named():
    """A column that only three examples have: all three removed, whatever the size of the set."""
    X, y, _ = data()
    X = np.c_[X, np.zeros(120)]
    X[[3, 4, 5], -1], y[[3, 4, 5]] = (1.0, 1.5, 0.5), (1, 0, 1)
    for labels, loss in ((y, LOGISTIC), (X[:, 0], SQUARED)):
        fit = convex.fit(X, labels, loss)
        for T in (np.array([[3, 4, 5]]), np.arange(20)[None]):  # Woodbury and direct
            for method in (convex.newton_step, convex.refit):
                with pytest.raises(ValueError, match="without a removed set is singular.*ridge > 0"):
                    method(fit, T)
            assert np.isfinite(convex.newton_step(fit, T[:, 1:] if len(T[0]) == 3 else T[:, 5:])).all()
        X_one = X.copy()
        X_one[[3, 4], -1] = 0.0
        with pytest.raises(ValueError, match="leverage 1"):
            convex.rescaled_influence(convex.fit(X_one, X[:, 0], SQUARED), np.array([[5, 6]]))


def test_the_unit_of_a_column_does_not_matter():
    """Columns of very different size are no rank defect, and all methods give the same change in each unit."""
    X, y, rng = data()
    unit, T = np.array([1e-9, 1.0, 1e4, 1e-3, 1e7]), random_sets(120, 9, 3, rng)
    plain, scaled = convex.fit(X, y), convex.fit(X * unit, y)
    for method in (*convex.METHODS.values(), convex.next_order, convex.refit):
        np.testing.assert_allclose(method(scaled, T) * unit, method(plain, T), rtol=1e-5, atol=1e-8)


# --- laws -----------------------------------------------------------------------------------------


def test_rates_and_excluded_sizes():
    assert laws.newton_rate(100, 4, 3) == pytest.approx(12 / 10_000)
    assert laws.gap_rate(100, 4, 9) == pytest.approx(13 * 6 / 10_000)
    assert laws.excluded(200, 20) == "" and "n = 199 < 10 d = 200" in laws.excluded(199, 20)
    with pytest.raises(ValueError, match="n = 199 < 10 d"):
        laws.gaussian(199, 20, 1.0, np.random.default_rng(0))


def test_gaussian_designs_have_the_stated_signal():
    rng = np.random.default_rng(0)
    X, y = laws.gaussian(40_000, 4, 2.0, rng)
    assert np.linalg.norm(convex.fit(X, y).theta) == pytest.approx(2.0, abs=0.1)
    np.testing.assert_allclose(X.T @ X / 40_000, np.eye(4), atol=0.03)


def test_slope_and_minimum_of_exact_curves():
    k = np.array([1, 4, 16, 64])
    values = np.stack([3 * k**1.5, 0.2 * k**-2.0], axis=1)
    np.testing.assert_allclose(laws.slope(k, values), [1.5, -2.0])
    assert laws.slope(k, values[:, 0]) == pytest.approx(1.5)
    for p, q in ((1.0, 1.0), (1.0, 2.0), (3.0, 1.0)):
        ratio = k / 8.0
        curve = p * np.sqrt(ratio) + q / np.sqrt(ratio)
        np.testing.assert_allclose(laws.flattest(ratio, np.stack([curve, 5 * curve], 1)), np.log2(q / p), atol=1e-9)


def test_the_bootstrap_covers():
    """Slopes of noisy power laws, ten replicates, 300 experiments: about 95 % of the intervals hold the true slope."""
    rng, sizes = np.random.default_rng(0), np.array([1.0, 2.0, 4.0])
    hits, widths = [], []
    for number in range(300):
        values = sizes[:, None] ** -2.0 * rng.lognormal(-0.02, 0.2, (3, 10))
        found = laws.bootstrap(values, lambda means: laws.slope(sizes, means), 0.95, number)
        hits.append(found.low <= -2 <= found.high)
        widths.append(found.high - found.low)
        assert found.df == 9
    assert 0.92 <= np.mean(hits) <= 0.985, np.mean(hits)
    same = np.repeat(sizes[:, None] ** -2.0, 4, axis=1)
    assert tuple(laws.bootstrap(same, lambda m: laws.slope(sizes, m), 0.95)) == pytest.approx((-2, -2, -2))
    with pytest.raises(ValueError, match="2 or more"):
        laws.bootstrap(same[:, :1], lambda m: laws.slope(sizes, m), 0.95)
    with pytest.raises(ValueError, match="not finite"):
        laws.bootstrap(same, lambda m: m[0] + np.nan, 0.95)


@pytest.mark.parametrize(("d", "k"), [(8, 8), (20, 2), (3, 100)])
def test_the_limit_of_large_n(d, k):
    """Measured at n = 20,000, averaged over 3 designs of 100 sets, against the leading terms."""
    rng = np.random.default_rng(1)
    newton, gap = laws.limit(d, k, 1.0, 3000, rng)
    found = []
    for _ in range(3):
        X, y = laws.gaussian(20_000, d, 1.0, rng)
        measured = convex.errors(convex.fit(X, y), random_sets(20_000, k, 100, rng))
        found.append([measured["Newton step"].mean(), measured["gap"].mean()])
    np.testing.assert_allclose(20_000**2 * np.mean(found, 0), [newton, gap], rtol=0.15)


def test_the_limit_without_a_signal_has_no_third_order():
    newton, gap = laws.limit(5, 5, 0.0, 100, np.random.default_rng(0))
    assert newton == pytest.approx(0, abs=1e-12) and gap > 0


# --- which examples, which tables -----------------------------------------------------------------


@pytest.mark.parametrize("name", CHOICES)
def test_removed_sets_are_sets(name):
    fit, rng = fitted(LOGISTIC)
    T = CHOICES[name](fit, 7, 300, rng)
    assert T.shape == (300, 7) and all(len(set(t)) == 7 for t in T) and len({tuple(sorted(t)) for t in T}) > 50


def test_what_the_chosen_sets_have_in_common():
    fit, rng = fitted(LOGISTIC)
    X, y, n = fit.problem.X, fit.problem.y, 120
    assert np.bincount(CHOICES["random"](fit, 30, 400, rng).ravel(), minlength=n).min() > 70  # 100 expected
    for t in CHOICES["cluster"](fit, 9, 20, rng):
        same = np.flatnonzero(y == y[t[0]])
        far = np.linalg.norm(X[same] - X[t[0]], axis=1)
        assert set(t) == set(same[far.argsort()[:9]])
    assert CHOICES["cluster"](fit, 100, 5, rng).shape == (5, 100) and y.sum() < 100 and (1 - y).sum() < 100
    losses = LOGISTIC.value(X @ fit.theta, y)
    chosen = CHOICES["high loss"](fit, 10, 50, rng)
    assert losses[chosen].mean() > 1.7 * losses.mean() and losses[chosen].max() == losses.max()
    most = np.sort(losses)[-70:].min()  # the ten largest of sixty cannot be lower than this
    assert losses[chosen].min() >= most
    T, R = CHOICES["one direction"](fit, 20, 50, rng), CHOICES["random"](fit, 20, 50, rng)
    pull, usual = (np.linalg.norm((fit.slopes[t][..., None] * X[t]).sum(1), axis=1) for t in (T, R))
    assert pull.min() > usual.mean() and pull.mean() > 2 * usual.mean()


@pytest.mark.parametrize("name", tables.NAMES)
def test_tables(name):
    table = tables.load(name, 0.7, 0)
    n = len(table.y)
    assert len(table.held_out_labels) == pytest.approx(0.3 / 0.7 * n, abs=2) and set(np.unique(table.y)) == {0.0, 1.0}
    assert 0.25 < table.y.mean() < 0.75 and (table.X[:, -1] == 1).all() and (table.held_out[:, -1] == 1).all()
    np.testing.assert_allclose(table.X[:, :-1].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(table.X[:, :-1].std(0), 1)
    fit = convex.fit(table.X, table.y, ridge=1.0)
    assert ((table.held_out @ fit.theta > 0) == table.held_out_labels).mean() > (0.65 if name == "diabetes" else 0.9)
    again, other = tables.load(name, 0.7, 0), tables.load(name, 0.7, 1)
    assert (again.X == table.X).all() and not (other.raw == table.raw).all()


def test_bad_tables():
    for arguments, text in [(("wines", 0.5, 0), "'wines'; there are breast cancer"), (("wine", 1.0, 0), "share 1.0")]:
        with pytest.raises(ValueError, match=text):
            tables.load(*arguments)


@pytest.mark.parametrize("count", [3, 5])
def test_the_bootstrap_of_a_mean_has_its_standard_error(count):
    """Without the correction for few replicates it would be sqrt((R - 1) / R) of that: 0.82 for three."""
    values = np.random.default_rng(count).normal(size=count)
    found = laws.bootstrap(values, lambda means: means, 0.95)
    assert found.value == pytest.approx(values.mean()) and found.df == count - 1
    assert found.se == pytest.approx(values.std(ddof=1) / np.sqrt(count), rel=0.06)
