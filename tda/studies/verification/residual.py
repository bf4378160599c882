"""The best residual of a linear predictor, without computing that predictor, and the sample sizes that it needs.

With B_k the sum of the squared Fourier coefficients of degree k, the smallest mean squared error of a linear
predictor (with a constant) is B_{>=2} = E f^2 - B_0 - B_1. The noise stability h(r) = E f(x) f(x'), over pairs of
correlation r, is

    h(r) = sum_k B_k r^k,        h(0) = B_0,        h(1) = E f^2,

so a parabola b_0 + b_1 r + b_2 r^2 through h at {0, rho, 2 rho} gives B_0 and B_1, up to the bias

    E b_1 - B_1 = - sum_{k>=3} B_k rho^(k-1) (2^(k-1) - 2)          (-2 rho^2 B_3 - 6 rho^3 B_4 - ...).

Nothing in this depends on N. The residual is never underestimated in expectation (without the constraint): the bias
makes a verifier lenient, and rho must keep it well below eps.

Source: residual estimation of Saunshi, Gupta, Braverman and Arora (2023), as used by Karchmer, Pawelczyk and Neel
(2025). Ours: the coupling of the partners, the subtraction of a fixed linear predictor before estimating (B_{>=2}
does not change when one is subtracted, the variance does), the winsorised mean, and the plan of sample sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import nnls

from tda.studies.verification.cube import check_probability, check_rho

MSE_SPREAD = 2.0  # variance of a squared Gaussian, in units of its squared mean


class Residual(NamedTuple):
    """``value`` [Q]: the estimate of B_{>=2}. ``weights`` [3, Q]: b_0, b_1, b_2."""

    value: np.ndarray
    weights: np.ndarray


def residual(values: np.ndarray, rho: float, constraint: bool = True) -> Residual:
    """B_{>=2} of every output from ``values`` [4, n, Q]: f at n base subsets and at their partners of correlation 0,
    rho and 2 rho, in this order.

    ``constraint``: the three coefficients are fitted under b >= 0 (they are sums of squares). Every one of the 4 n
    evaluations serves h(1). Raises ``ValueError`` for another shape, numbers that are not finite, rho outside (0, 1/2].
    """
    base, *others = values = _checked(values)
    pairs = np.stack([(base * other).mean(0) for other in others])
    return from_stability(np.concatenate([pairs, np.square(values).mean((0, 1))[None]]), rho, constraint)


def from_stability(stability: np.ndarray, rho: float, constraint: bool = True) -> Residual:
    """The same from ``stability`` [4, Q]: (estimates of) h(0), h(rho), h(2 rho), h(1)."""
    powers = np.vander(np.array([0.0, check_rho(rho), 2 * rho]), 3, increasing=True)
    if constraint:
        weights = np.stack([nnls(powers, h)[0] for h in stability[:3].T], axis=1)
    else:
        weights = np.linalg.solve(powers, stability[:3])
    return Residual(stability[3] - weights[0] - weights[1], weights)


def base_terms(values: np.ndarray, rho: float) -> np.ndarray:
    """[n, Q]: the term T of every base, whose mean is B_{>=2} of :func:`residual` without constraint.

    T = (mean of the four squares) - f(x) sum_t c_t f(x_t), c as in :func:`slopes`.
    """
    return np.square(values).mean(0) - values[0] * np.tensordot(slopes(rho), values[1:], 1)


def winsorised(values: np.ndarray, rho: float, share: float) -> np.ndarray:
    """[Q]: the same estimate (without constraint) as a mean over bases, in which a few wrong outputs count for little.

    Terms of :func:`base_terms` beyond the quantiles ``share`` and 1 - ``share`` are pulled to them: lies about few
    bases, however large, can move the estimate only by what lies between the quantiles. Its price is a bias, because T
    is not symmetric. It must never cut off whole tails: see :func:`largest_share`, which is for the caller to keep.
    Ours. Raises ``ValueError`` for a share outside [0, 0.25], and as :func:`residual`.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 0.25:
        raise ValueError(f"share={share!r} of the terms on each side; it lies in [0, 0.25], and 0 pulls none.")
    terms = base_terms(_checked(values), rho)
    return np.clip(terms, np.quantile(terms, share, axis=0), np.quantile(terms, 1 - share, axis=0)).mean(0)


def largest_share(rho: float, p: float) -> float:
    """The largest share to winsorise on each side that does not hide an error concentrated on one example (ours).

    With coupled partners an error a z_i gives T = 0 where the base's coordinate equals the fresh draw. Otherwise, with
    v = z_i^2 of the base and v' = 1 / v of the draw, T / a^2 and its mass are, for each value of v,

        (3 v + v') / 4 + 1 - 1.5 (1 + v) / rho      mass p (1 - p) rho           all but the first partner keep
        (v + v') / 2 + 1 + 0.5 (1 + v) / rho        mass p (1 - p) rho           only the last keeps
        (v + 3 v') / 4 + 1                          mass p (1 - p) (1 - 2 rho)   none keeps

    which has mean 0 over both values of v. So each tail has two levels of mass p (1 - p) rho, equal at p = 1/2. Cutting
    off both tails hides 1 - rho of the error at p = 1/2, cutting off their outer levels |1 - 2 p| (1 - rho / 2) (for p
    in [0.2, 0.8]; elsewhere the levels are in another order, and the outer ones matter as much). The
    share is 0.6 of the mass of a tail where the outer levels hide at most a fifth, 0.6 of the outer level elsewhere;
    the rest is for the scatter of sample quantiles. 0.3 rho at p = 1/2.
    """
    level = check_probability(p) * (1 - p) * check_rho(rho)
    return 0.6 * level * (2 if abs(1 - 2 * p) * (1 - rho / 2) <= 0.2 else 1)


