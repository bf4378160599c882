"""Verdicts on claims (chapter 60): the criterion is written in the config before the run, the interval decides.

Verdict of one claim (region = the values for which the claim is true, boundary excluded):

    greater  value > margin          less  value < margin          parity  -margin < value < margin
    supported = the interval lies wholly inside the region, not supported = wholly outside, else inconclusive.

Several claims of one chapter (notebook) share an error rate by Holm's step-down rule (Holm, "A simple sequentially
rejective multiple test procedure", 1979). The two-sided p-value of a claim is read off its interval: the level at which
the t interval would just touch the nearest boundary. Claims are sorted by p; the i-th of m is judged by its interval
widened to level 1 - alpha / (m - i + 1); after the first inconclusive one the level stays, so all later ones are
inconclusive as well. `ci_low` and `ci_high` in claims.csv are these widened intervals, so that every verdict can be
read off its own line.

A claim on an LDS whose bank has a ceiling with a lower bound under `min_ceiling` is inconclusive whatever its interval,
and still counts in the family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from tda.evaluation.ceiling import Ceiling
from tda.evaluation.intervals import Interval
from tda.evidence import Criterion

GIVEN = ("id", "paper", "claim", "notebook", "metric")
CLAIM_COLUMNS = (*GIVEN, "value", "ci_low", "ci_high", "criterion", "verdict")
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"


def verdict(value: float, low: float, high: float, criterion: Criterion) -> str:
    """'supported', 'not supported' or 'inconclusive' from one interval; a boundary of the region lies outside it.

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


def p_value(interval: Interval, criterion: Criterion, level: float = 0.95) -> float:
    """Two-sided p: the smallest alpha at which the interval (given at ``level``) scaled to 1 - alpha still decides."""
    value, low, high = interval
    start, end = criterion.region
    t = _t(level, interval.df)

    def distance(boundary: float) -> float:
        """Distance in standard errors, each side of the interval being t of them long."""
        side = value - low if boundary < value else high - value
        return abs(boundary - value) / (side / t) if side > 0 and math.isfinite(boundary) else math.inf

    inside = start < value < end
    steps = min(distance(start), distance(end)) if inside else distance(start if value <= start else end)
    return float(min(1.0, 2 * stats.t.sf(steps, interval.df)))


def holm_levels(p: Sequence[float], alpha: float) -> np.ndarray:
    """Interval level [m] float64 of each claim under Holm's rule, from p-values [m] and the family's error rate.

    In order of p the i-th level is 1 - alpha / (m - i + 1), i = 1..m, up to and including the first claim with p >
    alpha / (m - i + 1); later claims keep that level.
    """
    levels, share, stopped = np.empty(len(p)), 0.0, False
    for place, index in enumerate(np.argsort(p, kind="stable")):
        if not stopped:
            share = alpha / (len(p) - place)
            stopped = p[index] > share
        levels[index] = 1 - share
    return levels


def claims_table(
    claims: Sequence[Mapping],
    intervals: Mapping[str, Interval],
    ceilings: Mapping[str, Ceiling | None],
    level: float = 0.95,
    min_ceiling: float = 0.2,
) -> pd.DataFrame:
    """claims.csv: one row per claim of the config, in the config's order.

    intervals   claim id -> Interval at ``level``, by :func:`tda.evidence.interval_of`.
    ceilings    claim id -> Ceiling of the bank behind an LDS metric, by :func:`tda.evidence.ceiling_of`.
    """
    criteria = [Criterion(claim["direction"], claim["margin"]) for claim in claims]
    notes = [_noise_note(ceilings[claim["id"]], min_ceiling) for claim in claims]
    found = [intervals[claim["id"]] for claim in claims]
    p = [1.0 if note else p_value(i, c, level) for i, c, note in zip(found, criteria, notes, strict=True)]
    rows: list[dict] = [{}] * len(claims)
    for notebook in dict.fromkeys(claim["notebook"] for claim in claims):
        members = [index for index, claim in enumerate(claims) if claim["notebook"] == notebook]
        for index, judged in zip(members, holm_levels([p[i] for i in members], 1 - level), strict=True):
            claim, (value, low, high) = claims[index], found[index]
            ratio = _t(judged, found[index].df) / _t(level, found[index].df)
            low, high = value - (value - low) * ratio, value + (high - value) * ratio
            what = f"{claim['row']} - {claim['against']}" if claim["against"] else claim["row"] or claim["metric"]
            text = f"{what} {criteria[index]}; interval level {judged:.4g}, Holm over {len(members)}{notes[index]}"
            outcome = INCONCLUSIVE if notes[index] else verdict(value, low, high, criteria[index])
            given = {name: claim[name] for name in GIVEN}
            numbers = {"value": value, "ci_low": low, "ci_high": high}
            rows[index] = given | numbers | {"criterion": text, "verdict": outcome}
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def _noise_note(bank: Ceiling | None, min_ceiling: float) -> str:
    if bank is None or bank.low >= min_ceiling:
        return ""
    return f"; bank too noisy (ceiling {bank.value:.2f}, lower bound {bank.low:.2f}): {bank.cure(min_ceiling)}"


def _t(level: float, df: float) -> float:
    return float(stats.t.ppf(0.5 + level / 2, df))
