"""Provers that do not play by the rules, one that deviates harmlessly, and messages that are damaged on their way.

A cheat on the claim takes the honest :class:`Attribution` and returns another; each keeps the mean output, since a
wrong constant would be found at once. A cheat on the answer takes the subsets and the honest outputs of the prover's
trainings.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tda.studies.verification.cube import Attribution
from tda.studies.verification.learner import Learner, Outputs
from tda.studies.verification.limits import error_terms, leak
from tda.studies.verification.messages import decode, encode, pack
from tda.studies.verification.prover import Alter, Prover
from tda.studies.verification.residual import slopes
from tda.studies.verification.statement import Statement
from tda.studies.verification.verifier import Verdict, Verifier, run


def scaled(claim: Attribution, factor: float = 0.5) -> Attribution:
    """All scores times ``factor``: who pays by score pays less. Adds (1 - factor)^2 B_1 to the MSE."""
    return replace(claim, scores=factor * claim.scores)


def boosted(claim: Attribution, coalition: np.ndarray, amount: float) -> Attribution:
    """``amount`` more for every example of the coalition. Adds p (1 - p) |coalition| amount^2."""
    scores = claim.scores.copy()
    scores[:, coalition] += amount
    return replace(claim, scores=scores)


def shuffled(claim: Attribution, rng: np.random.Generator) -> Attribution:
    """The right scores, given to the wrong examples. Adds 2 B_1 on average, less what the scores have in common."""
    return replace(claim, scores=claim.scores[:, rng.permutation(claim.scores.shape[1])])


def sparse(claim: Attribution, keep: int) -> Attribution:
    """Only the ``keep`` largest scores of every test point; the others are set to zero."""
    smallest = np.argsort(-np.abs(claim.scores), axis=1)[:, keep:]
    scores = claim.scores.copy()
    np.put_along_axis(scores, smallest, 0.0, axis=1)
    return replace(claim, scores=scores)


def shaken(claim: Attribution, error: float, rng: np.random.Generator) -> Attribution:
    """Noise of a given size: its part of the MSE is exactly ``error``. Harmless when that is small against eps."""
    noise = rng.normal(size=claim.scores.shape)
    noise *= np.sqrt(error / (claim.p * (1 - claim.p) * np.square(noise).sum(1, keepdims=True)))
    return replace(claim, scores=claim.scores + noise)


def gallery(best: Attribution, eps: float, stale: Attribution) -> dict[str, Attribution | Callable]:
    """False claims, each with an error above eps if B_1 > 4.5 eps, as :func:`repeat` of the experiments takes them.
    ``stale``: the scores of another model.
    """
    n, unit = best.scores.shape[1], 1.5 * eps / (best.p * (1 - best.p))
    coalition = np.arange(n) < n // 4
    return {
        "halved": scaled(best, 0.5),
        "boosted coalition": boosted(best, coalition, np.sqrt(unit / coalition.sum())),
        "boosted: one example": boosted(best, np.arange(1), np.sqrt(unit)),
        "shuffled": lambda rng: shuffled(best, rng),
        "stale": stale,
        "sparse: a sixth kept": sparse(best, n // 6),
    }


def rounded(rng, claim) -> Alter:
    """Harmless: outputs rounded to nine digits, true fingerprints."""
    return lambda subsets, outputs: Outputs(np.round(outputs.values, 9), outputs.fingerprints)


def lying(outputs: Outputs, places: np.ndarray, told: np.ndarray) -> Outputs:
    """The outputs with ``told`` [M, Q] at these places, and fingerprints to match."""
    values, prints = outputs.values.copy(), outputs.fingerprints.copy()
    values[places] = np.clip(told[places], -1, 1)
    for place in places:
        prints[place] = np.frombuffer(hashlib.sha256(values[place].tobytes()).digest(), np.uint8)
    return Outputs(values, prints)


def swapped(share: float, rng: np.random.Generator) -> Alter:
    """True outputs of *other* subsets, on a random ``share`` of the trainings."""
    _check_share(share)

    def alter(subsets, outputs):
        places = rng.permutation(len(subsets))[: round(share * len(subsets))]
        return lying(outputs, places, np.roll(outputs.values, 1, axis=0))

    return alter


def inflating(share: float, claim: Attribution, rho: float) -> Alter:
    """The best liar of the first version's own gallery: inflates the estimated residual, so that a bad claim looks
    unavoidable. (:func:`clever` is better: it knows that terms are winsorised.)

    A base with rest g = f - claim enters the estimate through -g D, D the weighted sum of its partners' rests. Told
    -sign(D) as far from the claim as [-1, 1] allows, it adds the most. Bases with the largest |D| come first,
    partners last.
    """
    _check_share(share)

    def alter(subsets, outputs):
        rest = (outputs.values - claim.predict(subsets)).reshape(4, -1, outputs.values.shape[1])
        pull = np.tensordot(slopes(rho), rest[1:], 1)
        told = outputs.values.copy()
        told[: len(pull)] = -np.sign(pull)
        first = np.argsort(-np.abs(pull).mean(1), kind="stable")
        order = np.concatenate([first, np.arange(len(pull), len(told))])
        return lying(outputs, order[: round(share * len(told))], told)

    return alter


def clever(claim: Attribution, rho: float, lies: int) -> Alter:
    """The best lies that we know (:mod:`attacks` says how many): on the bases whose term of the error is largest.

    There the reported base output makes the term as small as [-1, 1] allows, so that the error looks smaller; in the
    first version the same lies make the residual look larger, *after* its terms are pulled in.
    """

    def alter(subsets, outputs):
        predicted = claim.predict(subsets)
        rest = (outputs.values - predicted).reshape(4, -1, outputs.values.shape[1])
        pull = np.tensordot(slopes(rho), rest[1:], 1)
        order = np.argsort(-error_terms(rest, rho).mean(1), kind="stable")
        told = outputs.values.copy()
        told[: len(pull)] = predicted[: len(pull)] - 2 * pull / leak(rho)  # where the term, a parabola, is smallest
        return lying(outputs, order[:lies], told)

    return alter


def shading(tolerance: float, claim: Attribution, rho: float) -> Alter:
    """Every output wrong by just less than ``tolerance``, in the direction that inflates the estimated residual.

    No spot check notices: this is why a :class:`Statement` allows a small tolerance only.
    """

    def alter(subsets, outputs):
        rest = (outputs.values - claim.predict(subsets)).reshape(4, -1, outputs.values.shape[1])
        weights = slopes(rho)[:, None, None]
        off = np.concatenate([(weights * rest[1:]).sum(0)[None], weights * rest[0]])
        told = outputs.values - 0.999 * tolerance * np.sign(off).reshape(outputs.values.shape)
        return Outputs(np.clip(told, -1, 1), outputs.fingerprints)

    return alter


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}; the share of trainings that are lied about lies in [0, 1].")


DAMAGES = ("replayed", "reordered", "truncated", "a bit flipped", "bytes lost", "scores exchanged")


def damaged(kind: str, sent: list[bytes], other: list[bytes], rng: np.random.Generator) -> bytes:
    """What arrives instead of the answer ``sent[3]`` of a session; ``other`` is the transcript of an earlier one.

    ``scores exchanged`` has a valid digest: somebody in between, who halves the scores and signs anew.
    """
    raw, at = sent[3], int(rng.integers(1, len(sent[3]) - 1))
    if kind == "scores exchanged":
        message = decode(raw)
        scores = np.frombuffer(base64.b64decode(message.body["scores"]["data"]), "<f8") / 2
        body = message.body | {"scores": pack(scores.reshape(message.body["scores"]["shape"]))}
        return encode(message.session, message.number, message.kind, message.previous, body)[0]
    if kind not in DAMAGES:
        raise ValueError(f"damage {kind!r}; one of {DAMAGES}.")
    flipped = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    made = {"truncated": raw[:at], "a bit flipped": flipped, "bytes lost": raw[:at] + raw[at + 3 :]}
    return (made | {"replayed": other[3], "reordered": sent[1]})[kind]


def damaged_session(
    kind: str, learner: Learner, statement: Statement, claim: Attribution, rng: np.random.Generator
) -> Verdict:
    """The verdict of an interactive session in which the answer is damaged on its way (:data:`DAMAGES`)."""
    prover = [Prover(learner, statement, claim, None, "00" * 32) for _ in range(2)]
    earlier = run(Verifier(learner, statement, rng.bytes(32)), prover[0])[1]
    verifier, seen = Verifier(learner, statement, rng.bytes(32)), []

    def wire(number: int, raw: bytes) -> bytes:
        seen.append(raw)
        return damaged(kind, seen, earlier, rng) if number == 3 else raw

    return run(verifier, prover[1], wire)[0]


def damaged_sessions(count: int, learner: Learner, statement: Statement, claim: Attribution, rng: np.random.Generator):
    """``(accepted, raised, reasons)`` of ``count`` damaged sessions, every kind in turn: how many were accepted, how
    many ended in an exception (both should be 0), and a ``Counter`` of (kind, reason of the abort).
    """
    accepted, raised, reasons = 0, 0, Counter()
    for i in range(count):
        kind = DAMAGES[i % len(DAMAGES)]
        try:
            verdict = damaged_session(kind, learner, statement, claim, rng)
        except Exception:  # whatever it is, it would end a verifier
            raised += 1
            continue
        accepted += verdict.accepted
        reasons[kind, verdict.reason.split("(")[0].strip()[:60]] += 1
    return accepted, raised, reasons
