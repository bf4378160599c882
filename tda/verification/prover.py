"""The prover: commits to an attribution, trains what it is asked to train, and answers."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

import numpy as np

from tda.verification.claims import Attribution
from tda.verification.learners import Learner, Outputs
from tda.verification.messages import (
    Message,
    ProtocolError,
    decode,
    encode,
    expect,
    hexadecimal,
    keys,
    pack,
    sha256,
    unpack,
)
from tda.verification.statement import Statement

Alter = Callable[[np.ndarray, Outputs], Outputs]


def commitment(scores: np.ndarray, mean: np.ndarray, salt: str) -> str:
    """SHA-256 of salt, scores and mean (float64, little endian): binds the claim and hides it."""
    parts = (
        bytes.fromhex(salt),
        np.ascontiguousarray(scores, "<f8").tobytes(),
        np.ascontiguousarray(mean, "<f8").tobytes(),
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()


class Prover:
    """One run of the prover's side; ``receive`` takes a message of the verifier and returns the answer to it.

    ``attribution`` is what it claims. ``alter(subsets, outputs) -> outputs`` may change its answer: a lying prover
    (:mod:`tda.verification.cheats`). ``salt``: 64 hexadecimal digits, drawn unless given. ``verdict``: the body of the
    verifier's verdict, the first that reveals the promised coins; after it every message is ignored. Raises
    :class:`ProtocolError` for messages that do not follow the protocol.
    """

    def __init__(
        self, learner: Learner, statement: Statement, attribution: Attribution, alter: Alter | None = None, salt=None
    ):
        check_claim(learner, statement, attribution)
        self.learner, self.statement, self.attribution, self.alter = learner, statement, attribution, alter
        self.salt = salt or secrets.token_hex(32)
        self.session = self.last = self.promise = ""
        self.number, self.due, self.verdict = 0, "open", None

    def receive(self, raw: bytes) -> bytes | None:
        if self.verdict is not None:
            return None
        message = decode(raw)
        if self.due == "open":
            self.session = hexadecimal(message.session, "session")
        elif message.kind == "verdict" and message.session == self.session:
            return self._verdict(message)  # an abort may come early, and after a message that was lost
        body = expect(message, self.session, self.number, self.due, self.last)
        self.last, self.number = message.digest, self.number + 1
        return self._open(body) if self.due == "open" else self._queries(body)

    def _send(self, kind: str, body: dict, due: str) -> bytes:
        raw, self.last = encode(self.session, self.number, kind, self.last, body)
        self.number, self.due = self.number + 1, due
        return raw

    def _claim(self) -> dict:
        return {"scores": pack(self.attribution.scores), "mean": pack(self.attribution.mean)}

    def _open(self, body: dict) -> bytes:
        if keys(body, "statement", "promise")["statement"] != self.statement.to_json():
            raise ProtocolError("the verifier's statement is not the one that was agreed on")
        self.promise = hexadecimal(body["promise"], "the promise")
        if self.statement.form == "non-interactive":
            return self._send("claim", self._claim(), "verdict")
        committed = commitment(self.attribution.scores, self.attribution.mean, self.salt)
        return self._send("commit", {"commitment": committed}, "queries")

    def _queries(self, body: dict) -> bytes:
        count = 4 * self.statement.bases
        keys(body, "subsets", "seeds")
        subsets = unpack(body["subsets"], "bits", (count, self.learner.n), "subsets")
        seeds = unpack(body["seeds"], "<i8", (count,), "seeds")
        if (seeds < 0).any():
            raise ProtocolError("seeds must not be negative")
        outputs = self.learner(subsets, seeds)
        if self.alter is not None:
            outputs = self.alter(subsets, outputs)
        answer = self._claim() | {"salt": self.salt, "outputs": pack(outputs.values)}
        return self._send("answer", answer | {"fingerprints": pack(outputs.fingerprints)}, "verdict")

    def _verdict(self, message: Message) -> None:
        body = keys(message.body, "accepted", "reason", "secret")
        if type(body["accepted"]) is not bool or not isinstance(body["reason"], str):
            raise ProtocolError("a verdict says true or false, and why in words")
        if sha256(bytes.fromhex(hexadecimal(body["secret"], "the secret"))) != self.promise:
            raise ProtocolError("the verdict does not reveal the coins that were promised")
        if body["accepted"]:
            expect(message, self.session, self.number, self.due, self.last)
        self.verdict, self.due = body, "nothing"


def check_claim(learner: Learner, statement: Statement, attribution: Attribution) -> None:
    """Raises ``ValueError`` where a learner, a statement and a claim do not belong together."""
    check_learner(learner, statement)
    if attribution.scores.shape != (learner.points, learner.n) or attribution.p != statement.p:
        raise ValueError(
            f"scores {attribution.scores.shape} at p={attribution.p}; the statement is about {learner.points} test "
            f"points, {learner.n} examples and p={statement.p}."
        )


def check_learner(learner: Learner, statement: Statement) -> None:
    """Raises ``ValueError`` where a learner is not the statement's, or cannot promise the bits that its check
    compares.
    """
    if learner.spec() != statement.learner:
        raise ValueError("the learner is not the statement's; build it with build(statement.learner).")
    if statement.tolerance is None and not learner.exact and statement.form == "interactive":
        raise ValueError(
            f"learner {statement.learner['learner']!r} does not train to the same bits in other company; compare "
            f"outputs (give a tolerance, at most eps * rho / 32), or make it exact (network: at_once=1)."
        )
