"""Provers that do not play by the rules, and one that deviates harmlessly.

A cheat on the claim takes the honest :class:`Attribution` and returns another; each keeps the mean output, since a
wrong constant would be found at once. A cheat on the answer takes the subsets and the honest outputs of the prover's
trainings.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tda.verification.claims import Attribution
from tda.verification.learners import Learner, Outputs
from tda.verification.messages import decode, encode, pack
from tda.verification.residual import slopes


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


def gallery(best: Attribution, eps: float, other: Attribution) -> dict[str, Attribution | Callable]:
    """False claims, each with an error above eps if B_1 > 4.5 eps, as :func:`repeat` takes them. ``other``: the
    scores of a stale model.
    """
    n, unit = best.scores.shape[1], 1.5 * eps / (best.p * (1 - best.p))
    coalition = np.arange(n) < n // 4
    return {
        "halved": scaled(best, 0.5),
        "boosted coalition": boosted(best, coalition, np.sqrt(unit / coalition.sum())),
        "boosted: one example": boosted(best, np.arange(1), np.sqrt(unit)),
        "shuffled": lambda rng: shuffled(best, rng),
        "stale": other,
        "sparse: a sixth kept": sparse(best, n // 6),
    }


def rounded(rng, claim) -> Callable[[np.ndarray, Outputs], Outputs]:
    """Harmless: outputs rounded to nine digits, true fingerprints."""
    return lambda subsets, outputs: Outputs(np.round(outputs.values, 9), outputs.fingerprints)


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


class Liar:
    """Wrong outputs on a share of the trainings, with fingerprints to match; see the three makers below."""

    def __init__(self, share: float, rng: np.random.Generator | None, lie):
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}; the share of trainings that are lied about lies in [0, 1].")
        self.share, self.rng, self.lie = share, rng, lie

    def __call__(self, subsets: np.ndarray, outputs: Outputs) -> Outputs:
        values, prints = outputs.values.copy(), outputs.fingerprints.copy()
        told, order = self.lie(subsets, values)
        count = round(self.share * len(values))
        chosen = self.rng.permutation(len(values))[:count] if order is None else order[:count]
        values[chosen] = np.clip(told[chosen], -1, 1)
        for place in chosen:
            prints[place] = np.frombuffer(hashlib.sha256(values[place].tobytes()).digest(), np.uint8)
        return Outputs(values, prints)


def swapped(share: float, rng: np.random.Generator) -> Liar:
    """True outputs of *other* subsets."""
    return Liar(share, rng, lambda subsets, values: (np.roll(values, 1, axis=0), None))


def lazy(share: float, rng: np.random.Generator, other: Learner, seed: int = 0) -> Liar:
    """Outputs of ``other``, a cheaper or a wrong learner: trained for fewer epochs, on swapped labels."""

    def lie(subsets, values):
        return other(subsets, np.full(len(subsets), seed)).values, None

    return Liar(share, rng, lie)


def inflating(share: float, claim: Attribution, rho: float) -> Liar:
    """The best liar that we know: inflates the estimated residual, so that a bad claim looks unavoidable.

    A base with rest g = f - claim enters the estimate through -g D, D the weighted sum of its partners' rests. Told
    -sign(D) as far from the claim as [-1, 1] allows, it adds the most. Bases with the largest |D| come first,
    partners last.
    """

    def lie(subsets, values):
        rest = (values - claim.predict(subsets)).reshape(4, -1, values.shape[1])
        pull = np.tensordot(slopes(rho), rest[1:], 1)
        told = values.copy()
        told[: len(pull)] = -np.sign(pull)
        return told, np.concatenate(
            [np.argsort(-np.abs(pull).mean(1), kind="stable"), np.arange(len(pull), len(values))]
        )

    return Liar(share, None, lie)


def shading(tolerance: float, claim: Attribution, rho: float) -> Callable[[np.ndarray, Outputs], Outputs]:
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
