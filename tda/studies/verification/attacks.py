"""The best liars against either rule, and sessions fast enough to count how often they win.

A liar here knows the function, the bases, the rule and the laws of the verifier's coins; he does not know the coins.
Sessions draw their bases with replacement from a :class:`Pool` of evaluated ones and skip the messages; the verdict is
that of :mod:`verifier` (a test compares them). A pool is hardly larger than what a session draws, and its own noise
would be common to all sessions. So where the Fourier weights of g = f - claim are known (``energy`` [K]), the pool's
terms are shifted, and its squares scaled, to the means that these weights give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from tda.studies.verification.cube import Attribution, draw, with_partners
from tda.studies.verification.learner import Learner
from tda.studies.verification.limits import chances, error_limit, error_terms, leak, level_of, square_of
from tda.studies.verification.residual import base_terms, bias
from tda.studies.verification.statement import Statement

GUESSES = 4  # of the upper limit of E g^2 as the verifier will measure it, by which a liar chooses
TARGETS = (-1.0, -0.3, 0.0)  # terms that a liar reports, in units of the level
MOST = 400  # lies that are tried


class Session(NamedTuple):
    """``accepted``; how many ``lies``; ``checks``: trainings to check them; ``hope``: the liar's own chance."""

    accepted: bool
    lies: int
    checks: int
    hope: float


@dataclass(frozen=True)
class Pool:
    """f [4, count] and subsets [4, count, N] at bases and their partners, of a learner's first output."""

    subsets: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, learner: Learner, statement: Statement, count: int, rng: np.random.Generator) -> Pool:
        bases = draw(rng, count, learner.n, statement.p)
        subsets = with_partners(rng, bases, statement.p, statement.rho)
        flat = subsets.reshape(-1, learner.n)
        return cls(subsets, learner(flat, np.full(len(flat), statement.seed)).values[:, 0].reshape(4, count))

    def predicted(self, claim: Attribution) -> np.ndarray:
        """The claim's predictions [4, count]."""
        return claim.predict(self.subsets.reshape(-1, self.subsets.shape[-1]))[:, 0].reshape(self.outputs.shape)


def _expected(energy: np.ndarray, rho: float) -> float:
    """The mean of the terms of :func:`base_terms`: the residual B_{>=2}, and the bias of its estimate."""
    return energy[2:].sum() + bias(energy[:, None], rho)[0]


def _centred(terms: np.ndarray, squares: np.ndarray, mean: float, square: float) -> tuple[np.ndarray, np.ndarray]:
    return terms - terms.mean() + mean, squares * (square / squares.mean())


def lies_to_limit(terms: np.ndarray, squares: np.ndarray, statement: Statement) -> tuple[float, np.ndarray, float]:
    """``(chance to be accepted, places, target)`` of the best lies about ``terms`` [n]: bases, and the term that is
    reported there in units of the level; ``squares``: guesses of what the verifier measures.

    A lie from X to X' gains X - X' and is checked in proportion to level - X', so the largest terms are lied about
    first, and all are moved to one target, which is searched together with their number. Any term may be reported: a
    real liar is bound to outputs in [-1, 1].
    """
    n, most = len(terms), min(MOST, len(terms))
    order = np.argpartition(-terms, most - 1)[:most]
    order = order[np.argsort(-terms[order])]
    won, escaped = np.zeros((len(TARGETS), most + 1)), np.arange(most + 1)
    for square in squares:
        level = level_of(square, statement)
        clipped, told = np.clip(terms, -level, level), np.array(TARGETS)[:, None] * level
        mean = clipped.mean() + _from_zero(told - clipped[order]) / n
        power = np.square(clipped).mean() + _from_zero(told**2 - clipped[order] ** 2) / n
        passes = error_limit(mean, power, square, statement) <= statement.eps
        won += passes * (1 - chances(told, level, statement)) ** escaped / len(squares)
    target, lies = np.unravel_index(won.argmax(), won.shape)
    return float(won[target, lies]), order[:lies], TARGETS[target]


def _from_zero(steps: np.ndarray) -> np.ndarray:
    """Cumulative sums along the last axis, with 0 before the first."""
    return np.concatenate([np.zeros((len(steps), 1)), np.cumsum(steps, axis=1)], axis=1)


