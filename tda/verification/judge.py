"""How the verifier reads a claim and an answer, checks the answer, and decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tda.verification.claims import Attribution
from tda.verification.coins import Coins
from tda.verification.learners import Learner, Outputs
from tda.verification.messages import ProtocolError, hexadecimal, keys, unpack
from tda.verification.prover import commitment
from tda.verification.residual import residual, winsorised
from tda.verification.statement import Statement

LARGEST = 1e6  # of scores and mean: outputs lie in [-1, 1], and squares of larger ones would overflow in time


@dataclass(frozen=True)
class Verdict:
    """``accepted`` or not, and why. ``mse`` [Q] of the claim and estimated best ``residual`` [Q] where it came to that;
    ``trainings``: what it cost the verifier.
    """

    accepted: bool
    reason: str
    trainings: int
    mse: np.ndarray | None = None
    residual: np.ndarray | None = None


def read_claim(body: dict, learner: Learner, p: float) -> Attribution:
    """The attribution in a body. Raises :class:`ProtocolError` for another shape or absurd numbers."""
    scores = unpack(body["scores"], "<f8", (learner.points, learner.n), "scores")
    mean = unpack(body["mean"], "<f8", (learner.points,), "mean")
    if max(np.abs(scores).max(), np.abs(mean).max()) > LARGEST:
        raise ProtocolError(f"scores and mean must be below {LARGEST:g}: outputs lie in [-1, 1]")
    return Attribution(scores, mean, p)


def read_answer(body: dict, committed: str, learner: Learner, statement: Statement) -> tuple[Attribution, Outputs]:
    """The committed claim and the prover's outputs. Raises :class:`ProtocolError` where something does not fit."""
    keys(body, "scores", "mean", "salt", "outputs", "fingerprints")
    count = 4 * statement.bases
    claim, salt = read_claim(body, learner, statement.p), hexadecimal(body["salt"], "the salt")
    values = unpack(body["outputs"], "<f8", (count, learner.points), "outputs")
    fingerprints = unpack(body["fingerprints"], "|u1", (count, 32), "fingerprints")
    if commitment(claim.scores, claim.mean, salt) != committed:
        raise ProtocolError("the attribution is not the one that was committed to")
    if np.abs(values).max() > 1:
        raise ProtocolError("an output lies outside [-1, 1]")
    return claim, Outputs(values, fingerprints)


def spot_check(given: Outputs, learner: Learner, statement: Statement, coins: Coins) -> None:
    """Retrain the secret places with their seeds. Raises :class:`ProtocolError` if any differs."""
    places, (subsets, seeds) = coins.checks, coins.pairs
    again = learner(subsets[places], seeds[places])
    wrong = np.abs(again.values - given.values[places]).max(1) > (statement.tolerance or 0.0)
    if statement.tolerance is None:
        wrong |= (again.fingerprints != given.fingerprints[places]).any(1)
    if wrong.any():
        raise ProtocolError(f"{wrong.sum()} of {len(places)} retrained models differ from the prover's")


def measure(claim: Attribution, values: np.ndarray, learner: Learner, coins: Coins) -> tuple[np.ndarray, np.ndarray]:
    """``(MSE [Q] of the claim on fresh models, estimated B_{>=2} [Q])`` from the outputs ``values`` [4 n, Q] of the
    pairs.
    """
    s, (fresh, seeds) = coins.statement, coins.fresh
    own = learner(fresh, seeds).values
    away = {"claim": claim.predict, "mean": lambda _: own.mean(0), "nothing": lambda _: 0.0}[s.around]
    rest = (values - away(coins.pairs[0])).reshape(4, s.bases, -1)
    best = winsorised(rest, s.rho, s.winsor) if s.winsor else residual(rest, s.rho, s.constraint).value
    return np.square(own - claim.predict(fresh)).mean(0), best


def decide(mse: np.ndarray, best: np.ndarray, eps: float) -> tuple[bool, str]:
    """Accept iff at every test point MSE <= best residual + eps / 2."""
    failed = int((mse > best + eps / 2).sum())
    over = f"MSE exceeds the best residual by {(mse - best).max() / eps:.2f} eps"
    if failed:
        return False, f"{over}, more than eps / 2 at {failed} of {len(mse)} test points"
    return True, f"{over}, nowhere by more than eps / 2"
