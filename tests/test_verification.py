"""Verifiable attribution: the estimator against enumeration, the learners against themselves, the provers' fits."""

import itertools

import numpy as np
import pytest

from tda.studies.verification import cheats, experiments
from tda.studies.verification.cube import Attribution, draw, standard, with_partners
from tda.studies.verification.digits import Network, Pixels, Ridge
from tda.studies.verification.experiments import caught, pilot, rate, repeat
from tda.studies.verification.learner import Polynomial
from tda.studies.verification.prover import FITS, fit, registered
from tda.studies.verification.residual import (
    attained,
    bias,
    from_stability,
    largest_share,
    plan,
    residual,
    spread,
    winsorised,
)
from tda.studies.verification.statement import Statement, build

EVERY = np.array(list(itertools.product([False, True], repeat=6)))


def chance(p):
    """Probability of each of the 64 subsets of 6 examples."""
    return np.where(EVERY, p, 1 - p).prod(1)


def moved(p, r):
    """P(x' | x) [64, 64] from the definition: an included one leaves with (1-p)(1-r), an excluded one enters with
    p(1-r).
    """
    table = np.ones((64, 64))
    for i in range(6):
        leaves = np.where(EVERY[:, i], (1 - p) * (1 - r), p * (1 - r))
        flipped = EVERY[:, i][:, None] != EVERY[:, i]
        table *= np.where(flipped, leaves[:, None], 1 - leaves[:, None])
    return table


def small(p=0.5, energy=(0.3, 1.0, 0.4, 0.2, 0.1), **options):
    return Polynomial(6, p, energy, **options)


def values(learner, subsets, seed=0):
    return learner(subsets, np.full(len(subsets), seed)).values


# --- the cube and the estimator


@pytest.mark.parametrize("p", [0.5, 0.2])
@pytest.mark.parametrize("coupled", [True, False])
def test_partners_have_the_law_of_the_definition(p, coupled):
    rng = np.random.default_rng(0)
    bases, *partners = with_partners(rng, draw(rng, 40_000, 5, p), p, 0.3, coupled)
    for r, found in zip((0.0, 0.3, 0.6), partners, strict=True):
        assert abs(found.mean() - p) < 0.005
        assert abs((bases & ~found).sum() / bases.sum() - (1 - p) * (1 - r)) < 0.01
        assert abs((~bases & found).sum() / (~bases).sum() - p * (1 - r)) < 0.01
        z, other = standard(bases, p), standard(found, p)
        assert np.allclose(z.T @ other / len(z), r * np.eye(5), atol=0.03)


def test_coupled_partners_differ_little_and_uncoupled_are_independent():
    rng = np.random.default_rng(0)
    bases = draw(rng, 5000, 6, 0.5)
    *_, near, far = with_partners(rng, bases, 0.5, 0.2)
    assert abs((near != far).mean() - 0.5 * 0.2) < 0.01
    *_, near, far = with_partners(rng, bases, 0.5, 0.2, coupled=False)
    assert abs((near != far).mean() - 0.5 * (1 - 0.2 * 0.4)) < 0.01


@pytest.mark.parametrize("p", [0.5, 0.3, 0.85])
def test_known_weights_are_those_of_enumeration(p):
    learner = small(p, points=2)
    f, z, w = values(learner, EVERY), standard(EVERY, p), chance(p)
    found = np.zeros((7, 2))
    for size in range(7):
        for members in itertools.combinations(range(6), size):
            found[size] += (w * z[:, members].prod(1) @ f) ** 2
    assert np.allclose(found[:5], learner.weights()) and np.allclose(found[5:], 0)
    assert np.abs(f).max() <= 1


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_best_predictor_and_its_error_are_those_of_regression(p):
    learner, w = small(p, points=2), chance(p)
    f, root = values(learner, EVERY), np.sqrt(w)[:, None]
    design = np.column_stack([np.ones(64), EVERY])
    fitted = np.linalg.lstsq(root * design, root * f, rcond=None)[0]
    best = learner.best()
    assert np.allclose(best.scores, fitted[1:].T) and np.allclose(best.predict(EVERY), design @ fitted)
    other = Attribution(best.scores + 0.01 * np.arange(6), best.mean - 0.02, p)
    mse = [w @ np.square(f - a.predict(EVERY)) for a in (other, best)]
    assert np.allclose(mse[1], learner.weights()[2:].sum(0)) and np.allclose(mse[0] - mse[1], other.error(best))


