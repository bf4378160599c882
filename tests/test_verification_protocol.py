"""The two parties: honest and cheating provers, audits, two processes."""

import base64
import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tda.studies.verification import cheats, messages
from tda.studies.verification.cheats import damaged_session, damaged_sessions
from tda.studies.verification.cube import Attribution
from tda.studies.verification.digits import Network, Ridge
from tda.studies.verification.experiments import caught, rate, repeat
from tda.studies.verification.learner import Outputs, Polynomial, Remembering
from tda.studies.verification.messages import ProtocolError
from tda.studies.verification.prover import Prover, commitment, fit
from tda.studies.verification.residual import winsorised
from tda.studies.verification.statement import Coins, Statement, build, check_learner
from tda.studies.verification.verifier import Verifier, audit, decide, run

N, ENERGY = 40, (0.1, 1.0, 0.06, 0.03)
SALT = "ab" * 32
COMMAND = [sys.executable, "-m", "tda.studies.verification"]


def world(p=0.5, points=1, **options):
    """``(learner, statement, best attribution)``: eps is a fifth of B_1."""
    learner = Polynomial(N, p, ENERGY, points)
    usual = {
        "rule": "first",
        "eps": 0.2 * float(learner.weights()[1].min()),
        "fresh": 200,
        "bases": 900,
        "checks": 60,
        "rho": 1 / 3,
    }
    return learner, Statement(learner.spec(), p=p, **(usual | options)), learner.best()


def secret(i):
    return hashlib.sha256(f"secret {i}".encode()).digest()


def meet(learner, statement, claim, i=0, alter=None, wire=None, own=None):
    """Run one session; the verifier has a learner of its own. ``(verdict, transcript)``."""
    verifier = Verifier(build(statement.learner), statement, secret(i))
    return run(verifier, Prover(own or learner, statement, claim, alter, SALT), wire)


def accepted(learner, statement, claim, runs=10, **options):
    return np.mean([meet(learner, statement, claim, i, **options)[0].accepted for i in range(runs)])


# --- who is accepted


@pytest.mark.parametrize("form", ["interactive", "non-interactive"])
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_honest_and_harmless_provers_are_accepted(p, form):
    learner, statement, best = world(p, form=form)
    rng = np.random.default_rng(0)
    honest = fit("least_squares", learner, 800, p, rng)
    assert honest.error(best) < statement.eps / 4
    assert accepted(learner, statement, honest) == 1
    assert accepted(learner, statement, cheats.shaken(best, statement.eps / 10, rng)) == 1


def claims_of(learner, statement, best):
    """Claims well beyond eps: the gallery around three quarters of eps more, and noise."""
    rng, other = np.random.default_rng(0), Polynomial(N, statement.p, ENERGY, learner.points, seed=1)
    found = cheats.gallery(best, 2 * statement.eps, other.best()) | {
        "shaken": cheats.shaken(best, 2.5 * statement.eps, rng)
    }
    found |= {"halved": cheats.scaled(best, 0.3), "sparse": cheats.sparse(best, 4)}
    return {name: claim(rng) if callable(claim) else claim for name, claim in found.items()}


@pytest.mark.parametrize("form", ["interactive", "non-interactive"])
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_every_false_claim_is_rejected(p, form):
    learner, statement, best = world(p, form=form)
    for name, claim in claims_of(learner, statement, best).items():
        assert claim.error(best).min() > 1.5 * statement.eps, name
        assert accepted(learner, statement, claim) == 0, name
        verdict = meet(learner, statement, claim)[0]
        assert "MSE exceeds the best residual" in verdict.reason and verdict.mse > verdict.residual


@pytest.mark.parametrize("around", ["nothing", "mean"])
def test_the_estimator_of_the_text_decides_the_same_with_more_trainings(around):
    learner, statement, best = world(around=around, bases=12_000, fresh=1000, checks=10)
    assert accepted(learner, statement, best, 4) == 1
    assert accepted(learner, statement, cheats.scaled(best, 0.2), 4) == 0


