"""Verdicts on claims: the criterion is written in the config before the run, the interval decides.

Verdict of one claim (region = the values for which the claim is true, boundary excluded):

    greater  value > margin          less  value < margin          parity  -margin < value < margin
    supported = the interval lies wholly inside the region, not supported = wholly outside, else inconclusive.

Several claims of one chapter (notebook) share an error rate by Holm's step-down rule (Holm,
"A simple sequentially rejective multiple test procedure", 1979). The two-sided p-value of a claim is read
off its interval: the level at which the t interval would just touch the nearest boundary. Claims are sorted by p;
the i-th of m is judged by its interval widened to level
1 - alpha / (m - i + 1) (each side scaled by the ratio of t quantiles); after the first inconclusive one the
level stays, so all later ones are inconclusive as well. `ci_low` and `ci_high` in claims.csv are these
widened intervals, so that every verdict can be read off its own line.

A claim on an LDS whose bank has a ceiling with a lower bound under `min_ceiling` is inconclusive whatever
its interval, and still counts in the family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from .ceiling import Ceiling

CLAIM_COLUMNS = (
    "id",
    "paper",
    "claim",
    "notebook",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "criterion",
    "verdict",
)
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
DIRECTIONS = ("greater", "less", "parity")
KINDS = ("value", "difference", "parity")


@dataclass(frozen=True)
class Criterion:
    """A region of values: direction greater or less than `margin`, or parity (absolute value below `margin`
    > 0)."""

    direction: str
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"claim direction {self.direction!r}; use one of {', '.join(DIRECTIONS)}")
        if not math.isfinite(self.margin) or (self.direction == "parity" and self.margin <= 0):
            raise ValueError(
                f"claim margin {self.margin} for {self.direction}; parity needs a margin > 0, others a number"
            )

    @property
    def region(self) -> tuple[float, float]:
        """Open interval of the values for which the claim is true."""
        greater, less = (self.margin, math.inf), (-math.inf, self.margin)
        return {"greater": greater, "less": less}.get(self.direction, (-self.margin, self.margin))

    def __str__(self) -> str:
        return {"greater": f"> {self.margin:g}", "less": f"< {self.margin:g}"}.get(
            self.direction, f"within +-{self.margin:g}"
        )


@dataclass(frozen=True)
class Measurement:
    """What a claim is judged on: value, its t interval at `level`, and the interval's degrees of freedom."""

    value: float
    low: float
    high: float
    df: float = math.inf
    level: float = 0.95


def verdict(value: float, low: float, high: float, criterion: Criterion) -> str:
    """'supported', 'not supported' or 'inconclusive' from one interval; a boundary of the region lies
    outside it.

    Errors: ValueError for numbers that are NaN or out of order (low <= value <= high).
    """
    if not low <= value <= high:
        raise ValueError(f"verdict: low {low}, value {value}, high {high} must be numbers in this order")
    start, end = criterion.region
    if start < low and high < end:
        return SUPPORTED
    if high <= start or low >= end:
        return NOT_SUPPORTED
    return INCONCLUSIVE


def p_value(measured: Measurement, criterion: Criterion) -> float:
    """Two-sided p: the smallest alpha at which the interval scaled to level 1 - alpha still decides."""
    start, end = criterion.region
    inside = start < measured.value < end
    t = _t(measured.level, measured.df)

    def distance(boundary: float) -> float:
        """Distance in standard errors, each side of the interval being t of them long."""
        if math.isinf(boundary):
            return math.inf
        gap = abs(boundary - measured.value)
        side = measured.value - measured.low if boundary < measured.value else measured.high - measured.value
        return gap / (side / t) if side > 0 else math.inf

    steps = min(distance(start), distance(end)) if inside else distance(start if measured.value <= start else end)
    return float(min(1.0, 2 * stats.t.sf(steps, measured.df)))


def widened(measured: Measurement, level: float) -> tuple[float, float]:
    """The interval at another level: each side scaled by the ratio of t quantiles."""
    ratio = _t(level, measured.df) / _t(measured.level, measured.df)
    return (
        measured.value - (measured.value - measured.low) * ratio,
        measured.value + (measured.high - measured.value) * ratio,
    )


