"""Ways to choose the examples that are removed: ``CHOICES[name](fit, k, sets, rng)`` -> indices [sets, k].

The laws of :mod:`tda.studies.convex.laws` are about the first. In the others the removed gradients or curvatures agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tda.studies.convex.problem import Fit


def uniform(fit: Fit, k: int, sets: int, rng: np.random.Generator) -> np.ndarray:
    """k of n examples, uniform without replacement."""
    n = len(fit.problem.y)
    return np.stack([rng.choice(n, k, replace=False, shuffle=False) for _ in range(sets)])


def cluster(fit: Fit, k: int, sets: int, rng: np.random.Generator) -> np.ndarray:
    """A random example and its k - 1 nearest neighbours of the same label (Euclidean distance of the features).

    Where a label has fewer than k examples the nearest of the others fill up.
    """
    X, y = fit.problem.X, fit.problem.y
    centres = rng.integers(len(X), size=sets)
    nearness = 2 * X[centres] @ X.T - np.square(X).sum(1)  # minus the squared distance, up to a constant
    return _largest(np.where(y[centres, None] == y, nearness + 2 * np.abs(nearness).max(), nearness), k)


def high_loss(fit: Fit, k: int, sets: int, rng: np.random.Generator) -> np.ndarray:
    """The k examples of largest loss in a random half of the data."""
    losses = fit.problem.loss.value(fit.predictions, fit.problem.y)
    halves = uniform(fit, max(k, len(losses) // 2), sets, rng)
    return np.take_along_axis(halves, _largest(losses[halves], k), axis=1)


def one_direction(fit: Fit, k: int, sets: int, rng: np.random.Generator) -> np.ndarray:
    """The k examples whose gradients reach furthest along a random direction: they add up instead of cancelling."""
    directions = rng.standard_normal((sets, fit.problem.X.shape[1]))
    return _largest(fit.slopes * (directions @ fit.problem.X.T), k)


CHOICES: dict[str, Callable[[Fit, int, int, np.random.Generator], np.ndarray]] = {
    "random": uniform,
    "cluster": cluster,
    "high loss": high_loss,
    "one direction": one_direction,
}


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-values, axis=1, kind="stable")[:, :k]