def test_one_bad_test_point_among_three_is_enough():
    learner, statement, best = world(points=3)
    assert accepted(learner, statement, best, 6) >= 5 / 6
    scores = best.scores.copy()
    scores[1] *= 0.2
    verdict = meet(learner, statement, replace(best, scores=scores))[0]
    assert not verdict.accepted and "at 1 of 3 test points" in verdict.reason


def test_scaling_identity():
    learner, _, best = world()
    assert np.allclose(cheats.scaled(best, 0.3).error(best), 0.7**2 * learner.weights()[1])
    assert np.allclose(cheats.shaken(best, 0.01, np.random.default_rng(0)).error(best), 0.01)
    assert (cheats.sparse(best, 4).scores != 0).sum() == 4
    assert np.abs(cheats.sparse(best, 4).scores).max() == np.abs(best.scores).max()


# --- lies about trainings


def test_lies_are_caught_as_often_as_the_formula_says():
    learner, statement, best = world(bases=60, fresh=20, checks=20, eps=0.9)
    share, runs = 0.05, 300
    found = repeat(statement, best, runs, alter=lambda rng, claim: cheats.swapped(share, rng))
    seen = sum("retrained models differ" in verdict.reason for verdict, _ in found)
    low, high = rate(seen, runs, 0.999).low, rate(seen, runs, 0.999).high
    exact, usual = caught(share, 240, 20)
    assert low < exact < high and abs(exact - usual) < 0.02


@pytest.mark.parametrize("kind", cheats.DAMAGES)
def test_damages_of_the_gallery_end_in_an_abort(kind):
    learner, statement, best = world(bases=20, fresh=20, checks=5, eps=0.9)
    for seed in range(4):
        verdict = damaged_session(kind, learner, statement, best, np.random.default_rng(seed))
        assert not verdict.accepted and verdict.reason and verdict.trainings == 0
    with pytest.raises(ValueError, match="damage 'fire'; one of"):
        damaged_session("fire", learner, statement, best, np.random.default_rng(0))


def test_damages_are_counted_and_so_are_errors():
    learner, statement, best = world(bases=20, fresh=20, checks=5, eps=0.9)
    accepted_, raised, reasons = damaged_sessions(12, learner, statement, best, np.random.default_rng(0))
    assert (accepted_, raised, sum(reasons.values())) == (0, 0, 12) and {kind for kind, _ in reasons} == set(
        cheats.DAMAGES
    )
    learner.run = lambda subsets, seeds: 1 / 0
    assert damaged_sessions(12, learner, statement, best, np.random.default_rng(0))[1] == 12


def test_what_was_trained_once_is_remembered():
    learner, statement, best = world(bases=20, fresh=20, checks=5, eps=0.9)
    once = Remembering(learner)
    for _ in range(2):
        found = repeat(statement, best, 2, learner=once)
        assert [v.mse for v, _ in found] == [v.mse for v, _ in repeat(statement, best, 2)]
        assert once.trainings == 2 * (80 + 20 + 5)
    other = once(*Coins(statement, N, secret(3)).pairs)
    assert (other.values == learner(*Coins(statement, N, secret(3)).pairs).values).all()


def test_repeated_sessions_have_coins_of_their_own_and_can_be_repeated():
    _, statement, best = world(bases=50, fresh=20, checks=5)
    one, again, other = (repeat(statement, lambda rng: cheats.shuffled(best, rng), 3, seed) for seed in (0, 0, 1))
    assert [v.mse[0] for v, _ in one] == [v.mse[0] for v, _ in again]
    assert len({v.mse[0] for v, _ in [*one, *other]}) == 6
    assert all(v.trainings == 25 for v, _ in one), "the verifier's only"


def trained_elsewhere(other, seed=0):
    """A prover who answers with the models of another learner or seed."""
    return lambda subsets, outputs: other(subsets, np.full(len(subsets), seed))


