"""The prover: how it comes by scores, commits to them, trains what it is asked to train, and answers."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import Lasso, lasso_path

from tda.studies.verification.cube import Attribution, draw
from tda.studies.verification.learner import Learner, Outputs
from tda.studies.verification.messages import (
    Message,
    Party,
    ProtocolError,
    decode,
    hexadecimal,
    keys,
    pack,
    sha256,
    unpack,
)
from tda.studies.verification.statement import Statement, check_learner

Alter = Callable[[np.ndarray, Outputs], Outputs]


def least_squares(subsets: np.ndarray, outputs: np.ndarray, p: float, rng=None) -> Attribution:
    """Regression of ``outputs`` [M, Q] on inclusion, with a constant. Its error is about B_{>=2} N / (M - N) for M >
    N.
    """
    design = np.column_stack([np.ones(len(subsets)), subsets - p])
    coefficients = np.linalg.lstsq(design, outputs, rcond=None)[0]
    return Attribution(coefficients[1:].T, coefficients[0], p)


def empirical_influence(subsets: np.ndarray, outputs: np.ndarray, p: float, rng=None) -> Attribution:
    """Mean output with example i minus mean output without it, of the same subsets for all i (0 if one side is empty).

    Not a regression: the noise of each score is the *whole* variance of f, so the error is about Var f N / M.
    """
    count = subsets.sum(0)[None]
    total, inside = outputs.sum(0)[:, None], outputs.T @ subsets
    both = (count > 0) & (count < len(subsets))
    without = (total - inside) / np.maximum(len(subsets) - count, 1)
    return Attribution(np.where(both, inside / np.maximum(count, 1) - without, 0.0), outputs.mean(0), p)


def lasso(subsets: np.ndarray, outputs: np.ndarray, p: float, rng: np.random.Generator) -> Attribution:
    """L1-penalised regression, as in datamodels; the penalty is chosen on a held-out quarter of the subsets."""
    design, held = subsets - p, rng.permutation(len(subsets)) < len(subsets) // 4
    scores, means = [], []
    for y in outputs.T:
        centre, shift = design[~held].mean(0), y[~held].mean()
        penalties, paths, _ = lasso_path(design[~held] - centre, y[~held] - shift, alphas=30, eps=1e-2)
        wrong = np.square((design[held] - centre) @ paths + shift - y[held][:, None]).mean(0)
        fitted = Lasso(alpha=penalties[wrong.argmin()], max_iter=5000).fit(design, y)
        scores.append(fitted.coef_)
        means.append(fitted.intercept_)
    return Attribution(np.array(scores), np.array(means), p)


FITS = {"least_squares": least_squares, "empirical_influence": empirical_influence, "lasso": lasso}


def fit(method: str, learner: Learner, budget: int, p: float, rng: np.random.Generator, seed: int = 0) -> Attribution:
    """An attribution from ``budget`` trainings of the learner on random subsets, all with this seed."""
    if method not in FITS:
        raise ValueError(f"method {method!r}; fitted are {sorted(FITS)}, anything in the registry by `registered`.")
    if budget < 4:
        raise ValueError(f"budget={budget}; a prover needs at least 4 trainings.")
    subsets = draw(rng, budget, learner.n, p)
    return FITS[method](subsets, learner(subsets, np.full(budget, seed)).values, p, rng)


def registered(
    method: str, learner: Learner, budget: int, p: float, rng: np.random.Generator, seed: int = 0, **options
) -> Attribution:
    """An attribution by any method of the registry (``tda.attribute``) on the learner's task, brought to the output's
    unit.

    The method gives the direction of the scores from one trained model; the constant and the scale are a regression of
    the outputs of ``budget`` trainings on the sum of the scores over each subset, two numbers an output.
    """
    from tda.attribution import attribute

    task, train, queries = learner.task(seed)
    raw = np.asarray(attribute(method, task, train, queries, **options), np.float64)
    subsets = draw(rng, budget, learner.n, p)
    outputs = learner(subsets, np.full(budget, seed)).values
    sums = (subsets - p) @ raw.T
    centred = sums - sums.mean(0)
    scale = (centred * outputs).sum(0) / np.maximum(np.square(centred).sum(0), np.finfo(float).tiny)
    return Attribution(raw * scale[:, None], outputs.mean(0) - scale * sums.mean(0), p)


def commitment(claim: Attribution, salt: str) -> str:
    """SHA-256 of salt, scores and mean (float64, little endian): binds the claim and hides it."""
    parts = (bytes.fromhex(salt), claim.scores.astype("<f8").tobytes(), claim.mean.astype("<f8").tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


class Prover(Party):
    """One run of the prover's side; ``receive`` takes a message of the verifier and returns the answer to it.

    ``attribution`` is what it claims. ``alter(subsets, outputs) -> outputs`` may change its answer: a lying prover
    (:mod:`tda.studies.verification.cheats`). ``salt``: 64 hexadecimal digits, drawn unless given. ``verdict``: the body
    of the verifier's verdict, the first that reveals the promised coins; after it every message is ignored. Raises
    :class:`ProtocolError` for messages that do not follow the protocol, ``ValueError`` where learner, statement and
    claim do not belong together.
    """

    def __init__(
        self, learner: Learner, statement: Statement, attribution: Attribution, alter: Alter | None = None, salt=None
    ):
        check_learner(learner, statement)
        if attribution.scores.shape != (learner.points, learner.n) or attribution.p != statement.p:
            raise ValueError(
                f"scores {attribution.scores.shape} at p={attribution.p}; the statement is about {learner.points} test "
                f"points, {learner.n} examples and p={statement.p}."
            )
        self.learner, self.statement, self.attribution, self.alter = learner, statement, attribution, alter
        self.salt = salt or secrets.token_hex(32)
        self.promise, self.due, self.verdict = "", "open", None

    def receive(self, raw: bytes) -> bytes | None:
        if self.verdict is not None:
            return None
        message = decode(raw)
        if self.due == "open":
            self.session = hexadecimal(message.session, "session")
        elif message.kind == "verdict" and message.session == self.session:
            return self._believe(message)  # an abort may come early, and after a message that was lost
        body = self._read(message)
        return self._commit(body) if self.due == "open" else self._answer(body)

    def _claim(self) -> dict:
        return {"scores": pack(self.attribution.scores), "mean": pack(self.attribution.mean)}

    def _commit(self, body: dict) -> bytes:
        if keys(body, "statement", "promise")["statement"] != self.statement.to_json():
            raise ProtocolError("the verifier's statement is not the one that was agreed on")
        self.promise = hexadecimal(body["promise"], "the promise")
        if self.statement.form == "non-interactive":
            return self._send("claim", self._claim(), "verdict")
        return self._send("commit", {"commitment": commitment(self.attribution, self.salt)}, "queries")

    def _answer(self, body: dict) -> bytes:
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

    def _believe(self, message: Message) -> None:
        body = keys(message.body, "accepted", "reason", "secret")
        if type(body["accepted"]) is not bool or not isinstance(body["reason"], str):
            raise ProtocolError("a verdict says true or false, and why in words")
        if sha256(bytes.fromhex(hexadecimal(body["secret"], "the secret"))) != self.promise:
            raise ProtocolError("the verdict does not reveal the coins that were promised")
        if body["accepted"]:
            self._read(message)
        self.verdict, self.due = body, "nothing"
