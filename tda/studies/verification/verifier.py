"""The verifier: asks, spot-checks by retraining, measures the claim on models of its own, and decides; a session of
both parties, and its audit.

Interactive, messages 0 to 4: open -> commit -> queries -> answer -> verdict. Non-interactive, 0 to 2: open -> claim ->
verdict. ``open`` holds the statement and a hash of the verifier's coins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tda.studies.verification.cube import Attribution
from tda.studies.verification.learner import Learner, Outputs
from tda.studies.verification.limits import chances, error_limit, error_terms, kurtosis, level_of, square_of
from tda.studies.verification.messages import Party, ProtocolError, decode, hexadecimal, keys, pack, unpack
from tda.studies.verification.prover import Prover, commitment
from tda.studies.verification.residual import residual, winsorised
from tda.studies.verification.statement import Coins, Statement, check_learner

LARGEST = 1e6  # of scores and mean: outputs lie in [-1, 1], and squares of larger ones would overflow in time
Transcript = list[bytes]


@dataclass(frozen=True)
class Verdict:
    """``accepted`` or not, and why. ``mse`` [Q] of the claim, and upper ``limit`` [Q] of its error (in the first
    version the estimated best ``residual`` [Q]) where it came to that; ``trainings``: what it cost the verifier.
    """

    accepted: bool
    reason: str
    trainings: int
    mse: np.ndarray | None = None
    residual: np.ndarray | None = None
    limit: np.ndarray | None = None


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
    if commitment(claim, salt) != committed:
        raise ProtocolError("the attribution is not the one that was committed to")
    if np.abs(values).max() > 1:
        raise ProtocolError("an output lies outside [-1, 1]")
    return claim, Outputs(values, fingerprints)


def spot_check(answer: Outputs, learner: Learner, coins: Coins, places: np.ndarray) -> None:
    """Retrain these secret places with their seeds. Raises :class:`ProtocolError` if any differs."""
    (subsets, seeds), tolerance = coins.pairs, coins.statement.tolerance
    again = learner(subsets[places], seeds[places])
    wrong = np.abs(again.values - answer.values[places]).max(1) > (tolerance or 0.0)
    if tolerance is None:
        wrong |= (again.fingerprints != answer.fingerprints[places]).any(1)
    if wrong.any():
        raise ProtocolError(f"{wrong.sum()} of {len(places)} retrained models differ from the prover's")


def measure(claim: Attribution, values: np.ndarray, learner: Learner, coins: Coins) -> tuple[np.ndarray, np.ndarray]:
    """The first version: ``(MSE [Q] of the claim on fresh models, estimated B_{>=2} [Q])`` from the outputs ``values``
    [4 n, Q] of the pairs.
    """
    s, (fresh, seeds) = coins.statement, coins.fresh
    own = learner(fresh, seeds).values
    away = {"claim": claim.predict, "mean": lambda _: own.mean(0), "nothing": lambda _: 0.0}[s.around]
    rest = (values - away(coins.pairs[0])).reshape(4, s.bases, -1)
    best = winsorised(rest, s.rho, s.winsor) if s.winsor else residual(rest, s.rho, s.constraint).value
    return np.square(own - claim.predict(fresh)).mean(0), best


def judge(claim: Attribution, answer: Outputs, learner: Learner, coins: Coins) -> tuple[np.ndarray, np.ndarray]:
    """``(MSE [Q] of the claim on fresh models, upper limit [Q] of its error)``, after the checks.

    Raises :class:`ProtocolError` for a rest with long tails, for none at all, and where one of the bases that are
    retrained differs; no base is retrained where the limit would not do anyway.
    """
    s, (fresh, seeds) = coins.statement, coins.fresh
    own = learner(fresh, seeds).values - claim.predict(fresh)
    mse = np.square(own).mean(0)
    if not (mse > 0).all():
        raise ProtocolError(f"the claim is exact on all {s.fresh} fresh models: its error cannot be measured")
    if not (kurtosis(own) <= s.kurtosis).all():
        raise ProtocolError(
            f"what the claim leaves has kurtosis {kurtosis(own).max():.1f}, and at most {s.kurtosis:.3g} is fit"
        )
    rest = (answer.values - claim.predict(coins.pairs[0])).reshape(4, s.bases, -1)
    square = square_of(mse, s)
    level = level_of(square, s)
    terms = np.clip(error_terms(rest, s.rho), -level, level)
    limit = error_limit(terms.mean(0), np.square(terms).mean(0), square, s)
    if (limit <= s.eps).all():
        spot_check(answer, learner, coins, coins.checked(chances(terms, level, s).max(1)))
    return mse, limit


def decide_by_limit(limit: np.ndarray, eps: float) -> tuple[bool, str]:
    """Accept iff at every test point the upper limit of the error is at most eps."""
    failed, over = int((limit > eps).sum()), f"the error is at most {limit.max() / eps:.2f} eps"
    return (False, f"{over}, too much at {failed} of {len(limit)} test points") if failed else (True, over)


def decide(mse: np.ndarray, best: np.ndarray, eps: float) -> tuple[bool, str]:
    """The first version: accept iff at every test point MSE <= best residual + eps / 2."""
    failed = int((mse > best + eps / 2).sum())
    over = f"MSE exceeds the best residual by {(mse - best).max() / eps:.2f} eps"
    if failed:
        return False, f"{over}, more than eps / 2 at {failed} of {len(mse)} test points"
    return True, f"{over}, nowhere by more than eps / 2"


class Verifier(Party):
    """One session: ``open()`` gives the first message, ``receive`` takes the prover's and returns the next;
    ``verdict`` is set when it has decided, once and for all. ``secret``: see :class:`Coins`.

    No message makes ``receive`` raise: what cannot be used ends in an abort with its reason.
    """

    def __init__(self, learner: Learner, statement: Statement, secret: bytes | None = None):
        check_learner(learner, statement)
        self.learner, self.statement = learner, statement
        self.coins = Coins(statement, learner.n, secret)
        self.session, self.verdict = self.coins.session, None

    def open(self) -> bytes:
        """The first message. Raises ``ValueError`` if the session has been opened or is over."""
        if self.number or self.verdict:
            raise ValueError("this session has been opened; make a new Verifier for another one.")
        body = {"statement": self.statement.to_json(), "promise": self.coins.promise}
        return self._send("open", body, "commit" if self.statement.form == "interactive" else "claim")

    def receive(self, raw: bytes) -> bytes:
        """The next message: the queries, or the verdict. After the verdict every message gets that verdict again."""
        if self.verdict is not None:
            return self._close(self.verdict)
        before = self.learner.trainings  # a prover may share the object: what he has trained is not counted here
        mse = best = limit = None
        try:
            body = self._read(decode(raw))
            if self.due == "commit":
                self.committed = hexadecimal(keys(body, "commitment")["commitment"], "the commitment")
                return self._ask()
            claim, answer = self._judged(body)
            if self.statement.rule == "limit":
                mse, limit = judge(claim, answer, self.learner, self.coins)
                accepted, reason = decide_by_limit(limit, self.statement.eps)
            else:
                mse, best = measure(claim, answer.values, self.learner, self.coins)
                accepted, reason = decide(mse, best, self.statement.eps)
        except ProtocolError as error:
            accepted, reason = False, str(error)
        except ValueError as error:  # its learner's: nothing that the message holds can make it train to nonsense
            accepted, reason = False, f"the verifier could not train: {error}"
        return self._close(Verdict(accepted, reason, self.learner.trainings - before, mse, best, limit))

    def _ask(self) -> bytes:
        subsets, seeds = self.coins.pairs
        return self._send("queries", {"subsets": pack(subsets), "seeds": pack(seeds)}, "answer")

    def _judged(self, body: dict) -> tuple[Attribution, Outputs]:
        """The claim, and the outputs of the pairs: the prover's (in the first version spot-checked), or the verifier's
        own.
        """
        if self.due == "answer":
            claim, answer = read_answer(body, self.committed, self.learner, self.statement)
            if self.statement.rule == "first":
                spot_check(answer, self.learner, self.coins, self.coins.checks)
            return claim, answer
        claim = read_claim(keys(body, "scores", "mean"), self.learner, self.statement.p)
        return claim, self.learner(*self.coins.pairs)

    def _close(self, verdict: Verdict) -> bytes:
        self.verdict = verdict
        body = {"accepted": verdict.accepted, "reason": verdict.reason, "secret": self.coins.secret.hex()}
        return self._send("verdict", body, "nothing")


def run(
    verifier: Verifier, prover: Prover, wire: Callable[[int, bytes], bytes] | None = None
) -> tuple[Verdict, Transcript]:
    """``(verdict, messages as sent)``. ``wire(number, raw) -> raw`` may change what travels: an adversary in between.

    A prover that cannot use a message stops; the verifier, hearing nothing more, aborts.
    """
    wire = wire or (lambda number, raw: raw)
    raw, sent = verifier.open(), []
    while True:
        sent.append(raw)
        try:
            reply = prover.receive(wire(len(sent) - 1, raw))
        except ProtocolError as error:
            return verifier.verdict or Verdict(False, f"the prover stopped: {error}", 0), sent
        if verifier.verdict is not None or reply is None:
            return verifier.verdict or Verdict(False, "the prover fell silent", 0), sent
        sent.append(reply)
        raw = verifier.receive(wire(len(sent) - 1, reply))


def audit(transcript: Transcript, learner: Learner, statement: Statement) -> Verdict:
    """The verdict of a finished session, found again from its messages and the secret that the last one reveals.

    Raises ``ValueError`` if the verifier did not follow the protocol: its messages, byte for byte, must be those that
    the secret dictates. The first of them holds the secret's hash, in both forms, so the coins were fixed before the
    claim was known. That is consistency, not honesty: a verifier in league with the prover can tell him its coins, or
    draw them until they suit him.
    """
    try:
        last = decode(transcript[-1])
        verifier = Verifier(learner, statement, bytes.fromhex(last.body["secret"]))
    except (ProtocolError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the transcript does not end in a verdict ({error}).") from None
    raw = verifier.open()
    for place, message in enumerate(transcript):
        if place % 2:
            raw = verifier.receive(message)
        elif raw != message:
            raise ValueError(
                f"message {place} is not what the verifier's secret dictates; it did not follow the protocol."
            )
    return verifier.verdict