def test_stale_models_and_lies_about_everything_are_caught():
    learner, statement, best = world()
    for alter in (cheats.swapped(1.0, np.random.default_rng(0)), trained_elsewhere(Polynomial(N, 0.5, ENERGY, seed=1))):
        verdict = meet(learner, statement, best, alter=alter)[0]
        assert not verdict.accepted and "60 of 60 retrained models differ" in verdict.reason and verdict.trainings == 60
    ridge = Ridge(n=30, features=8)
    asked = Statement(ridge.spec(), 0.01, rule="first", bases=20, fresh=20, checks=10, seed=3)
    stale = trained_elsewhere(Ridge(n=30, features=8), seed=2)
    claim = fit("least_squares", ridge, 100, 0.5, np.random.default_rng(0), seed=2)
    assert "10 of 10 retrained" in meet(ridge, asked, claim, alter=stale)[0].reason


def test_a_few_lies_move_the_estimate_little_because_their_terms_are_pulled_in():
    learner, statement, best = world(checks=0)
    assert statement.winsor == pytest.approx(0.1)
    false = cheats.scaled(best, 0.4)
    liar = cheats.inflating(0.005, false, statement.rho)
    moved = {}
    for winsor in (0.1, 0.0):
        asked = replace(statement, winsor=winsor)
        pair = [meet(learner, asked, false, 0, alter)[0] for alter in (None, liar)]
        moved[winsor] = float(pair[1].residual[0] - pair[0].residual[0]) / statement.eps
        assert not pair[0].accepted and pair[1].accepted == (winsor == 0), "eighteen lies are enough for plain means"
    assert 0 < moved[0.1] < 1 and moved[0.0] > 5 * moved[0.1]


@pytest.mark.parametrize("p", [0.3, 0.5, 0.7])
def test_an_error_on_one_example_is_not_hidden_by_winsorising(p):
    learner = Polynomial(60, p, (0.0, 1.0, 0.004))
    best, eps = learner.best(), 0.2 * float(learner.weights()[1, 0])
    statement = Statement(learner.spec(), eps, p=p, rule="first", bases=300, fresh=200, checks=20)
    claim = cheats.gallery(best, eps, best)["boosted: one example"]
    assert (claim.scores != best.scores).sum() == 1 and claim.error(best)[0] == pytest.approx(1.5 * eps)
    assert np.mean([v.accepted for v, _ in repeat(statement, claim, 30)]) <= 0.1
    assert np.mean([v.accepted for v, _ in repeat(statement, best, 10)]) == 1
    with pytest.raises(ValueError, match="cuts off the terms that show an error on one example"):
        replace(statement, winsor=0.2)
    with pytest.raises(ValueError, match=r"lower winsor \(None takes that\), or raise rho"):
        replace(statement, rho=0.1)


def test_lies_within_the_tolerance_cannot_cover_a_false_claim():
    learner, statement, best = world()
    false = cheats.scaled(best, 0.5)
    subsets, _ = Coins(statement, N, secret(0)).pairs
    true = learner(subsets, np.zeros(len(subsets), int))

    def estimate(outputs):
        rest = (outputs.values - false.predict(subsets)).reshape(4, -1, 1)
        return winsorised(rest, statement.rho, statement.winsor)[0] / statement.eps

    def moved(tolerance):
        return estimate(cheats.shading(tolerance, false, statement.rho)(subsets, true)) - estimate(true)

    largest = statement.eps * statement.rho / 32
    assert 0 < moved(largest) < 0.05 and moved(1e-2) > 0.5, "without the rule the cheat would do"
    size = np.abs(cheats.shading(1e-2, false, statement.rho)(subsets, true).values - true.values)
    assert size.max() < 1e-2 and size.mean() > 0.009
    asked = replace(statement, tolerance=float(largest))
    shade = cheats.shading(largest, false, statement.rho)
    verdict = meet(learner, asked, false, 0, lambda s, o: shade(s, o))[0]
    assert not verdict.accepted and "MSE" in verdict.reason, "unnoticed, but of no use"
    with pytest.raises(ValueError, match=r"tolerance=0.001: lies within it .* At most eps \* rho / 32"):
        replace(statement, tolerance=1e-3)


# --- what the prover believes, and what goes wrong on the verifier's side


def forged(prover, verifier, number, previous, **body):
    last = {"accepted": False, "reason": "so", "secret": verifier.coins.secret.hex()} | body
    return prover.receive(messages.encode(verifier.session, number, "verdict", previous, last)[0])