def holm_levels(p: Sequence[float], alpha: float) -> np.ndarray:
    """Interval level of each claim under Holm's rule.

    p [m] p-values, alpha the family's error rate. In order of p the i-th level is 1 - alpha / (m - i + 1), i
    = 1..m, up to and including the first claim with p > alpha / (m - i + 1); later claims keep that level.
    Returns [m] float64.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all() or not 0 < alpha < 1:
        raise ValueError(f"holm_levels: p = {p.tolist()}, alpha = {alpha}; give p-values in [0, 1] and alpha in (0, 1)")
    levels = np.empty(len(p))
    share, stopped = 0.0, False
    for place, index in enumerate(np.argsort(p, kind="stable")):
        if not stopped:
            share = alpha / (len(p) - place)
            stopped = p[index] > share
        levels[index] = 1 - share
    return levels


def claims_table(
    claims: Sequence[Mapping],
    measure: Callable[[Mapping], Measurement],
    ceilings: Mapping[str, Ceiling] | None = None,
    level: float = 0.95,
    min_ceiling: float = 0.2,
) -> pd.DataFrame:
    """claims.csv: one row per claim of the config, in the config's order.

    claims    dicts with id, paper, claim, notebook, testbed, metric, row, kind (value | difference |
              parity), direction, margin, and against for a difference or parity of two rows (parity is a
              difference judged by its margin).
    measure   claim -> Measurement, for instance with `tda.evidence.interval_of`.
    ceilings  claim id -> Ceiling of the bank behind an LDS metric (metrics that start with "lds_").
    Errors    ValueError for a repeated id, an unknown kind or direction, an LDS claim whose ceiling is not
              given.
    """
    ids = [claim["id"] for claim in claims]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claims: repeated id {sorted({i for i in ids if ids.count(i) > 1})}; make every id unique")
    criteria = [criterion_of(claim) for claim in claims]
    found = [measure(claim) for claim in claims]
    notes = [_noise_note(claim, ceilings or {}, min_ceiling) for claim in claims]
    p = [1.0 if note else p_value(m, c) for m, c, note in zip(found, criteria, notes, strict=True)]
    families: dict[str, list[int]] = {}
    for index, claim in enumerate(claims):
        families.setdefault(claim["notebook"], []).append(index)
    rows: list[dict] = [{}] * len(claims)
    for members in families.values():
        for index, judged in zip(members, holm_levels([p[i] for i in members], 1 - level), strict=True):
            claim, measured, criterion = claims[index], found[index], criteria[index]
            low, high = widened(measured, judged)
            text = f"{_quantity(claim)} {criterion}; interval level {judged:.4g}, Holm over {len(members)}"
            outcome = INCONCLUSIVE if notes[index] else verdict(measured.value, low, high, criterion)
            given = {name: claim[name] for name in ("id", "paper", "claim", "notebook", "metric")}
            numbers = {"value": measured.value, "ci_low": low, "ci_high": high}
            rows[index] = {**given, **numbers, "criterion": text + notes[index], "verdict": outcome}
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def criterion_of(claim: Mapping) -> Criterion:
    """Criterion of a config entry; kind `parity` means direction parity."""
    kind = claim.get("kind", "value")
    if kind not in KINDS:
        raise ValueError(f"claim {claim['id']!r}: kind {kind!r}; use one of {', '.join(KINDS)}")
    if kind != "value" and not claim.get("against"):
        raise ValueError(f"claim {claim['id']!r}: kind {kind!r} compares two rows; name the second one in `against`")
    direction = claim.get("direction", "parity") if kind == "parity" else claim.get("direction")
    if kind == "parity" and direction != "parity":
        raise ValueError(f"claim {claim['id']!r}: kind parity with direction {direction!r}; drop the direction")
    return Criterion(direction, float(claim.get("margin", 0.0)))


def _quantity(claim: Mapping) -> str:
    if claim.get("kind", "value") == "value":
        return claim.get("row") or claim["metric"]
    return f"{claim['row']} - {claim['against']}"


def _noise_note(claim: Mapping, ceilings: Mapping[str, Ceiling], min_ceiling: float) -> str:
    if not claim["metric"].startswith("lds_"):
        return ""
    bank = ceilings.get(claim["id"])
    if bank is None:
        raise ValueError(
            f"claim {claim['id']!r}: no ceiling given for {claim['metric']}; pass the ceiling of that bank"
        )
    if bank.low >= min_ceiling:
        return ""
    return f"; bank too noisy (ceiling {bank.value:.2f}, lower bound {bank.low:.2f}): {bank.cure(min_ceiling)}"


def _t(level: float, df: float) -> float:
    return float(stats.t.ppf(0.5 + level / 2, df))