@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("constraint", [True, False])
@pytest.mark.parametrize("energy", [(0.3, 1.0), (0.0, 1.0, 0.5), (0.3, 1.0, 0.4, 0.2, 0.1)])
def test_residual_is_exact_up_to_degree_two_and_off_by_the_formula_above(p, constraint, energy):
    learner, w, rho = small(p, energy), chance(p), 0.3
    f = values(learner, EVERY)
    h = np.stack([(w[:, None] * f * (moved(p, r) @ f)).sum(0) for r in (0, rho, 2 * rho, 1)])
    powers = np.array([0, rho, 2 * rho, 1])[:, None] ** np.arange(len(energy))
    assert np.allclose(h, powers @ learner.weights()), "h(r) = sum_k B_k r^k"
    found, truth = from_stability(h, rho, constraint), learner.weights()[2:].sum(0)
    if len(energy) <= 3:
        assert np.allclose(found.value, truth, atol=1e-12)
        assert np.allclose(found.weights[: len(energy)], learner.weights())
    else:
        assert np.allclose(found.value - truth, bias(learner.weights(), rho)) and (found.value > truth).all()


def test_residual_of_samples_is_unbiased_and_its_variance_is_foreseen():
    learner, rho, n = Polynomial(20, 0.4, (0.0, 0.0, 1.0)), 0.3, 400
    rng, found = np.random.default_rng(0), {}
    for coupled in (True, False):
        rounds = []
        for _ in range(200):
            at = with_partners(rng, draw(rng, n, 20, 0.4), 0.4, rho, coupled)
            f = values(learner, at.reshape(-1, 20)).reshape(4, n, 1)
            rounds.append(residual(f, rho, constraint=False).value[0] / learner.weights()[2, 0])
        found[coupled] = np.array(rounds)
        assert abs(found[coupled].mean() - 1) < 4 * found[coupled].std() / np.sqrt(200)
    ratio = found[True].var() * n / spread(rho, 2)
    assert 0.4 < ratio < 1.6, ratio
    assert found[False].var() > 1.5 * found[True].var()


def test_estimate_by_loops():
    f = np.random.default_rng(0).normal(size=(4, 5, 2))
    found = residual(f, 0.25, constraint=False)
    for q in range(2):
        y = [sum(f[0, i, q] * f[t, i, q] for i in range(5)) / 5 for t in (1, 2, 3)]
        one = sum(f[t, i, q] ** 2 for t in range(4) for i in range(5)) / 20
        slope = (-3 * y[0] + 4 * y[1] - y[2]) / 0.5
        assert np.allclose([found.weights[0, q], found.weights[1, q]], [y[0], slope])
        assert np.isclose(found.value[q], one - y[0] - slope)


def test_winsorised_terms():
    f = np.random.default_rng(0).normal(size=(4, 40, 2))
    assert np.allclose(winsorised(f, 0.25, 0.0), residual(f, 0.25, constraint=False).value)
    lied = f.copy()
    lied[0, :3] = 1e6 * -np.sign(lied[2, :3])
    gaps = [np.abs(winsorised(lied, 0.25, share) - winsorised(f, 0.25, share)) for share in (0.0, 0.2)]
    assert gaps[0].min() > 1e5 and gaps[1].max() < 3
    with pytest.raises(ValueError, match=r"lies in \[0, 0\.25\]"):
        winsorised(f, 0.25, 0.4)


@pytest.mark.parametrize(("p", "rho"), [(0.5, 1 / 3), (0.5, 0.1), (0.3, 1 / 3), (0.7, 0.25), (0.25, 0.4), (0.42, 0.3)])
def test_largest_share_keeps_the_tails_of_an_error_on_one_example(p, rho):
    rng = np.random.default_rng(0)
    z = standard(with_partners(rng, draw(rng, 60_000, 1, p), p, rho), p)
    share = largest_share(rho, p)
    assert abs(winsorised(z, rho, 0.0)[0]) < 0.1 and abs(winsorised(z, rho, share)[0]) < 0.3
    beyond = 2.2 * p * (1 - p) * rho  # both levels of both tails
    assert winsorised(z, rho, beyond)[0] > 0.3
    terms = np.square(z).mean(0) - z[0] * np.tensordot([1 - 1.5 / rho, 2 / rho, -0.5 / rho], z[1:], 1)
    outer = p * (1 - p) * rho * (2 if p == 0.5 else 1)
    for extreme in (terms.min(), terms.max()):
        assert np.isclose(terms, extreme).mean() == pytest.approx(outer, rel=0.05)
    hides = winsorised(z, rho, 1.5 * p * (1 - p) * rho)[0] - winsorised(z, rho, 0.0)[0]
    assert hides == pytest.approx(abs(1 - 2 * p) * (1 - rho / 2), abs=0.05)