@pytest.mark.parametrize("form", ["interactive", "non-interactive"])
def test_the_prover_believes_only_a_verdict_that_reveals_the_promised_coins(form):
    learner, statement, best = world(form=form, bases=20, fresh=20, checks=5, eps=0.9)
    verifier, prover = Verifier(learner, statement, secret(0)), Prover(learner, statement, best, None, SALT)
    prover.receive(verifier.open())
    for body, reason in (
        ({"accepted": "false"}, "true or false"), ({"accepted": 1}, "true or false"), ({"reason": [1]}, "in words"),
        ({"secret": None}, "the secret must be 64"), ({"secret": "00" * 32}, "does not reveal the coins"),
        ({"accepted": True}, "reordered or replayed|does not follow"),
    ):  # fmt: skip
        with pytest.raises(ProtocolError, match=reason):
            forged(prover, verifier, 2, "0" * 64, **body)
        assert prover.verdict is None
    assert forged(prover, verifier, 7, "0" * 64) is None, "an abort may come early"
    first = prover.verdict
    assert forged(prover, verifier, 9, "", accepted=True, reason="no") is None and prover.verdict is first
    assert prover.receive(b"nonsense") is None and prover.verdict["accepted"] is False


def test_a_learner_that_fails_for_the_verifier_is_an_abort():
    learner, statement, best = world(bases=20, fresh=20, checks=5, eps=0.9)
    own = build(statement.learner)

    def fail(subsets, seeds):
        raise ValueError("boom")

    own.run = fail
    verdict, _ = run(Verifier(own, statement, secret(0)), Prover(learner, statement, best, None, SALT))
    assert not verdict.accepted and verdict.reason == "the verifier could not train: boom"


def test_equal_hashes_or_a_tolerance():
    learner, statement, best = world()

    def rounded(subsets, outputs):
        return Outputs(outputs.values + 1e-9 * np.where(outputs.values < 0, 1, -1), outputs.fingerprints)

    assert not meet(learner, statement, best, alter=rounded)[0].accepted
    assert meet(learner, replace(statement, tolerance=1e-6), best, alter=rounded)[0].accepted
    other = Outputs
    hashes = meet(learner, statement, best, alter=lambda s, o: other(o.values, o.fingerprints ^ 1))[0]
    assert "60 of 60 retrained models differ" in hashes.reason


def test_claim_is_fixed_before_the_subsets_are_known():
    learner, statement, best = world()
    prover = Prover(learner, statement, best, None, SALT)
    verifier = Verifier(build(statement.learner), statement, secret(0))
    queries = verifier.receive(prover.receive(verifier.open()))
    prover.attribution = cheats.scaled(best, 0.99)
    verifier.receive(prover.receive(queries))
    assert "not the one that was committed to" in verifier.verdict.reason and verifier.verdict.trainings == 0
    known = commitment(best, SALT)
    assert known != commitment(best, "cd" * 32) and known != commitment(cheats.scaled(best, -1.0), SALT)


# --- training noise


def test_noise_of_training_cancels_if_every_training_has_its_own_seed():
    noisy = Polynomial(N, 0.5, (0.0, 1.0, 0.02), noise=0.3)
    best, eps = noisy.best(), 0.2 * float(noisy.weights()[1, 0])
    gaps = {}
    for seeding in ("one", "each"):
        statement = Statement(
            noisy.spec(),
            eps,
            rule="first",
            bases=900,
            fresh=300,
            checks=20,
            seeding=seeding,
            winsor=0.0,
            constraint=False,
        )
        verdicts = [meet(noisy, statement, best, i)[0] for i in range(12)]
        gaps[seeding] = np.array([(v.mse - v.residual)[0] for v in verdicts]) / eps
        level = np.mean([v.residual[0] for v in verdicts]) * noisy.bound**2
        assert abs(level - {"one": 0.02, "each": 0.02 + 0.3}[seeding]) < 0.05
    assert abs(gaps["each"].mean()) < 4 * gaps["each"].std() / np.sqrt(12)
    # One seed: the noise is a constant, which the claim's mean does not know; a prover that trains at this seed does.
    shift = noisy(np.ones((1, N), bool), np.array([0])).values - best.predict(np.ones((1, N), bool))
    assert gaps["one"].mean() > 0 and abs(shift).max() > 0