def slopes(rho: float) -> np.ndarray:
    """c with sum_t c_t h(t) = b_0 + b_1 of the parabola through t = 0, rho, 2 rho."""
    check_rho(rho)
    return np.array([1 - 1.5 / rho, 2 / rho, -0.5 / rho])


def _checked(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or values.shape[0] != 4 or not values.shape[1]:
        raise ValueError(f"values have shape {values.shape}; give [4, n, Q]: base, correlation 0, rho, 2 rho.")
    if not np.isfinite(values).all():
        raise ValueError("the outputs hold NaN or infinite numbers; look at the subsets that give them.")
    return values


def bias(weights: np.ndarray, rho: float) -> np.ndarray:
    """[Q]: expected estimate minus truth, sum_{k>=3} B_k rho^(k-1) (2^(k-1) - 2), of known ``weights`` [K, Q]."""
    k = np.arange(3, len(weights))
    return (rho ** (k - 1) * (2.0 ** (k - 1) - 2)) @ np.asarray(weights)[3:]


def spread(rho: float, degree: int = 2, coupled: bool = True) -> float:
    """Variance of one base's term of the estimate, in units of (E f^2)^2, if all of f has this degree.

    The products f(x) f(x_t) of the term are treated as products of independent Gaussians, with E f(x_t) f(x_s) = E f^2
    (1 - |t - s|)^degree when coupled (two partners agree where both keep or both draw afresh) and 0 otherwise; 2 is
    added for h(1). A planning figure.
    """
    c = slopes(rho)
    at = np.array([0, rho, 2 * rho])
    common = (1 - np.abs(at[:, None] - at)) ** degree
    return float(c @ (common if coupled else np.eye(3)) @ c) + 2.0


def plan(eps: float, delta: float, best: float, rho: float, points: int = 1, off: float = 0.0) -> tuple[int, int]:
    """``(fresh, bases)``: how many subsets to measure the claim on, and how many bases for the residual.

    ``best``: the best residual B_{>=2} that is expected, all of it of degree 2. With these sizes (normal approximation)
    a claim of error eps / 4 passes, and one of error eps fails, with probability 1 - delta in each of ``points``
    outputs. The noise is in proportion to E g^2 of the function g that is measured: f minus the claim (``around =
    "claim"``), so best + error of the claim. A quarter of the variance is left to the fresh subsets. Grows as
    (E g^2 / eps)^2, and with :func:`spread` in 1 / rho. ``off`` >= 0 is the bias of the estimated residual where it is
    known (:func:`bias`): it leaves only eps / 2 - off to notice a false claim.
    """
    check_rates(eps, delta)
    if not delta < points / 2:
        raise ValueError(f"delta={delta} for {points} test points; delta / points must lie below 1/2, a coin's error.")
    z = stats.norm.ppf(1 - delta / points)
    variance = _room(eps, best, points, off) ** 2 / z**2
    return int(np.ceil(4 * MSE_SPREAD / variance)), int(np.ceil(spread(rho) / variance * 4 / 3))


def attained(eps: float, best: float, rho: float, bases: int, points: int = 1) -> float:
    """delta of :func:`plan` for given ``bases`` (and fresh subsets in proportion): its inverse.

    Raises ``ValueError`` if that is not below 1/2: such sizes decide nothing.
    """
    z = _room(eps, best, points) / np.sqrt(spread(rho) * 4 / 3 / bases)
    delta = float(points * stats.norm.sf(z))
    if not delta < 0.5:
        raise ValueError(f"{bases} bases attain delta={delta:.2f} only; allow more of them or raise eps={eps:.2g}.")
    return delta


def _room(eps: float, best: float, points: int, off: float = 0.0) -> float:
    """How far the nearer of the two wrong decisions is, in units of E g^2."""
    if not best > 0 or points < 1:
        raise ValueError(f"best={best}, points={points}; both must be positive.")
    if not 0 <= off < eps / 2:
        raise ValueError(f"off={off}; a bias of the residual lies in [0, eps / 2), or no size helps. Lower rho.")
    return min(eps / 4 / (best + eps / 4), (eps / 2 - off) / (best + eps))


def check_rates(eps: float, delta: float) -> None:
    """Raises ``ValueError`` unless both are numbers strictly between 0 and 1."""
    for name, value in (("eps", eps), ("delta", delta)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(
                f"{name}={value!r}; it must lie strictly between 0 and 1 (outputs are scaled to [-1, 1], and eps is in "
                f"their squared unit)."
            )
