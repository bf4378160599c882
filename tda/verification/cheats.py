"""Provers that do not play by the rules, and one that deviates harmlessly.

A cheat on the claim takes the honest :class:`Attribution` and returns another; each keeps the mean output, since a wrong
constant would be found at once. A cheat on the answer takes the subsets and the honest outputs of the prover's trainings.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from tda.verification.claims import Attribution
from tda.verification.learners import Learner, Outputs
from tda.verification.subsets import check_subsets


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


class Liar:
    """Wrong outputs on a share of the trainings, with fingerprints to match; see the three makers below."""

    def __init__(self, share: float, rng: np.random.Generator, lie):
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
        return other(check_subsets(subsets, other.n), np.full(len(subsets), seed)).values, None

    return Liar(share, rng, lie)


def inflating(share: float, rng: np.random.Generator, claim: Attribution, rho: float, limit: float) -> Liar:
    """The best liar that we know: tells base outputs so that the estimated residual grows most a lie.

    A base with rest g enters the estimate through -g D, D = sum of its partners' rests with the weights of the parabola; told
    -limit sign(D) it adds limit |D|. The bases with the largest |D| come first, then their partners' turn does not come.
    ``limit`` is how far from the claim it dares to go (2 at most; less where the verifier cuts).
    """

    def lie(subsets, values):
        rest = (values - claim.predict(subsets)).reshape(4, -1, values.shape[1])
        pull = (1 - 1.5 / rho) * rest[1] + 2 / rho * rest[2] - 0.5 / rho * rest[3]
        told = values.copy()
        bases = len(pull)
        told[:bases] = claim.predict(subsets[:bases]) - limit * np.sign(pull)
        order = np.argsort(-np.abs(pull).mean(1), kind="stable")
        return told, np.concatenate([order, np.arange(bases, len(values))])

    return Liar(share, rng, lie)