# --- the statement, the coins, the audit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.0}, r"eps=0\.0; it must lie strictly between 0 and 1"),
        ({"eps": 1.5}, r"eps=1\.5"),
        ({"delta": 1.0}, r"delta=1\.0"),
        ({"eps": float("nan")}, r"eps=nan"),
        ({"p": 0.0}, r"p=0\.0"),
        ({"rho": 0.7}, r"rho=0\.7"),
        ({"form": "oral"}, r"form='oral'; one of"),
        ({"around": "zero"}, r"around='zero'"),
        ({"seeding": "none"}, r"seeding='none'"),
        ({"fresh": 1}, r"fresh=1; give an integer of at least 2"),
        ({"checks": 999}, r"checks=999 of 80"),
        ({"tolerance": -1.0}, r"tolerance=-1\.0"),
        ({"winsor": 0.3}, r"winsor=0\.3"),
        ({"winsor": 0.11}, r"At rho=0\.333 and p=0\.5 at most 0\.1"),
        ({"constraint": 1}, r"constraint is true or false"),
    ],
)  # fmt: skip
def test_statements_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Statement(**({"learner": {}, "eps": 0.1, "rule": "first", "bases": 20, "checks": 5} | change))


def test_parties_that_do_not_fit_the_statement_are_refused():
    learner, statement, best = world()
    with pytest.raises(ValueError, match="not the statement's"):
        Verifier(Polynomial(N, 0.3, ENERGY), statement)
    with pytest.raises(ValueError, match=r"scores \(1, 5\)"):
        Prover(learner, statement, Attribution(np.zeros((1, 5)), np.zeros(1), 0.5))
    with pytest.raises(ValueError, match="secret must be 32 bytes"):
        Verifier(learner, statement, b"short")
    with pytest.raises(ValueError, match="a statement has the keys"):
        Statement.of({"learner": {}, "eps": 0.1, "colour": 1})
    stacked = Network(n=30, epochs=2)
    with pytest.raises(ValueError, match="at_once=1"):
        check_learner(stacked, Statement(stacked.spec(), 0.1))
    check_learner(stacked, Statement(stacked.spec(), 0.1, tolerance=1e-4))


def test_coins_repeat_and_their_uses_are_separate():
    _, statement, _ = world()
    one, same, other = (Coins(statement, N, secret(i)) for i in (0, 0, 1))
    assert (one.pairs[0] == same.pairs[0]).all() and (one.checks == same.checks).all() and one.session == same.session
    assert (one.pairs[0] != other.pairs[0]).any() and one.session != other.session and one.promise != other.promise
    assert len(set(one.checks.tolist())) == statement.checks and (one.checks != other.checks).any()
    assert one.checks.max() > 3 * statement.bases and one.checks.min() < statement.bases, "over all of the pairs"
    bases = one.pairs[0].reshape(4, -1, N)
    agree = [(bases[0] == part).mean() for part in bases[1:]]
    assert np.allclose(agree, [0.5, 0.5 + 1 / 6, 0.5 + 1 / 3], atol=0.01)
    assert Coins(statement, N).secret != Coins(statement, N).secret


def test_audit_repeats_the_verdict_and_exposes_a_verifier_who_chose_his_coins():
    learner, statement, best = world()
    for claim in (best, cheats.scaled(best, 0.2)):
        verdict, sent = meet(learner, statement, claim)
        again = audit(sent, build(statement.learner), statement)
        assert (again.accepted, again.reason) == (verdict.accepted, verdict.reason) and again.mse == verdict.mse
    other = meet(learner, statement, best, 1)[1]
    with pytest.raises(ValueError, match="message 0 is not what the verifier's secret dictates"):
        audit([*sent[:4], other[4]], learner, statement)
    last = messages.decode(sent[4])
    lied = messages.encode(last.session, 4, "verdict", last.previous, last.body | {"accepted": True})[0]
    with pytest.raises(ValueError, match="message 4"):
        audit([*sent[:4], lied], learner, statement)
    with pytest.raises(ValueError, match="does not end in a verdict"):
        audit(sent[:3], learner, statement)
    published = replace(statement, form="non-interactive", bases=100)
    one, two = (meet(learner, published, best, i)[1] for i in (0, 1))
    assert audit(one, build(statement.learner), published).accepted
    with pytest.raises(ValueError, match="message 0"):
        audit([*one[:2], two[2]], learner, published)


