"""Average-case rates of the Newton step and of influence, and how a measured slope is compared with them.

For logistic regression on Gaussian data, examples removed at random (n of them, d parameters, k removed), the paper
(*On the accuracy of Newton step and influence function data attributions*) states up to polylogarithmic factors

    E |refit - Newton step|     = Theta(k d / n^2)
    E |Newton step - influence| = Theta((k + d) sqrt(k d) / n^2)

:func:`limit` is our own and gives the constants: the leading terms for n to infinity at finite d and k.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit

from tda.evaluation.intervals import Interval, t_interval
from tda.studies.convex.problem import LOGISTIC

RESAMPLES = 2000


def newton_rate(n: np.ndarray, d: np.ndarray, k: np.ndarray) -> np.ndarray:
    """k d / n^2: how the error of the Newton step scales."""
    return k * d / np.square(n, dtype=float)


def gap_rate(n: np.ndarray, d: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(k + d) sqrt(k d) / n^2: how the distance of Newton step and influence scales."""
    return (k + d) * np.sqrt(k * d) / np.square(n, dtype=float)


def excluded(n: int, d: int) -> str:
    """Why a sweep without ridge leaves this size out, in words; empty if it does not."""
    if n >= 10 * d:
        return ""
    return f"n = {n} < 10 d = {10 * d}: the data may be separable, and the laws are for n much larger than d"


def gaussian(n: int, d: int, signal: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """X [n, d] standard normal and labels y [n] drawn from the logistic model, theta* uniform on the sphere of radius
    ``signal`` (>= 0). Raises ValueError where :func:`excluded` gives a reason.
    """
    if reason := excluded(n, d):
        raise ValueError(f"{reason}. Take a larger n, or fit with a ridge on data of your own.")
    direction = rng.standard_normal(d)
    X = rng.standard_normal((n, d))
    return X, (rng.random(n) < expit(X @ (signal * direction / np.linalg.norm(direction)))).astype(float)


def limit(d: int, k: int, signal: float, draws: int, rng: np.random.Generator) -> tuple[float, float]:
    """n^2 E|refit - Newton step| and n^2 E|Newton step - influence| for n to infinity at finite d and k.

    In the limit H = n diag(b, a, ..., a) along and across theta*, with a = E s'(z), b = E s'(z) u^2, z = signal u,
    u ~ N(0, 1), s the logistic function. For D = n x influence, drawn from k examples, the leading terms are

        Newton step - influence  ->  H^-1 H_T D / n
        refit - Newton step      ->  -1/2 H^-1 E[s''(x . theta*) (x . D)^2 x] / n
                                     E[...] = (m_3 D_1^2 + m_1 |D_rest|^2, 2 m_1 D_1 D_rest),  m_j = E s''(z) u^j

    The third derivatives are averages over infinitely many examples: at signal 0 they vanish and a smaller term leads.
    """
    u, mass = hermegauss(80)
    mass = mass / mass.sum()
    curvature, third = (part(signal * u, 0.0) for part in (LOGISTIC.second, LOGISTIC.third))
    hessian = np.full(d, mass @ curvature)
    hessian[0] = mass @ (curvature * u**2)
    m1, m3 = mass @ (third * u), mass @ (third * u**3)
    newton, gap, at_once = [], [], max(1, 2_000_000 // (k * d))
    for start in range(0, draws, at_once):
        x = rng.standard_normal((min(at_once, draws - start), k, d))
        z = signal * x[:, :, 0]
        y = (rng.random(z.shape) < expit(z)).astype(float)
        change = np.einsum("sk,skd->sd", LOGISTIC.first(z, y), x) / hessian
        along = LOGISTIC.second(z, y) * np.einsum("skd,sd->sk", x, change)
        gap.append(np.linalg.norm(np.einsum("sk,skd->sd", along, x) / hessian, axis=1))
        pull = 2 * m1 * change[:, :1] * change
        pull[:, 0] = m3 * change[:, 0] ** 2 + m1 * np.square(change[:, 1:]).sum(1)
        newton.append(np.linalg.norm(0.5 * pull / hessian, axis=1))
    return float(np.concatenate(newton).mean()), float(np.concatenate(gap).mean())


def slope(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least-squares slope of log values [points, ...] against log sizes [points] -> [...]."""
    x = np.log(np.asarray(sizes, float))
    x -= x.mean()
    return np.tensordot(x, np.log(values), 1) / (x @ x)


def flattest(ratios: np.ndarray, values: np.ndarray) -> np.ndarray:
    """log2 of the k/d at which a curve p sqrt(k/d) + q sqrt(d/k) through values [points, ...] is smallest -> [...].

    p and q are fitted by least squares of the relative error; ratios [points] are the k/d. NaN where the fitted curve
    has no minimum (p or q not positive).
    """
    root = np.sqrt(np.asarray(ratios, float)).reshape(-1, *[1] * (np.ndim(values) - 1))
    a, b = root / values, 1 / (root * values)
    aa, bb, ab = (a * a).sum(0), (b * b).sum(0), (a * b).sum(0)
    p, q = a.sum(0) * bb - b.sum(0) * ab, b.sum(0) * aa - a.sum(0) * ab
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(q / p)


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], level: float, seed: int = 0
) -> Interval:
    """Interval of statistic(mean of values [..., R] over replicates), by resampling whole replicates.

    A replicate is a draw of everything: its designs and their removed sets go together, so that the spread over
    replicates contains both. ``statistic`` maps means [..., B] to [B]. The half-width is a t quantile with R - 1
    degrees of freedom times the bootstrap's standard error times sqrt(R / (R - 1)), without which few replicates seem
    too sure of themselves. Raises ValueError for fewer than 2 replicates and for a statistic that is not finite.
    """
    count = values.shape[-1]
    if count < 2:
        raise ValueError(f"{count} replicate: an interval needs 2 or more.")
    shares = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    value = float(np.squeeze(statistic(values.mean(-1)[..., None])))
    resampled = statistic(values @ shares.T)
    if not (np.isfinite(value) and np.isfinite(resampled).all()):
        raise ValueError(f"the statistic is {value} on all replicates and not finite on every resample of them.")
    se = float(resampled.std() * np.sqrt(count / (count - 1)))
    return t_interval(value, se, count - 1, level)