def meet_limit(pool: Pool, claim: Attribution, statement: Statement, runs: int, rng, lying, energy) -> list[Session]:
    """Sessions under rule "limit" about one claim, with or without the best lies."""
    rest, sessions = pool.outputs - pool.predicted(claim), []
    terms, squares = error_terms(rest[:, :, None], statement.rho)[:, 0], np.square(rest[0])
    if energy is not None:
        left = _expected(energy, statement.rho)
        terms, squares = _centred(terms, squares, (1 + leak(statement.rho)) * energy.sum() - left, energy.sum())
    for _ in range(runs):
        own = terms[rng.integers(0, len(terms), statement.bases)]
        fresh = squares[rng.integers(0, len(terms), (GUESSES + 1, statement.fresh))]
        admitted = 0 < np.square(fresh[0]).mean() <= statement.kurtosis * fresh[0].mean() ** 2
        guesses = square_of(fresh.mean(1), statement)
        hope, places, target = lies_to_limit(own, guesses[1:], statement) if lying else (0.0, [], 0.0)
        level = level_of(guesses[0], statement)
        told = np.clip(own, -level, level)
        told[places] = target * level
        checked = rng.random(len(told)) < chances(told, level, statement)
        limit = error_limit(told.mean(), np.square(told).mean(), guesses[0], statement)
        passed = admitted and limit <= statement.eps
        accepted = bool(passed and not checked[places].any())
        sessions.append(Session(accepted, len(places), 4 * int(checked.sum()) if passed else 0, hope))
    return sessions


def lies_to_first(terms: np.ndarray, error: tuple[float, float], statement: Statement) -> tuple[float, int, float]:
    """``(chance to be accepted, lies, estimate)`` of the best lies about residual ``terms`` [n] in the first version.

    A lie moves a term beyond the upper quantile, and gains most where the *winsorised* term is smallest. ``error``: the
    claim's mse, and the standard error with which the verifier measures it.
    """
    order, best = np.argsort(terms), (-1.0, 0, 0.0)
    for count in (0, *np.unique(np.geomspace(2, len(terms) // 20, 14).astype(int)).tolist()):
        told = terms.copy()
        told[order[:count]] = 2 * np.abs(terms).max()
        left = _pulled_in(told, statement.winsor)
        passes = stats.norm.cdf((left + statement.eps / 2 - error[0]) / error[1])
        best = max(best, (float(passes) * _escape(count, statement), count, left))
    return best


def _pulled_in(terms: np.ndarray, share: float) -> float:
    return float(np.clip(terms, *np.quantile(terms, [share, 1 - share])).mean())


def _escape(lies: int, statement: Statement) -> float:
    return float(stats.hypergeom.pmf(0, 4 * statement.bases, lies, statement.checks))


def meet_first(pool: Pool, claim: Attribution, statement: Statement, runs: int, rng, lying, energy) -> list[Session]:
    """The same sessions under the first version (rule "first", winsorised)."""
    rest, sessions = pool.outputs - pool.predicted(claim), []
    terms, squares = base_terms(rest[:, :, None], statement.rho)[:, 0], np.square(rest[0])
    if energy is not None:
        left = _expected(energy, statement.rho)
        terms, squares = _centred(terms, squares, left, energy.sum())
    error = float(squares.mean()), float(squares.std() / np.sqrt(statement.fresh))
    for _ in range(runs):
        own = terms[rng.integers(0, len(terms), statement.bases)]
        hope, lies, left = (
            lies_to_first(own, error, statement) if lying else (0.0, 0, _pulled_in(own, statement.winsor))
        )
        mse = squares[rng.integers(0, len(terms), statement.fresh)].mean()
        accepted = bool(mse <= left + statement.eps / 2 and rng.random() < _escape(lies, statement))
        sessions.append(Session(accepted, lies, statement.checks, hope))
    return sessions


def meet(
    pool: Pool, claim: Attribution, statement: Statement, runs: int, rng, lying: bool = True, energy=None
) -> list[Session]:
    """``runs`` sessions about a claim under the statement's rule, with or without the best lies."""
    return (meet_limit if statement.rule == "limit" else meet_first)(pool, claim, statement, runs, rng, lying, energy)