def test_costs_are_counted():
    learner, statement, best = world()
    verdict, _ = meet(learner, statement, best)
    assert verdict.trainings == statement.fresh + statement.checks and learner.trainings == 4 * statement.bases
    alone = replace(statement, form="non-interactive")
    assert meet(learner, alone, best)[0].trainings == alone.fresh + 4 * alone.bases


# --- real learners, two processes


def test_a_ridge_learner_end_to_end():
    learner, rng = Ridge(n=40, features=16, decay=2.0), np.random.default_rng(0)
    honest = fit("least_squares", learner, 1500, 0.5, rng)
    f = learner(*pilot(40, 400)).values
    power = float(np.square(f - f.mean()).mean())
    statement = Statement(learner.spec(), 0.2 * power, rule="first", bases=400, fresh=150, checks=40, rho=1 / 3)
    assert meet(learner, statement, honest)[0].accepted
    verdict = meet(learner, statement, cheats.scaled(honest, 0.2))[0]
    assert not verdict.accepted and "MSE" in verdict.reason


def pilot(n, count):
    return np.random.default_rng(9).random((count, n)) < 0.5, np.zeros(count, int)


def start(role, problem, folder, *more):
    command = [*COMMAND, role, str(problem), str(folder), "--timeout", "120", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("scale", "code", "word"), [("1.0", 0, "accepted"), ("0.2", 1, "aborted")])
def test_two_processes_over_files(tmp_path, scale, code, word):
    learner = Ridge(n=30, features=12, decay=2.0)
    f = learner(*pilot(30, 300)).values
    statement = Statement(learner.spec(), 0.3 * float(f.var()), bases=9000, fresh=600, rho=1 / 3)
    problem = tmp_path / "problem.json"
    problem.write_text(json.dumps(statement.to_json()))
    verifier = start("verify", problem, tmp_path / "wire")
    prover = start("prove", problem, tmp_path / "wire", "--budget", "1500", "--scale", scale)
    said = [process.communicate(timeout=180) for process in (verifier, prover)]
    assert [verifier.returncode, prover.returncode] == [code, code], said
    assert said[0][0].startswith(word) and said[1][0].startswith(word) and not said[0][1] and not said[1][1]
    sent = [(tmp_path / "wire" / f"{i:02d}.json").read_bytes() for i in range(5)]
    assert audit(sent, Ridge(n=30, features=12, decay=2.0), statement).accepted == (code == 0)


def test_a_process_that_waits_in_vain_or_for_nonsense_says_so(tmp_path):
    problem = tmp_path / "problem.json"
    problem.write_text("{}")
    done = subprocess.run(
        [*COMMAND, "verify", str(problem), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "a statement has the keys" in done.stderr and "Traceback" not in done.stderr
    learner, statement, _ = world()
    problem.write_text(json.dumps(statement.to_json()))
    command = [*COMMAND, "prove", str(problem), str(tmp_path / "wire"), "--timeout", "0.1", "--budget", "50"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "did not arrive" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "wire").mkdir(exist_ok=True)
    (tmp_path / "wire" / "00.json").write_bytes(base64.b64encode(b"nonsense"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("stopped: not a JSON message") and not done.stderr


def test_decision_rule():
    eps = 0.1
    assert decide(np.array([0.149]), np.array([0.1]), eps)[0]
    assert not decide(np.array([0.151]), np.array([0.1]), eps)[0]
    assert not decide(np.array([0.1, 0.2]), np.array([0.1, 0.1]), eps)[0]
