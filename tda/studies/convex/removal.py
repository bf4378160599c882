"""What removing a set of examples does to a fit: exactly, by influence, by rescaled influence, by a Newton step.

With g_i, H_i the gradient and Hessian of example i at the fit, H the Hessian of the whole objective and T the removed
set, the change theta_T - theta of the parameters is

    influence            H^-1 sum_T g_i
    rescaled influence   sum_T (H - H_i)^-1 g_i  =  H^-1 sum_T g_i / (1 - h_i),   h_i the leverage
    Newton step          (H - H_T)^-1 sum_T g_i,  H_T = sum_T H_i
    next order           Newton step D and then  -1/2 (H - H_T)^-1 sum over i not in T of loss'''_i (x_i . D)^2 x_i
    refit                the minimiser of the objective without T

Every function takes a fit and removed sets [S, k] (indices, all sets of one size, nobody twice in a set) and returns
the changes [S, d]: where the parameters go when the examples *leave*. Sources: Koh et al. (2019, groups); Rubinstein
and Hopkins (2025, rescaled influence); the next order is Taylor's theorem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tda.studies.convex.problem import SINGULAR, Fit

NO_DATA = "without it no data speak about some direction of the parameters. Give a ridge > 0 or keep some of them."
CHUNK = 2_000_000  # numbers in one temporary array: 16 MB


def influence(fit: Fit, removed: np.ndarray) -> np.ndarray:
    """H^-1 sum_T g_i: additive over the examples."""
    return fit.solve(_summed(fit, _checked(fit, removed), fit.slopes).T).T


def rescaled_influence(fit: Fit, removed: np.ndarray) -> np.ndarray:
    """Influence with each example's own curvature taken out: additive, each term 1 / (1 - h_i) times as long."""
    removed = _checked(fit, removed)
    if (left := 1 - fit.leverages)[removed].min() <= SINGULAR:
        raise ValueError(f"an example of a removed set has leverage 1: {NO_DATA}")
    return fit.solve(_summed(fit, removed, fit.slopes / left).T).T


def newton_step(fit: Fit, removed: np.ndarray) -> np.ndarray:
    """(H - H_T)^-1 sum_T g_i; for k < d through a k x k system (Woodbury), else by solving d x d."""
    removed = _checked(fit, removed)
    return np.concatenate([_solve_without(fit, part, _summed(fit, part, fit.slopes)) for part in _parts(fit, removed)])


def next_order(fit: Fit, removed: np.ndarray) -> np.ndarray:
    """The Newton step with the term that it leaves out: one more pass over the data, no iteration."""
    changes = []
    third = fit.problem.loss.third(fit.predictions, fit.problem.y)
    for part in _parts(fit, _checked(fit, removed)):
        step = newton_step(fit, part)
        pull = third * (step @ fit.problem.X.T) ** 2
        np.put_along_axis(pull, part, 0.0, axis=1)
        changes.append(step - 0.5 * _solve_without(fit, part, pull @ fit.problem.X))
    return np.concatenate(changes)


def refit(fit: Fit, removed: np.ndarray) -> np.ndarray:
    """The exact change, by Newton's method from the Newton step; tolerance and errors in :meth:`Problem.minimise`."""
    changes = []
    for part in _parts(fit, _checked(fit, removed)):
        start = fit.theta + newton_step(fit, part)
        changes.append(fit.problem.minimise(part, start, _hessians_without(fit, part)) - fit.theta)
    return np.concatenate(changes)


METHODS: dict[str, Callable[[Fit, np.ndarray], np.ndarray]] = {
    "influence": influence,
    "rescaled influence": rescaled_influence,
    "Newton step": newton_step,
}


def errors(fit: Fit, removed: np.ndarray) -> dict[str, np.ndarray]:
    """Norms [S] of parameter differences, for each removed set: of each method to the refit (by the method's name), of
    the refit to the fit (``change``), and of the Newton step to influence (``gap``).
    """
    exact = refit(fit, removed)
    changes = {name: method(fit, removed) for name, method in METHODS.items()}
    differences = {name: change - exact for name, change in changes.items()}
    differences |= {"change": exact, "gap": changes["Newton step"] - changes["influence"]}
    return {name: np.linalg.norm(difference, axis=1) for name, difference in differences.items()}


def _checked(fit: Fit, removed: np.ndarray) -> np.ndarray:
    removed, n = np.asarray(removed), len(fit.problem.y)
    if removed.ndim != 2 or not removed.size or removed.dtype.kind not in "iu":
        raise ValueError(f"removed sets {removed.shape} of {removed.dtype}: give indices [S, k] with S, k >= 1.")
    if removed.min() < 0 or removed.max() >= n:
        raise ValueError(f"removed sets hold {removed.min()} to {removed.max()}; indices are 0 to {n - 1}.")
    ordered = np.sort(removed, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("a removed set names an example twice; name each once.")
    least = 1 if fit.problem.ridge else len(fit.theta)
    if n - removed.shape[1] < least:
        raise ValueError(f"sets of {removed.shape[1]} of {n} examples leave too few to fit; remove fewer.")
    return removed.astype(np.int64)


def _parts(fit: Fit, removed: np.ndarray) -> Iterator[np.ndarray]:
    """Removed sets in parts whose temporary arrays stay below :data:`CHUNK` numbers."""
    n, d = fit.problem.X.shape
    step = max(1, CHUNK // max(n, removed.shape[1] * d, d * d))
    return (removed[start : start + step] for start in range(0, len(removed), step))


def _summed(fit: Fit, removed: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """sum_T factors_i x_i -> [S, d]."""
    parts = _parts(fit, removed)
    return np.concatenate([np.einsum("sk,skd->sd", factors[part], fit.problem.X[part]) for part in parts])


def _root(fit: Fit, removed: np.ndarray) -> np.ndarray:
    """A [S, k, d] with A^T A = H_T."""
    return np.sqrt(fit.weights[removed])[:, :, None] * fit.problem.X[removed]


def _hessians_without(fit: Fit, removed: np.ndarray) -> np.ndarray:
    root = _root(fit, removed)
    return fit.hessian - np.swapaxes(root, 1, 2) @ root


def _solve_without(fit: Fit, removed: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(H - H_T)^-1 right for each set, right [S, d] -> [S, d]."""
    (sets, k), d = removed.shape, right.shape[1]
    if k >= d:
        return _solve(_hessians_without(fit, removed), right, np.linalg.cholesky(fit.hessian))
    root = _root(fit, removed)
    solved = fit.solve(root.reshape(sets * k, d).T).T.reshape(sets, k, d)  # A H^-1
    inner = np.eye(k) - solved @ np.swapaxes(root, 1, 2)
    weights = _solve(inner, np.einsum("skd,sd->sk", solved, right), np.eye(k))
    return fit.solve(right.T).T + np.einsum("skd,sk->sd", solved, weights)


def _solve(matrices: np.ndarray, right: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """matrices^-1 right for [S, m, m] and [S, m]. ``whole`` is the Cholesky factor of what they are less than: where a
    diagonal of theirs is next to nothing of its diagonal, a direction has been removed with the set.
    """
    try:
        left = np.linalg.cholesky(matrices).diagonal(axis1=1, axis2=2) / whole.diagonal()
    except np.linalg.LinAlgError:
        left = np.zeros(1)
    if np.square(left).min() <= SINGULAR:
        raise ValueError(f"the Hessian without a removed set is singular: {NO_DATA}")
    return np.linalg.solve(matrices, right[:, :, None])[:, :, 0]