def test_constraint_only_matters_where_a_coefficient_would_be_negative():
    falling = np.array([[0.0], [-0.1], [-0.1], [1.0]])
    assert from_stability(falling, 0.25).weights.min() >= 0 > from_stability(falling, 0.25, False).weights.min()
    assert from_stability(falling, 0.25).value[0] == pytest.approx(1.0)
    rising = np.array([[0.1], [0.2], [0.35], [1.0]])
    assert np.allclose(from_stability(rising, 0.25).value, from_stability(rising, 0.25, False).value)


def test_subtracting_a_linear_predictor_leaves_the_residual_and_lowers_the_variance():
    learner, rho, rng = Polynomial(30, 0.5, (0.5, 1.0, 0.1)), 0.25, np.random.default_rng(0)
    plain, around = [], []
    for _ in range(60):
        at = with_partners(rng, draw(rng, 300, 30, 0.5), 0.5, rho).reshape(-1, 30)
        f = values(learner, at)
        for kept, g in ((plain, f), (around, f - cheats.scaled(learner.best(), 0.9).predict(at))):
            kept.append(residual(g.reshape(4, 300, 1), rho, False).value[0] / learner.weights()[2, 0])
    assert np.std(around) < 0.2 * np.std(plain)
    assert abs(np.mean(around) - 1) < 4 * np.std(around) / np.sqrt(60)


