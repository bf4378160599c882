"""The additive ceiling: how much of what can be predicted of a subset is a sum over its documents.

A method that scores documents one by one predicts a subset by a sum. Where documents interact, even the best sum falls
short of the noise ceiling, by a factor that extra models on halves of one's own can tell (none of them is in the bank).
In the regression of :mod:`tda.tools.residual`, minus log losses y [m] of one query are

    y(S)  =  mu + a <w0, S> + <r, S>     +     interactions     +     seed noise,
             additive, variance A              variance I             variance E

A and I + E are estimated by restricted maximum likelihood (REML, Patterson and Thompson 1971; in genetics, where
effects also outnumber individuals, GREML: Yang et al. 2010): one tau for all queries, a noise variance for each. E is
what two seeds of a bank's subset differ by. As shares of the variance of y they are averaged over queries, since a
single query's are noisy. The best sum correlates with the expected loss as rho = sqrt(A / (A + I)), in ranks as
6/pi asin(rho/2) for normal pairs: the *additive share*, and its LDS is the noise ceiling times that. A curve of LDS
against m, extrapolated, is what one would try first: below about N models it rises too slowly to show its end
(simulated in the tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from tda.evaluation.intervals import Interval, two_way_interval
from tda.evaluation.lds import check_outputs
from tda.tools.halves import ROUNDING
from tda.tools.residual import LEAST, Query, queries_of

LOG_RATIOS = np.log(1e-3), np.log(1e3)
EVEN = 1e9  # floor of the prior: all documents alike, which is right on average whatever their effects are
GROUPS = 8  # of models, each left out once for the interval


@dataclass(frozen=True)
class Additive:
    """``share`` of the noise ceiling that a sum can reach, with its interval; ``ratio`` is tau, the variance of <r, S>
    over that of interactions and seeds.
    """

    share: Interval
    ratio: float


def seed_noise(outputs: np.ndarray) -> np.ndarray:
    """Variance of minus log loss between seeds of the same subset, [Q], of a bank's outputs [M, R, Q] with R >= 2, less
    what a seed does to all subsets alike.
    """
    outputs = check_outputs(outputs)
    if outputs.shape[1] < 2:
        raise ValueError("1 seed per subset in the bank; the variance between seeds needs at least 2.")
    logs = np.log(np.maximum(outputs.astype(np.float64), ROUNDING))
    return (logs - logs.mean(0)).var(1, ddof=1).mean(0) * len(logs) / (len(logs) - 1)


def additive_share(
    scores: np.ndarray, own: np.ndarray, y: np.ndarray, noise: np.ndarray, clusters: Sequence | None = None,
    level: float = 0.95, seeds: Sequence[int] | None = None,
) -> Additive:  # fmt: skip
    """The additive share of a bank's queries.

    scores   [Q, N], what the regression starts from (w0); good ones leave less to be estimated.
    own      [m, N] bool, independent subsets of the extra models; y [Q, m] minus their log losses.
    seeds    [m] of the extra models, where some share theirs.
    noise    [Q] of :func:`seed_noise`; clusters, level as in `tda.evaluation.intervals`.
    The interval is a two-way jackknife, linearised in the mean A and I: over queries, and over :data:`GROUPS` groups of
    models.
    Errors   ValueError for fewer than twice :data:`LEAST` models, so that enough are left when a group is not.
    """
    m = len(own)
    if m < 2 * LEAST:
        raise ValueError(f"additive_share: {m} extra models; at least {2 * LEAST} are needed. Train more halves.")
    if np.shape(noise) != (len(y),):
        raise ValueError(f"additive_share: noise {np.shape(noise)} for {len(y)} queries; one variance a query.")
    group = np.arange(m) % GROUPS
    seeds = np.zeros(m, int) if seeds is None else np.asarray(seeds)
    (additive, interactions), ratio = _variances(queries_of(scores, own, y, EVEN, seeds), noise)
    value, slopes = _share(additive.mean(), interactions.mean())
    kinds = [(additive, interactions)]
    for g in range(GROUPS):
        rest = group != g
        kinds.append(_variances(queries_of(scores, own[rest], y[:, rest], EVEN, seeds[rest]), noise)[0])
    each = [value + slopes[0] * (a - additive.mean()) + slopes[1] * (i - interactions.mean()) for a, i in kinds]
    pseudo = GROUPS * each[0][:, None] - (GROUPS - 1) * np.stack(each[1:], 1)
    return Additive(two_way_interval(each[0], pseudo, clusters, level), ratio)


def _variances(parts: list[Query], noise: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """A and I of every query as shares of the variance of its y, [Q] each, and tau."""
    against = lambda log_ratio: -sum(_restricted(part, np.exp(log_ratio)) for part in parts)  # noqa: E731
    best = minimize_scalar(against, bounds=LOG_RATIOS, method="bounded", options={"xatol": 1e-3})
    ratio, found = float(np.exp(best.x)), []
    for part, seeds in zip(parts, noise, strict=True):
        rest = part.unexplained(ratio) / part.degrees
        additive = ratio * rest + part.solve(ratio)[1] ** 2 * np.var(part.fixed[:, -1])
        found.append((additive / part.variance, (rest - seeds) / part.variance))
    return tuple(np.array(found).T), ratio


def _share(additive: float, interactions: float) -> tuple[float, tuple[float, float]]:
    """The share in ranks, and its slopes by A and I (zero by I where I is not above 0, as the share is 1 there)."""
    total = additive + max(interactions, 0.0)
    rho = np.sqrt(additive / total)
    by_square = 6 / np.pi / np.sqrt(4 - rho**2) / (2 * rho)  # of 6/pi asin(rho/2) by rho^2
    by_additive = by_square * (total - additive) / total**2
    return 6 / np.pi * np.arcsin(rho / 2), (by_additive, -by_square * additive / total**2)


def _restricted(part: Query, ratio: float) -> float:
    """The restricted log likelihood of tau, the noise variance profiled out (up to a constant)."""
    return float(-0.5 * (np.log(ratio * part.values + 1).sum() + part.degrees * np.log(part.unexplained(ratio))))


def kept(figures: Path, testbed: str) -> dict[str, float] | None:
    """The additive ceiling of a testbed (``value``, ``low``, ``high``), if chapter 25 has computed it."""
    path = figures / "tables" / f"25_ceilings_{testbed}.csv"
    if not path.exists():
        return None
    lines = pd.read_csv(path, index_col="what")
    return dict(lines.loc["additive ceiling"]) if "additive ceiling" in lines.index else None
