"""The leaderboard: one line per testbed, query set, row and metric, and the table of it that one reads.

Values, intervals and differences come from `intervals.py`; cost comes from cost.csv and is joined only when rendering,
so that leaderboard.csv stays the same to the byte on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from .intervals import RowResult

KEY = ("testbed", "query_set", "row_id", "metric")
INTERVAL_COLUMNS = ("value", "ci_low", "ci_high")
DELTA_COLUMNS = {  # of a reference row
    "gradient_dot": ("delta_vs_gradient_dot", "delta_gd_low", "delta_gd_high"),
    "bm25": ("delta_vs_bm25", "delta_bm25_low", "delta_bm25_high"),
}
SHARE_COLUMNS = ("share", "share_low", "share_high")  # of the ceiling, paired with it
COUNTS = ("n_queries", "n_subsets", "n_seeds")
OPTIONAL = ("ceiling", *SHARE_COLUMNS, *DELTA_COLUMNS["gradient_dot"], *DELTA_COLUMNS["bm25"])  # empty: not applicable
LEADERBOARD_COLUMNS = (*KEY, "method", "family", "options_json", *INTERVAL_COLUMNS, *OPTIONAL, *COUNTS)


def leaderboard_row(
    *,
    testbed: str,
    query_set: str,
    row_id: str,
    metric: str,
    method: str,
    family: str,
    options: Mapping,
    result: RowResult,
    ceiling: float = float("nan"),
    n_queries: int,
    n_subsets: int = 0,
    n_seeds: int = 0,
) -> dict:
    """One line of the leaderboard as a dict with exactly LEADERBOARD_COLUMNS; deltas and shares that were not computed
    and a ceiling that does not apply are NaN.
    """
    row = dict(zip(KEY, (testbed, query_set, row_id, metric), strict=True))
    row |= {"method": method, "family": family, "options_json": json.dumps(dict(options), sort_keys=True)}
    row |= dict(zip(INTERVAL_COLUMNS, result.value, strict=True)) | {"ceiling": ceiling}
    unknown = (float("nan"),) * 3
    row |= dict(zip(SHARE_COLUMNS, result.share or unknown, strict=True))
    for reference, names in DELTA_COLUMNS.items():
        row |= dict(zip(names, result.difference.get(reference, unknown), strict=True))
    return row | {"n_queries": n_queries, "n_subsets": n_subsets, "n_seeds": n_seeds}


def share_text(line: pd.Series | Mapping) -> str:
    """The share of the ceiling in a line of the leaderboard with its interval, "62% [55%, 69%]"."""
    share, low, high = (line[name] for name in SHARE_COLUMNS)
    return "an unknown share" if pd.isna(share) else f"{share:.0%} [{low:.0%}, {high:.0%}]"


def pivot(
    frame: pd.DataFrame,
    testbed: str,
    query_set: str,
    metrics: Sequence[str],
    cost: pd.DataFrame | None = None,
    digits: int = 2,
) -> pd.DataFrame:
    """A table to read: one line per row id, "0.41 [0.35, 0.47]" per metric, the largest value of a metric starred.

    The first line, `ceiling`, holds the noise ceiling of every LDS metric. cost: columns to join last, by testbed and
    row_id. Every cell is a string with fixed digits; a metric a row does not have is "-".
    Errors: ValueError if nothing matches testbed and query_set, and for an unknown metric.
    """
    chosen = frame[(frame.testbed == testbed) & (frame.query_set == query_set)]
    unknown = [m for m in metrics if m not in set(chosen.metric)]
    if chosen.empty or unknown or not metrics:
        raise ValueError(
            f"pivot: no line for testbed {testbed!r}, query set {query_set!r}, "
            f"metrics {unknown or list(metrics)}; there are {sorted(set(chosen.metric))}"
        )
    names = list(dict.fromkeys(chosen[chosen.metric.isin(metrics)].row_id))
    table = pd.DataFrame({"row": ["ceiling", *names]})
    for metric in metrics:
        lines = chosen[chosen.metric == metric].set_index("row_id")
        shown = {name: f"{value:.{digits}f}" for name, value in lines.value.items()}
        best = shown[lines.value.idxmax()]
        cells = [", ".join(f"{c:.{digits}f}" for c in lines.ceiling.dropna().unique()) or "-"]
        for name in names:
            if name not in lines.index:
                cells.append("-")
                continue
            line = lines.loc[name]
            star = "*" if shown[name] == best else ""
            cells.append(f"{shown[name]}{star} [{line.ci_low:.{digits}f}, {line.ci_high:.{digits}f}]")
        table[metric] = cells
    if cost is not None:
        spent = cost[cost.testbed == testbed].set_index("row_id").drop(columns="testbed")
        for name, column in spent.items():
            table[name] = ["-"] + [f"{column[row]:.1f}" if row in column.index else "-" for row in names]
    return table
