"""How often something happened, and what that says about how often it happens."""

from __future__ import annotations

import numpy as np
from scipy import stats

from tda.evaluation.intervals import Interval


def rate(happened, runs: int | None = None, level: float = 0.95) -> Interval:
    """Share of ``happened`` (booleans, or a count of ``runs``) with the exact binomial interval of Clopper and Pearson.

    Raises ``ValueError`` without runs, or for a count outside [0, runs].
    """
    if runs is None:
        happened = np.asarray(happened, dtype=bool)
        happened, runs = int(happened.sum()), len(happened)
    if runs < 1 or not 0 <= happened <= runs:
        raise ValueError(f"{happened} of {runs} runs; a rate needs at least one run and a count between 0 and all.")
    found = stats.binomtest(happened, runs).proportion_ci(level, method="exact")
    return Interval(happened / runs, float(found.low), float(found.high), df=np.inf)


def caught(share: float, places: int, checks: int) -> tuple[float, float]:
    """Probability that ``checks`` different places out of ``places`` hit a share of lies: ``(exact, 1 - (1 -
    share)^checks)``.

    Drawing without replacement finds them a little more often than the second, usual formula says.
    """
    lies = round(share * places)
    return float(1 - stats.hypergeom.pmf(0, places, lies, checks)), 1 - (1 - share) ** checks
