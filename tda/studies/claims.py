"""Verdicts on claims (chapter 60): the criterion is written in the config before the run, the interval decides.

Verdict of one claim (region = the values for which the claim is true, boundary excluded):

    greater  value > margin          less  value < margin          parity  -margin < value < margin
    supported = the interval lies wholly inside the region, not supported = wholly outside, else inconclusive.

An interval without width on a boundary says nothing: two rows that are equal are no proof that neither is better.
Parity is equivalence within the margin: a difference that is surely not 0 and surely below the margin is parity, and
the ledger says so.

Several claims of one chapter (notebook) share an error rate by Holm's step-down rule (Holm, "A simple sequentially
rejective multiple test procedure", 1979). The two-sided p-value of a claim is read off its interval: the smallest alpha
at which its limits at level 1 - alpha still decide. Claims are sorted by p; the i-th of m is judged by its limits at
level 1 - alpha / (m - i + 1); after the first inconclusive one the level stays, so all later ones are inconclusive as
well. `ci_low` and `ci_high` in claims.csv are these limits, so that every verdict can be read off its own line: of a
rate the exact ones at that level, of everything else t quantiles times the standard error.

A *check* is a claim that could hardly fail (two forms of one quantity, a limit that algebra knows, a copy of another
claim): it is judged at the plain level, by itself, and costs the family nothing.

A claim on an LDS whose bank has a ceiling with a lower bound under `min_ceiling` is inconclusive whatever its interval,
and still counts in the family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tda.evaluation.ceiling import Ceiling
from tda.evaluation.intervals import Interval
from tda.evaluation.rates import Least
from tda.evidence import Criterion

GIVEN = ("id", "paper", "abstract", "claim", "notebook", "metric")
CLAIM_COLUMNS = (*GIVEN, "value", "ci_low", "ci_high", "criterion", "verdict", "check")
LEAST_ALPHA = 1e-50  # a p-value below this is called 0
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"


def verdict(value: float, low: float, high: float, criterion: Criterion) -> str:
    """'supported', 'not supported' or 'inconclusive' from one interval; a boundary of the region lies outside it, and
    an interval that is one point of it (up to rounding) is inconclusive.

    Errors: ValueError for numbers that are NaN or out of order (low <= value <= high).
    """
    if not low <= value <= high:
        raise ValueError(f"verdict: low {low}, value {value}, high {high} must be numbers in this order")
    start, end = criterion.region
    if start < low and high < end:
        return SUPPORTED
    if any(max(abs(low - boundary), abs(high - boundary)) <= 1e-12 for boundary in criterion.region):
        return INCONCLUSIVE
    if high <= start or low >= end:
        return NOT_SUPPORTED
    return INCONCLUSIVE


def p_value(interval: Interval, criterion: Criterion, level: float = 0.95) -> float:
    """Two-sided p: the smallest alpha at which the limits at level 1 - alpha still decide; ``level`` is that at which
    the interval was made. 1 where none decides, 0 below ``LEAST_ALPHA``.
    """

    def decides(log_alpha: float) -> bool:
        low, high = interval.limits(level, math.exp(log_alpha))
        return verdict(interval.value, min(low, interval.value), max(high, interval.value), criterion) != INCONCLUSIVE

    undecided, decided = math.log(LEAST_ALPHA), 0.0  # limits of a smaller alpha hold those of a larger one
    if not decides(decided):
        return 1.0
    if decides(undecided):
        return 0.0
    for _ in range(60):
        middle = (undecided + decided) / 2
        undecided, decided = (undecided, middle) if decides(middle) else (middle, decided)
    return math.exp(decided)


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
    noisy = [_noise_note(ceilings[claim["id"]], min_ceiling) for claim in claims]
    found = [intervals[claim["id"]] for claim in claims]
    p = [1.0 if note else p_value(i, c, level) for i, c, note in zip(found, criteria, noisy, strict=True)]
    levels, judged = [level] * len(claims), ["a check, judged alone"] * len(claims)
    for notebook in dict.fromkeys(claim["notebook"] for claim in claims):
        family = [i for i, claim in enumerate(claims) if claim["notebook"] == notebook and not claim["check"]]
        for index, corrected in zip(family, holm_levels([p[i] for i in family], 1 - level), strict=True):
            levels[index], judged[index] = float(corrected), f"Holm over {len(family)}"
    rows = []
    for claim, criterion, interval, note, at, how in zip(claims, criteria, found, noisy, levels, judged, strict=True):
        low, high = interval.limits(level, 1 - at)
        outcome = INCONCLUSIVE if note else verdict(interval.value, low, high, criterion)
        what = f"{claim['row']} - {claim['against']}" if claim["against"] else claim["row"] or claim["metric"]
        note = _least_note(interval) + _parity_note(criterion, low, high, outcome) + note
        text = f"{what} {criterion}; interval level {at:.4g}, {how}{note}"
        numbers = {"value": interval.value, "ci_low": low, "ci_high": high}
        rows.append(
            {name: claim[name] for name in (*GIVEN, "check")} | numbers | {"criterion": text, "verdict": outcome}
        )
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def _parity_note(criterion: Criterion, low: float, high: float, outcome: str) -> str:
    apart = criterion.direction == "parity" and outcome == SUPPORTED and (low > 0 or high < 0)
    return "; a difference that is surely not 0, and surely below the margin" if apart else ""


def _least_note(interval: Interval) -> str:
    if not isinstance(interval, Least):
        return ""
    best = min(interval.parts, key=lambda name: interval.parts[name].value)
    return f"; least of {len(interval.parts)} differences, here to {best}; high by Bonferroni over them"


def _noise_note(bank: Ceiling | None, min_ceiling: float) -> str:
    if bank is None or bank.low >= min_ceiling:
        return ""
    return f"; bank too noisy (ceiling {bank.value:.2f}, lower bound {bank.low:.2f}): {bank.cure(min_ceiling)}"
