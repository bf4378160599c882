"""A linear model with a convex loss, its exact fit, and the fit without some examples.

    F_T(theta) = sum over i not in T of loss(x_i . theta, y_i) + ridge/2 |theta|^2          (sum form)

The ridge belongs to nobody, so it stays when examples go. There is no intercept: give X a column of ones. Sources:
Nelder and Wedderburn (1972) for Newton's method; Albert and Anderson (1984) for when logistic regression has no fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import linprog
from scipy.special import expit

TOLERANCE = 1e-12  # steepness at which a fit has arrived
STEPS = 200
SINGULAR = 1e-12  # a squared distance below this share of its own length counts as none
FAR = 20.0  # a margin above this makes one ask whether the fit exists: its example has a weight of 2e-9


@dataclass(frozen=True)
class Loss:
    """A loss of the prediction z and the label y by its derivatives in z; each is elementwise on arrays.

    ``probabilistic``: labels are 0 and 1, and on separable data there is no minimum without a ridge.
    """

    name: str
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    first: Callable[[np.ndarray, np.ndarray], np.ndarray]
    second: Callable[[np.ndarray, np.ndarray], np.ndarray]
    third: Callable[[np.ndarray, np.ndarray], np.ndarray]
    probabilistic: bool = False


def _bell(z: np.ndarray) -> np.ndarray:
    return expit(z) * expit(-z)


LOGISTIC = Loss(
    "logistic",
    lambda z, y: np.logaddexp(0.0, z) - y * z,
    lambda z, y: expit(z) - y,
    lambda z, y: _bell(z),
    lambda z, y: _bell(z) * (expit(-z) - expit(z)),
    probabilistic=True,
)
SQUARED = Loss(
    "squared",
    lambda z, y: 0.5 * (z - y) ** 2,
    lambda z, y: z - y,
    lambda z, y: np.ones(np.broadcast(z, y).shape),
    lambda z, y: np.zeros(np.broadcast(z, y).shape),
)


@dataclass(frozen=True)
class Problem:
    """Data X [n, d], labels y [n] (0 or 1 for the logistic loss), loss, ridge (>= 0, sum form). Raises ValueError."""

    X: np.ndarray
    y: np.ndarray
    loss: Loss = LOGISTIC
    ridge: float = 0.0

    def __post_init__(self) -> None:
        X, y = (np.ascontiguousarray(part, dtype=np.float64) for part in (self.X, self.y))
        if X.ndim != 2 or y.shape != X.shape[:1] or not X.size:
            raise ValueError(f"X {X.shape} and y {y.shape}: give X [n, d] and y [n] with n, d >= 1.")
        if not (np.isfinite(X).all() and np.isfinite(y).all()):
            raise ValueError("X or y holds NaN or infinity; remove or fill those examples.")
        if not (np.isfinite(self.ridge) and self.ridge >= 0):
            raise ValueError(f"ridge {self.ridge}: give a finite number >= 0, in sum form.")
        if self.loss.probabilistic and not np.isin(y, (0.0, 1.0)).all():
            raise ValueError(f"labels {np.unique(y)[:5]}: the {self.loss.name} loss takes 0 and 1.")
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "y", y)

    @cached_property
    def units(self) -> np.ndarray:
        """Size of each coordinate of the gradient, [d]: the root of its examples' squares summed at theta = 0."""
        at_zero = self.loss.first(np.zeros(len(self.y)), self.y)
        size = np.linalg.norm(at_zero[:, None] * self.X, axis=0)
        return np.where(size > 0, size, 1.0)

    def steepness(self, gradient: np.ndarray) -> np.ndarray:
        """Root mean square of gradients [S, d] in :attr:`units` -> [S], whatever the units of the columns of X."""
        return np.linalg.norm(gradient / self.units, axis=1) / np.sqrt(len(self.units))

    def gradients(self, theta: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Gradient of F_T at theta [S, d] for each removed set [S, k] -> [S, d]."""
        slopes = self.loss.first(theta @ self.X.T, self.y)
        np.put_along_axis(slopes, removed, 0.0, axis=1)
        return slopes @ self.X + self.ridge * theta

    def hessians(self, theta: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Hessian of F_T at theta [S, d] for each removed set [S, k] -> [S, d, d]."""
        weights = self.loss.second(theta @ self.X.T, self.y)
        np.put_along_axis(weights, removed, 0.0, axis=1)
        return np.stack([(self.X.T * row) @ self.X for row in weights]) + self.ridge * np.eye(self.X.shape[1])

    def minimise(self, removed: np.ndarray, theta: np.ndarray, hessians: np.ndarray) -> np.ndarray:
        """Minimiser of F_T for each removed set [S, k], from theta [S, d] and the Hessians [S, d, d] there -> [S, d].

        Newton steps. A Hessian is kept while each step shrinks the gradient tenfold and recomputed otherwise; a step
        that does not shrink it is halved, and doubled again afterwards. Ends where the :meth:`steepness` is at most
        1e-12; raises ValueError where there is no minimum (the data without T are separable) or it is not reached.
        """
        theta, hessians = theta.copy(), hessians.copy()
        gradient = self.gradients(theta, removed)
        length, fresh = np.ones(len(theta)), np.zeros(len(theta), bool)
        for _ in range(STEPS):
            norm = self.steepness(gradient)
            todo = np.flatnonzero(norm > TOLERANCE)
            if not len(todo):
                break
            step = np.linalg.solve(hessians[todo], gradient[todo, :, None])[:, :, 0]
            tried = theta[todo] - length[todo, None] * step
            there = self.gradients(tried, removed[todo])
            shrunk = self.steepness(there) / norm[todo]
            better = shrunk < 1
            shorter = np.where(fresh[todo], length[todo] / 2, length[todo])
            length[todo] = np.where(better, np.minimum(1.0, 2 * length[todo]), shorter)
            renew = todo[(shrunk > 0.1) & (better | ~fresh[todo])]
            theta[todo[better]], gradient[todo[better]] = tried[better], there[better]
            fresh[todo[better]] = False
            if len(renew):
                hessians[renew], fresh[renew] = self.hessians(theta[renew], removed[renew]), True
        else:
            raise ValueError(f"no minimum in {STEPS} Newton steps: {self._complaint()}")
        self._exists(theta, removed)
        return theta

    def _exists(self, theta: np.ndarray, removed: np.ndarray) -> None:
        """A small gradient is not enough: on separable data it also vanishes on the way to infinity."""
        if self.ridge or not self.loss.probabilistic:
            return
        margins = (2 * self.y - 1) * (theta @ self.X.T)
        for s in np.flatnonzero(margins.max(1) > FAR):
            kept = np.delete(np.arange(len(self.y)), removed[s])
            if separable(self.X[kept], self.y[kept]):
                without = f" without removed set {s}" if removed.shape[1] else ""
                raise ValueError(f"the data{without} are separable: {self._complaint()}")

    def _complaint(self) -> str:
        n, d = self.X.shape
        what = f"{self.loss.name} regression on n = {n}, d = {d} with ridge {self.ridge:g}"
        return f"{what}. Give a ridge > 0 or more examples."


@dataclass(frozen=True)
class Fit:
    """A problem with its minimiser theta [d], and what the approximations need there."""

    problem: Problem
    theta: np.ndarray

    @cached_property
    def predictions(self) -> np.ndarray:
        """x_i . theta, [n]."""
        return self.problem.X @ self.theta

    @cached_property
    def slopes(self) -> np.ndarray:
        """First derivatives of the loss, [n]; the gradient of example i is slopes[i] x_i."""
        return self.problem.loss.first(self.predictions, self.problem.y)

    @cached_property
    def weights(self) -> np.ndarray:
        """Second derivatives of the loss, [n]; the Hessian of example i is weights[i] x_i x_i^T."""
        return self.problem.loss.second(self.predictions, self.problem.y)

    @cached_property
    def hessian(self) -> np.ndarray:
        """Hessian of the whole objective, ridge included, [d, d]."""
        return self.problem.hessians(self.theta[None], np.empty((1, 0), int))[0]

    @cached_property
    def leverages(self) -> np.ndarray:
        """h_i = weights_i x_i^T H^-1 x_i in [0, 1), [n]; their sum is the effective number of parameters."""
        return self.weights * np.einsum("nd,dn->n", self.problem.X, self.solve(self.problem.X.T))

    @cached_property
    def _factor(self) -> tuple[np.ndarray, bool]:
        return cho_factor(self.hessian)

    def solve(self, right: np.ndarray) -> np.ndarray:
        """H^-1 right, for right [d] or [d, m]."""
        return cho_solve(self._factor, right)


def fit(X: np.ndarray, y: np.ndarray, loss: Loss = LOGISTIC, ridge: float = 0.0) -> Fit:
    """The exact fit of all examples; arguments as in :class:`Problem`, to which its ValueErrors add the following.

    Without a ridge: X must have full column rank, and data for the logistic loss must not be (quasi-)separable.
    """
    problem = Problem(X, y, loss, ridge)
    if not ridge:
        size = np.linalg.norm(problem.X, axis=0)
        scaled = problem.X / np.where(size > 0, size, 1.0)
        if np.linalg.eigvalsh(scaled.T @ scaled)[0] <= SINGULAR:
            raise ValueError(f"X {problem.X.shape} has not full column rank; drop columns or give a ridge > 0.")
    nobody, start = np.empty((1, 0), int), np.zeros((1, problem.X.shape[1]))
    return Fit(problem, problem.minimise(nobody, start, problem.hessians(start, nobody))[0])


def separable(X: np.ndarray, y: np.ndarray) -> bool:
    """Whether some theta has (2 y_i - 1) x_i . theta >= 0 for all i, and > 0 for one: no logistic fit without a ridge.

    Decided by a linear programme; X [n, d], y [n] of 0 and 1. Covers complete and quasi-complete separation.
    """
    signed = (2 * np.asarray(y, float) - 1)[:, None] * np.asarray(X, float)
    scale = np.abs(signed).max()
    solution = linprog(-signed.sum(0) / scale, A_ub=-signed / scale, b_ub=np.zeros(len(signed)), bounds=(-1, 1))
    if not solution.success:
        raise ValueError(f"the linear programme for separability failed: {solution.message}")
    return bool(-solution.fun > 1e-7)
