"""How much of a false claim's error can clipping hide? An exact search over functions and claims.

For a function of few examples every joint state of a base and its partners can be listed with its probability, so that
E T - E X of :mod:`limits` is exact for any function and any claim. The search looks for the weights of g (the error of
the claim in degree 1, the rest in higher degrees) that hide most, among those whose kurtosis a verifier admits.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
from scipy import optimize

from tda.studies.verification.limits import KURTOSIS, clip_level, error_terms


def states(p: float, rho: float, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [examples, 4, S] at a base and its partners in every state, and the probability [S] of each.

    One coordinate has 12 states: the base's value, the fresh draw, and how many of the last two partners keep the
    base's (none with probability 1 - 2 rho; only the last, or both, with rho each).
    """
    value, mass = (np.sqrt((1 - p) / p), -np.sqrt(p / (1 - p))), (p, 1 - p)
    one = [
        (
            [value[b], value[f], value[b] if kept == 2 else value[f], value[b] if kept else value[f]],
            mass[b] * mass[f] * q,
        )
        for b, f, (kept, q) in itertools.product((0, 1), (0, 1), ((0, 1 - 2 * rho), (1, rho), (2, rho)))
    ]
    places = np.array(list(itertools.product(range(12), repeat=examples)))
    at, chance = np.array([values for values, _ in one]), np.array([q for _, q in one])
    return at[places].transpose(1, 2, 0), chance[places].prod(1)


def hidden(g: np.ndarray, chance: np.ndarray, level: float, rho: float) -> tuple[float, float]:
    """``(E T - E X, kurtosis)`` over E g^2 of ``g`` [4, S], for a level in units of E g^2."""
    g = g / np.sqrt(chance @ np.square(g[0]))
    terms = error_terms(g[:, :, None], rho)[:, 0]
    return float(chance @ (terms - np.clip(terms, -level, level))), float(chance @ g[0] ** 4)


def most_hidden(
    p: float,
    rho: float,
    clip: float,
    trials: int,
    rng: np.random.Generator,
    admitted: float = KURTOSIS,
    examples: int = 3,
):
    """``(largest E T - E X found, its kurtosis, its err)`` over E g^2, for a level of ``clip`` units
    and a kurtosis of at most ``admitted``.

    Random weights, and random changes to the best so far; the products of one, two, ... ``examples`` coordinates.
    """
    at, chance = states(p, rho, examples)
    sets = [s for degree in range(1, examples + 1) for s in itertools.combinations(range(examples), degree)]
    products, linear = np.stack([at[list(s)].prod(0) for s in sets]), np.array([len(s) == 1 for s in sets])
    level, best = clip * clip_level(rho, p, admitted), (-np.inf, 0.0, None)
    for trial in range(trials):
        if best[2] is None or trial % 4 == 0:
            weights = rng.normal(size=len(sets)) * np.exp(rng.normal(size=len(sets)))
            weights *= rng.random(len(sets)) < rng.choice([0.2, 0.5, 1.0])
        else:
            step = rng.normal(size=len(sets)) * (rng.random(len(sets)) < 0.5)
            weights = best[2] + step * rng.choice([0.02, 0.06, 0.2]) * np.abs(best[2]).max()
        if not np.square(weights[linear]).sum() > 0:
            continue
        cut, kurtosis = hidden(np.tensordot(weights, products, 1), chance, level, rho)
        if kurtosis <= admitted and cut > best[0]:
            best = cut, kurtosis, weights
    return best[0], best[1], float(np.square(best[2][linear]).sum() / np.square(best[2]).sum())


def counted(p: float, rho: float, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """How many of the examples are in, [4, S] at a base and its partners, in every state, and its probability [S]."""
    at, chance = states(p, rho, 1)
    inside, total = (at[0] > 0).astype(int).T, {(0, 0, 0, 0): 1.0}
    for _ in range(examples):
        longer = defaultdict(float)
        for (count, mass), (step, q) in itertools.product(total.items(), zip(inside, chance, strict=True)):
            longer[tuple(np.add(count, step).tolist())] += mass * q
        total = longer
    return np.array(list(total)).T, np.array(list(total.values()))


def most_hidden_by_count(
    p: float,
    rho: float,
    clip: float,
    trials: int,
    rng: np.random.Generator,
    admitted: float = KURTOSIS,
    examples: int = 6,
    table: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[float, float]:
    """``(largest E T - E X found, its kurtosis)`` over E g^2, for functions of how many of the examples are in.

    The simplex method of Nelder and Mead on the values g(0), ..., g(examples), from an AND, a square, and random
    values. ``table``: that of :func:`counted`, where it is at hand.
    """
    (count, chance), number = table or counted(p, rho, examples), np.arange(examples + 1.0)
    level, best = clip * clip_level(rho, p, admitted), (-np.inf, 0.0)

    def loss(values):
        cut, kurtosis = hidden(values[count], chance, level, rho)
        return -cut * clip**2 + 50 * max(0.0, kurtosis / admitted - 1)

    for trial in range(trials):
        above = number - examples * p
        start = [number == examples, np.where(above > 0, above**2, 0.1 * above)]
        values = start[trial] if trial < 2 else rng.normal(size=len(number)) * np.exp(rng.normal(size=len(number)))
        values = values + 0.05 * rng.normal(size=len(number))
        found = hidden(
            optimize.minimize(loss, values, method="Nelder-Mead", options={"maxfev": 400}).x[count], chance, level, rho
        )
        if found[1] <= admitted:
            best = max(best, found)
    return best