def test_plan_grows_as_it_says():
    fresh, bases = plan(0.002, 0.05, 0.001, 0.25)
    assert plan(0.002, 0.05, 0.002, 0.25)[1] > bases and plan(0.002, 0.01, 0.001, 0.25)[0] > fresh
    wide = [plan(eps, 0.05, 1.0, 0.25)[0] for eps in (0.02, 0.01)]
    assert wide[1] / wide[0] == pytest.approx(4, rel=0.01)
    assert attained(0.002, 0.001, 0.25, bases) == pytest.approx(0.05, rel=0.01)
    assert attained(0.002, 0.001, 0.25, bases // 2, points=2) > 0.1
    narrow = [plan(0.002, 0.05, 0.001, 0.25, off=off)[1] for off in (0.0, 0.0005)]
    assert narrow[1] / narrow[0] == pytest.approx(4, rel=0.01), "eps / 2 - off is half of eps / 2"
    assert spread(0.1, 1) / spread(0.2, 1) == pytest.approx(2, rel=0.15)
    assert spread(0.05, 1, coupled=False) / spread(0.1, 1, coupled=False) == pytest.approx(4, rel=0.2)


# --- learners


LEARNERS = {
    "polynomial": lambda: Polynomial(12, 0.4, points=2, noise=0.1),
    "ridge": lambda: Ridge(n=30, features=8, queries=(0, 3)),
    "network": lambda: Network(n=30, depth=1, width=4, epochs=3, queries=(0, 3), at_once=1),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_retraining_gives_the_same_bits_alone_in_company_and_from_the_spec(kind):
    learner = LEARNERS[kind]()
    rng = np.random.default_rng(0)
    subsets, seeds = draw(rng, 9, learner.n, 0.5), np.array([5, 5, 6, 7, 5, 2**31 - 1, 0, 6, 5])
    subsets[3] = False  # nothing to train on
    whole = learner(subsets, seeds)
    twin = build(learner.spec())
    back = twin(subsets[::-1], seeds[::-1])
    assert (back.values[::-1] == whole.values).all() and (back.fingerprints[::-1] == whole.fingerprints).all()
    for i in range(9):
        one = twin(subsets[i : i + 1], seeds[i : i + 1])
        assert (one.values[0] == whole.values[i]).all() and (one.fingerprints[0] == whole.fingerprints[i]).all()
    again = learner(subsets[[0, 0]], np.array([5, 6]))
    assert (again.fingerprints[0] == whole.fingerprints[0]).all()
    assert (again.fingerprints[0] != again.fingerprints[1]).any(), "another seed, another model"
    assert len({bytes(row) for row in whole.fingerprints}) == 9
    assert learner.trainings == 11 and twin.trainings == 18


def test_stacked_networks_agree_to_rounding_only():
    subsets = draw(np.random.default_rng(0), 7, 30, 0.5)
    stacked, alone = (Network(n=30, epochs=3, queries=(0, 1), at_once=k) for k in (64, 1))
    assert not stacked.exact and alone.exact
    assert np.abs(values(stacked, subsets) - values(alone, subsets)).max() < 1e-5


def test_the_seed_of_a_network_sets_its_first_parameters():
    learner, nothing = LEARNERS["network"](), np.zeros((2, 30), bool)
    prints = learner(nothing, np.array([5, 6])).fingerprints
    assert (prints[0] != prints[1]).any(), "untrained models of two seeds differ"


def test_ridge_is_ridge_regression():
    learner = Ridge(n=30, features=8, queries=(0, 3), decay=0.7)
    subset = draw(np.random.default_rng(0), 1, 30, 0.5)
    train, test = learner.features(4)
    x, y = train[subset[0]], np.eye(10)[learner.y[subset[0]]]
    weights = np.linalg.inv(x.T @ x + 0.7 * np.eye(8)) @ x.T @ y
    for q, scores in enumerate(test @ weights):
        right = learner.truth[q]
        margin = scores[right] - max(s for c, s in enumerate(scores) if c != right)
        assert np.isclose(values(learner, subset, 4)[0, q], np.clip(margin / 2, -1, 1))
    loss = Ridge(n=30, features=8, queries=(0, 3), decay=0.7, output="loss")
    wrong = np.square(test @ weights - np.eye(10)[learner.truth]).sum(1)
    assert np.allclose(values(loss, subset, 4)[0], np.clip(wrong / 2, -1, 1))


def test_network_outputs_are_margin_and_loss_of_the_trained_model():
    margin, loss = (Network(n=30, epochs=3, queries=(0, 3), output=o, at_once=1) for o in ("margin", "loss"))
    subset = draw(np.random.default_rng(0), 1, 30, 0.5)
    p = np.exp(-10 * values(loss, subset, 1))
    assert np.allclose(10 * values(margin, subset, 1), np.log(p) - np.log1p(-p), atol=1e-4)


def test_pixels_is_a_function_of_masks():
    learner, mask = Pixels(queries=(1, 2)), np.arange(64) % 3 == 0
    shown = np.where(mask, learner.tests[1], learner.mean)
    scores = learner.classifier.predict(shown[None])[0]
    margin = scores[learner.truth[1]] - np.delete(scores, learner.truth[1]).max()
    assert values(learner, np.stack([~mask, mask]))[1, 1] == pytest.approx(margin / 2)
    assert build(learner.spec()).spec() == learner.spec()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(np.ones((3, 5), bool), np.zeros(3, int)), r"must be bool \[subsets, 6\]"),
        (lambda: small()(np.ones((3, 6)), np.zeros(3, int)), r"subsets are float64"),
        (lambda: small()(np.ones((3, 6), bool), np.zeros(2, int)), r"one integer >= 0 a subset"),
        (lambda: small()(np.ones((1, 6), bool), np.array([-1])), r"one integer >= 0 a subset"),
        (lambda: Polynomial(2), r"n >= 4"),
        (lambda: Polynomial(6, p=1.0), r"inclusion probability p=1\.0"),
        (lambda: build({"learner": "oracle"}), r"learner 'oracle' is unknown; there are \["),
        (lambda: build({"learner": "ridge", "colour": 1}), r"unexpected keyword"),
        (lambda: build(Ridge(n=30).spec() | {"data": "x"}), r"its data here differ"),
        (lambda: Ridge(queries=(5000,)), r"queries=\[5000\]"),
        (lambda: Ridge(output="logit"), r"output='logit'; one of"),
        (lambda: Ridge(n=1), r"n=1 training images"),
        (lambda: residual(np.zeros((3, 5, 1)), 0.2), r"give \[4, n, Q\]"),
        (lambda: residual(np.full((4, 5, 1), np.nan), 0.2), r"NaN or infinite"),
        (lambda: residual(np.zeros((4, 5, 1)), 0.6), r"0 < rho <= 0\.5"),
        (lambda: plan(0.0, 0.05, 0.1, 0.2), r"eps=0\.0; it must lie strictly between 0 and 1"),
        (lambda: plan(0.1, 0.05, 0.1, 0.2, off=0.05), r"off=0\.05; a bias of the residual lies in"),
        (lambda: plan(0.1, 0.6, 0.1, 0.2), r"delta=0\.6 for 1 test points"),
        (lambda: attained(0.001, 0.1, 0.2, 10, points=2), r"10 bases attain delta="),
        (lambda: build({"learner": []}), r"learner \[\] is unknown"),
        (lambda: plan(0.1, 1.0, 0.1, 0.2), r"delta=1\.0; it must lie strictly"),
        (lambda: Attribution(np.full((1, 3), np.inf), np.zeros(1), 0.5), r"NaN or infinite"),
        (lambda: Attribution(np.zeros((1, 3)), np.zeros(2), 0.5), r"must be \[Q, N\] and \[Q\]"),
        (lambda: fit("magic", small(), 10, 0.5, None), r"method 'magic'; fitted are"),
        (lambda: fit("lasso", small(), 3, 0.5, None), r"budget=3"),
        (lambda: small().task(0), r"has no gradients"),
        (lambda: rate([]), r"at least one run"),
        (lambda: cheats.swapped(1.5, None), r"share=1\.5"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_outputs_that_are_not_finite_are_named(monkeypatch):
    learner = small()
    broken = np.array([[1.0], [np.nan]])
    monkeypatch.setattr(learner, "run", lambda subsets, seeds: (broken, [b"", b""]))
    with pytest.raises(ValueError, match=r"outputs of subsets \[1\] are not finite"):
        learner(np.ones((2, 6), bool), np.zeros(2, int))


# --- what an honest prover fits


def test_least_squares_recovers_a_linear_function():
    learner = Polynomial(10, 0.3, (0.4, 1.0), points=2)
    found = fit("least_squares", learner, 40, 0.3, np.random.default_rng(0))
    assert found.error(learner.best()).max() < 1e-20 and learner.trainings == 40


def test_error_of_each_fit_is_of_the_size_that_its_docstring_says():
    learner, rng = Polynomial(40, 0.4, (0.5, 1.0, 0.2)), np.random.default_rng(0)
    w, m = learner.weights()[:, 0], 800
    error = {name: np.mean([fit(name, learner, m, 0.4, rng).error(learner.best()) for _ in range(12)]) for name in FITS}
    assert 0.6 < error["least_squares"] / (w[2] * 41 / (m - 41)) < 1.6
    assert 0.6 < error["empirical_influence"] / (w[1:].sum() * 41 / m) < 1.6
    assert error["lasso"] < 2 * error["least_squares"]


def test_lasso_needs_fewer_trainings_where_few_examples_matter():
    learner, rng = Polynomial(60, 0.5, (0.0, 1.0, 0.1), concentration=2.0), np.random.default_rng(0)
    error = {name: np.mean([fit(name, learner, 80, 0.5, rng).error(learner.best()) for _ in range(5)]) for name in FITS}
    assert error["lasso"] < 0.5 * error["least_squares"]


def test_empirical_influence_by_loops():
    rng = np.random.default_rng(0)
    subsets, y = draw(rng, 12, 5, 0.5), rng.normal(size=(12, 2))
    subsets[:, 4] = True
    found = FITS["empirical_influence"](subsets, y, 0.5)
    for q, i in itertools.product(range(2), range(5)):
        inside = [y[m, q] for m in range(12) if subsets[m, i]]
        outside = [y[m, q] for m in range(12) if not subsets[m, i]]
        assert np.isclose(found.scores[q, i], np.mean(inside) - np.mean(outside) if outside else 0.0)
    assert np.allclose(found.mean, y.mean(0))


@pytest.mark.parametrize("output", ["margin", "loss"])
def test_methods_of_the_registry_are_brought_to_scale(output):
    learner, rng = Network(n=40, epochs=8, queries=(0, 3), output=output, flips=0.0), np.random.default_rng(0)
    found = registered("influence", learner, 300, 0.5, rng, curvature="ggn", damping=1.0)
    subsets = draw(rng, 400, 40, 0.5)
    f = values(learner, subsets)
    explained = 1 - np.square(f - found.predict(subsets)).mean(0) / f.var(0)
    assert explained.min() > 0.1, explained
    noise = registered("random", learner, 300, 0.5, rng)
    assert (1 - np.square(f - noise.predict(subsets)).mean(0) / f.var(0)).max() < 0.1


# --- planning and costs


def test_pilot_finds_the_scale_the_residual_and_the_best_scores():
    learner = Polynomial(30, 0.4, (0.3, 1.0, 0.2), points=2)
    statement, reference, left = pilot(learner, np.random.default_rng(0), budget=3000, p=0.4, rule="first", checks=7)
    w = learner.weights()
    assert statement.eps == pytest.approx(0.2 * w[1:].sum(0).min(), rel=0.1) and statement.checks == 7
    assert left == pytest.approx(w[2], rel=0.15)
    assert (reference.error(learner.best()) < 0.1 * statement.eps).all()
    sizes = plan(statement.eps, 0.05, float(left.max()), 1 / 3, points=2)
    assert (statement.fresh, statement.bases) == sizes and statement.delta == 0.05
    fewer = pilot(learner, np.random.default_rng(0), budget=3000, p=0.4, rule="first", checks=7, most=sizes[1] // 2)[0]
    assert fewer.bases == sizes[1] // 2 and fewer.fresh == sizes[0]
    assert fewer.delta == pytest.approx(attained(statement.eps, float(left.max()), 1 / 3, fewer.bases, 2))
    assert fewer.delta > 0.05
    with pytest.raises(ValueError, match="40 bases attain delta"):
        pilot(learner, np.random.default_rng(0), budget=3000, p=0.4, rule="first", most=40, checks=7)
    with pytest.raises(ValueError, match=r"budget=31 for 30 examples"):
        pilot(learner, np.random.default_rng(0), budget=31, p=0.4)
    flat = Polynomial(6, 0.5, (1.0, 0.0))
    with pytest.raises(ValueError, match="does not vary"):
        pilot(flat, np.random.default_rng(0), budget=50)


def test_planned_sizes_keep_their_promise():
    learner = Polynomial(20, 0.5, (0.0, 1.0, 0.1))
    w, best = learner.weights()[:, 0], learner.best()
    eps = float(0.2 * w[1])
    fresh, bases = plan(eps, 0.05, w[2], 1 / 3)
    statement = Statement(learner.spec(), eps, rule="first", fresh=fresh, bases=bases, checks=0, rho=1 / 3)
    for part, lowest, highest in ((0.25, 0.85, 1.0), (1.0, 0.0, 0.15)):
        found = repeat(statement, lambda rng, e=part * eps: cheats.shaken(best, e, rng), 40)
        assert lowest <= np.mean([verdict.accepted for verdict, _ in found]) <= highest


def test_budget_grows_with_n_and_needed_subsets_with_one_over_eps():
    rng = np.random.default_rng(0)
    few, many = (experiments.smallest_budget(Polynomial(n), 0.2 * Polynomial(n).weights()[1, 0], rng) for n in (20, 80))
    assert 2.5 < many / few < 6.5
    cubic = Polynomial(20, 0.5, (0.0, 1.0, 0.05, 0.1))
    wide, narrow = (experiments.subsets_needed(cubic, share, 0.05, rng, 4000) for share in (0.2, 0.05))
    exponent = {name: np.log(narrow[name] / wide[name]) / np.log(4) for name in wide}
    assert exponent["text"] == pytest.approx(3, abs=0.35) and exponent["coupled"] == pytest.approx(2.5, abs=0.35)
    assert exponent["fresh models"] < 2.2 and wide["claim subtracted"] < 0.3 * wide["coupled"] < 0.3 * wide["text"]
    with pytest.raises(ValueError, match="no budget up to"):
        experiments.smallest_budget(Polynomial(4, 0.5, (0.0, 1.0, 0.1)), 1e-12, rng, fits=1)


def test_estimates_of_all_versions_are_around_the_truth():
    learner = Polynomial(20, 0.5, (0.1, 1.0, 0.1))
    w, rng = learner.weights()[:, 0], np.random.default_rng(0)
    found = [experiments.estimates(learner, cheats.shaken(learner.best(), w[2], rng), 0.3, 800, rng) for _ in range(20)]
    for name in found[0]:
        values_of = np.array([one[name] for one in found]) / w[2]
        slack = 0.15 if name == "winsorised" else 0.0
        assert abs(values_of.mean() - 1) < 4 * values_of.std() / np.sqrt(20) + slack, name


# --- rates


def test_rates_and_the_chance_to_be_caught():
    found = rate(190, 200)
    assert (
        found.value == 0.95
        and found.low == pytest.approx(0.9100, abs=1e-4)
        and found.high == pytest.approx(0.9758, abs=1e-4)
    )
    assert tuple(rate([True] * 10))[1] == pytest.approx(0.025 ** (1 / 10))
    exact, usual = caught(0.1, 50, 10)
    honest = np.prod([(45 - i) / (50 - i) for i in range(10)])
    assert exact == pytest.approx(1 - honest) and usual == pytest.approx(1 - 0.9**10) and exact > usual
