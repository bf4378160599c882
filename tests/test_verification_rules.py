"""The rules at their edges: what a commitment binds, what a tolerance lets through, what each coin is used for."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_verification_protocol import SALT, N, secret, world

from tda.studies.verification import cheats, experiments, messages
from tda.studies.verification.cube import Attribution, draw
from tda.studies.verification.experiments import pilot
from tda.studies.verification.learner import Outputs, Polynomial
from tda.studies.verification.messages import ProtocolError
from tda.studies.verification.prover import Prover, commitment
from tda.studies.verification.residual import attained, plan, spread
from tda.studies.verification.statement import Coins, Statement, build
from tda.studies.verification.verifier import Verifier, read_answer, read_claim, spot_check


def test_a_commitment_binds_salt_scores_and_mean():
    rng = np.random.default_rng(0)
    scores, mean = rng.normal(size=(3, 5)), rng.normal(size=3)
    known = commitment(Attribution(scores, mean, 0.5), SALT)
    parts = bytes.fromhex(SALT), scores.astype("<f8").tobytes(), mean.astype("<f8").tobytes()
    assert (
        known
        == hashlib.sha256(b"".join(parts)).hexdigest()
        == commitment(Attribution(scores.copy(), mean.copy(), 0.5), SALT)
    )
    others = [commitment(Attribution(scores, mean, 0.5), "ac" + SALT[2:])]
    for place in np.ndindex(scores.shape):
        changed = scores.copy()
        changed[place] = np.nextafter(changed[place], 9.0)
        others.append(commitment(Attribution(changed, mean, 0.5), SALT))
    for place in range(3):
        changed = mean.copy()
        changed[place] = np.nextafter(changed[place], 9.0)
        others.append(commitment(Attribution(scores, changed, 0.5), SALT))
    assert len({known, *others}) == 1 + 1 + 15 + 3


@pytest.mark.parametrize("name", ["scores", "mean"])
def test_a_claim_that_is_changed_after_the_commitment_is_noticed(name):
    learner, statement, best = world(bases=20, fresh=20, checks=5, eps=0.9)
    prover = Prover(learner, statement, best, None, SALT)
    verifier = Verifier(build(statement.learner), statement, secret(0))
    queries = verifier.receive(prover.receive(verifier.open()))
    prover.attribution = replace(best, **{name: getattr(best, name) + 1e-9})
    verifier.receive(prover.receive(queries))
    assert verifier.verdict.reason == "the attribution is not the one that was committed to"


@pytest.mark.parametrize("share", [0.0, 0.99, 1.01, 1.5])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_spot_checks_allow_the_tolerance_and_not_more(share, sign):
    learner, statement, _ = world(bases=20, fresh=20, checks=5)
    statement = replace(statement, tolerance=1e-5)
    coins = Coins(statement, N, secret(0))
    subsets, seeds = coins.pairs
    honest = learner(subsets, seeds)
    told = honest.values.copy()
    told[coins.checks[3]] += sign * share * statement.tolerance
    given = Outputs(told, 255 - honest.fingerprints)  # hashes are not compared where a tolerance is given
    if share <= 1:
        spot_check(given, learner, coins, coins.checks)
    else:
        with pytest.raises(ProtocolError, match="1 of 5 retrained models differ"):
            spot_check(given, learner, coins, coins.checks)


def test_without_a_tolerance_one_hash_or_the_last_digit_of_an_output_is_enough():
    learner, statement, _ = world(bases=20, fresh=20, checks=5)
    coins = Coins(statement, N, secret(0))
    honest, place = learner(*coins.pairs), coins.checks[0]
    spot_check(honest, learner, coins, coins.checks)
    for values, prints in ((1e-15, 0), (0.0, 1)):
        given = Outputs(honest.values.copy(), honest.fingerprints.copy())
        given.values[place] += values
        given.fingerprints[place, 31] ^= prints
        with pytest.raises(ProtocolError, match="1 of 5 retrained models differ"):
            spot_check(given, learner, coins, coins.checks)


@pytest.mark.parametrize("rho", [0.25, 1 / 3])
def test_the_largest_tolerance_is_a_thirtysecond_of_eps_times_rho(rho):
    _, statement, _ = world(rho=rho)
    largest = statement.eps * rho / 32
    assert replace(statement, tolerance=float(0.999 * largest)).tolerance < largest
    with pytest.raises(ValueError, match=r"At most eps \* rho / 32"):
        replace(statement, tolerance=float(1.001 * largest))


def test_each_use_of_the_coins_hashes_the_secret_with_its_own_label():
    """So that what is sent (the pairs) does not tell what is checked."""
    _, statement, _ = world(bases=20, fresh=30, checks=7)
    coins = Coins(statement, N, secret(4))

    def drawn(label):
        digest = hashlib.sha256(secret(4) + label.encode()).digest()
        return np.random.default_rng(int.from_bytes(digest, "big"))

    np.testing.assert_array_equal(coins.checks, drawn("checks").choice(80, 7, replace=False))
    bases = np.flatnonzero(drawn("checks").random(20) < 0.4)
    np.testing.assert_array_equal(coins.checked(np.full(20, 0.4)), np.concatenate([bases + 20 * k for k in range(4)]))
    np.testing.assert_array_equal(coins.fresh[0], drawn("fresh").random((30, N)) < statement.p)
    np.testing.assert_array_equal(coins.pairs[0][:20], drawn("pairs").random((20, N)) < statement.p)
    assert coins.promise == hashlib.sha256(secret(4)).hexdigest()


def test_equal_contents_have_one_spelling():
    one, other = {"b": 1, "a": {"d": [1, 2], "c": None}}, {"a": {"c": None, "d": [1, 2]}, "b": 1}
    assert messages.canonical(one) == messages.canonical(other) == b'{"a":{"c":null,"d":[1,2]},"b":1}'
    statement = world()[1]
    shuffled = dict(reversed(list(statement.to_json().items())))
    assert messages.canonical(Statement.of(shuffled).to_json()) == messages.canonical(statement.to_json())
    told = messages.canonical(statement.to_json())
    for name, value in (("eps", 0.3), ("delta", 0.1), ("bases", 901), ("checks", 61), ("seed", 1), ("winsor", 0.05)):
        assert messages.canonical(replace(statement, **{name: value}).to_json()) != told, name


@pytest.mark.parametrize("points", [2, 7])
def test_several_test_points_share_the_error_rate(points):
    """Each may err with delta / points only, so that the sizes are those of one point at that rate."""
    known = {"best": 0.01, "rho": 1 / 3}
    sizes = plan(0.02, 0.1, points=points, **known)
    assert sizes == plan(0.02, 0.1 / points, **known) > plan(0.02, 0.1, **known)
    assert attained(0.02, 0.01, 1 / 3, sizes[1], points) == pytest.approx(0.1, rel=0.02)


def test_the_residual_of_a_pilot_counts_the_free_parameters():
    """N + 1 of 40 trainings fit themselves: divided by all 40 the residual would come out at half its size."""
    learner = Polynomial(20, 0.5, (0.1, 1.0, 0.1))
    found = pilot(learner, np.random.default_rng(3), share=0.5, budget=40)[2]
    subsets = draw(np.random.default_rng(3), 40, 20, 0.5)
    outputs = learner(subsets, np.zeros(40, int)).values
    design = np.column_stack([np.ones(40), subsets])
    rest = outputs - design @ np.linalg.lstsq(design, outputs, rcond=None)[0]
    np.testing.assert_allclose(found, np.square(rest).sum(0) / (40 - 21), rtol=1e-6)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
def test_noise_on_a_claim_has_the_stated_size(p):
    best = world(p, points=2)[2]
    np.testing.assert_allclose(cheats.shaken(best, 0.02, np.random.default_rng(0)).error(best), 0.02)
    np.testing.assert_allclose(cheats.boosted(best, np.arange(4), 0.1).error(best), p * (1 - p) * 4 * 0.01)
    halved = (0.5 * best.scores) ** 2
    np.testing.assert_allclose(cheats.scaled(best, 0.5).error(best), p * (1 - p) * halved.sum(1))


@pytest.mark.parametrize("name", ["scores", "mean"])
def test_absurd_numbers_of_either_kind_are_refused(name):
    learner, statement, best = world(points=2)
    for size, refused in ((1e6, False), (-2e6, True)):
        body = {"scores": best.scores.copy(), "mean": best.mean.copy()}
        body[name].flat[-1] = size
        packed = {key: messages.pack(value) for key, value in body.items()}
        if refused:
            with pytest.raises(ProtocolError, match=r"scores and mean must be below 1e\+06"):
                read_claim(packed, learner, statement.p)
        else:
            assert getattr(read_claim(packed, learner, statement.p), name).max() == 1e6


@pytest.mark.parametrize("outside", [-1.0001, 1.0001])
def test_outputs_beyond_either_end_are_refused(outside):
    learner, statement, best = world(bases=20, fresh=20, checks=5)
    subsets, seeds = Coins(statement, N, secret(0)).pairs
    given = learner(subsets, seeds)
    given.values[7] = outside
    body = {"scores": messages.pack(best.scores), "mean": messages.pack(best.mean), "salt": SALT}
    body |= {"outputs": messages.pack(given.values), "fingerprints": messages.pack(given.fingerprints)}
    with pytest.raises(ProtocolError, match=r"an output lies outside \[-1, 1\]"):
        read_answer(body, commitment(best, SALT), learner, statement)


# --- what certainty costs


def test_the_smallest_budget_brings_the_error_below_a_quarter_of_eps(monkeypatch):
    """Fits whose error is known: 2 / budget at one test point, half of that at the other."""
    learner, asked = world(points=2)[0], []

    def fit(method, learner, budget, p, rng):
        asked.append(budget)
        return SimpleNamespace(error=lambda best: np.array([1.0, 2.0]) / budget)

    monkeypatch.setattr(experiments, "fit", fit)
    found = experiments.smallest_budget(learner, 0.1, np.random.default_rng(0), fits=3)
    grid = [int(1.2 * N * 10 ** (step / 10)) for step in range(60)]
    assert found == min(budget for budget in grid if 2 / budget < 0.1 / 4) and asked.count(found) == 3
    assert 2 / max(budget for budget in grid if budget < found) >= 0.1 / 4


def test_the_largest_rho_keeps_its_bias_below_an_eighth_of_eps(monkeypatch):
    learner, seen = world()[0], []
    drawn = experiments.with_partners

    def with_partners(rng, bases, p, rho, coupled):
        seen.append(rho)
        return drawn(rng, bases, p, rho, coupled)

    monkeypatch.setattr(experiments, "with_partners", with_partners)
    weights = learner.weights()[:, 0]
    for share in (0.1, 0.02, 100.0):
        seen.clear()
        experiments.subsets_needed(learner, share, 0.05, np.random.default_rng(0), pilot=30)
        assert len(seen) == 2
        for rho in seen:
            if share < 1:
                assert 2 * rho**2 * weights[3] == pytest.approx(share * weights[1] / 8) and rho < 0.5
            else:
                assert rho == 0.5, "2 rho is a correlation"


def test_the_spread_of_a_term_by_hand():
    """c = (-2, 4, -1) at rho = 1/2: 21 for independent partners, 6 less where they agree, and 2 for the squares."""
    assert spread(0.5, coupled=False) == pytest.approx(21 + 2)
    assert spread(0.5, degree=2) == pytest.approx(21 + 2 * 0.25 * (-2 * 4 - 4 * 1) + 2)
    assert spread(0.5, degree=1) == pytest.approx(21 + 2 * 0.5 * (-2 * 4 - 4 * 1) + 2)


def test_outputs_beyond_the_bound_are_clipped():
    learner, narrow = Polynomial(12), Polynomial(12)
    narrow.bound = learner.bound / 5
    subsets = np.random.default_rng(0).random((50, 12)) < 0.5
    wide, found = (one(subsets, np.zeros(50, int)).values for one in (learner, narrow))
    assert np.abs(5 * wide).max() > 1.5
    np.testing.assert_allclose(found, np.clip(5 * wide, -1, 1), rtol=1e-12)
