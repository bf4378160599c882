"""The leaderboard: one line per testbed, query set, row and metric; its checks, its order, its Markdown and
LaTeX forms.

Values, intervals and differences come from `intervals.py`; cost comes from cost.csv and is joined only when
rendering, so that leaderboard.csv stays the same to the byte on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from tda.config import REFERENCE_ROWS

from .intervals import Interval, RowResult

KEY = ("testbed", "query_set", "row_id", "metric")
INTERVAL_COLUMNS = ("value", "ci_low", "ci_high")
SHORT = {"gradient_dot": "gd", "bm25": "bm25"}
DELTA_COLUMNS = {
    name: (f"delta_vs_{name}", f"delta_{SHORT[name]}_low", f"delta_{SHORT[name]}_high") for name in REFERENCE_ROWS
}
COUNTS = ("n_queries", "n_subsets", "n_seeds")
LEADERBOARD_COLUMNS = (
    *KEY, "method", "family", "options_json", *INTERVAL_COLUMNS, "ceiling",
    *DELTA_COLUMNS["gradient_dot"], *DELTA_COLUMNS["bm25"], *COUNTS,
)  # fmt: skip
COST_COLUMNS = ("testbed", "row_id", "attribute_seconds", "setup_seconds", "peak_mb", "retrainings")
OPTIONAL = ("ceiling", *DELTA_COLUMNS["gradient_dot"], *DELTA_COLUMNS["bm25"])  # empty where they do not apply


def leaderboard_row(
    *,
    testbed: str,
    query_set: str,
    row_id: str,
    metric: str,
    method: str,
    family: str,
    options: Mapping,
    result: RowResult | Interval,
    ceiling: float = float("nan"),
    n_queries: int,
    n_subsets: int = 0,
    n_seeds: int = 0,
) -> dict:
    """One line of the leaderboard as a dict with exactly LEADERBOARD_COLUMNS.

    result   a RowResult of `lds_intervals` or `mean_intervals` (its differences to gradient_dot and bm25
             fill the delta columns) or a bare Interval; deltas that were not computed and a ceiling that
             does not apply stay empty.
    """
    interval = result.value if isinstance(result, RowResult) else result
    differences = result.difference if isinstance(result, RowResult) else {}
    row = dict(zip(KEY, (testbed, query_set, row_id, metric), strict=True))
    row |= {"method": method, "family": family, "options_json": json.dumps(dict(options), sort_keys=True)}
    row |= dict(zip(INTERVAL_COLUMNS, interval, strict=True)) | {"ceiling": ceiling}
    for reference, names in DELTA_COLUMNS.items():
        row |= dict(zip(names, differences.get(reference, (float("nan"),) * 3), strict=True))
    return row | {"n_queries": n_queries, "n_subsets": n_subsets, "n_seeds": n_seeds}


def leaderboard(parts: Iterable[pd.DataFrame | Mapping], row_order: Sequence[str] = ()) -> pd.DataFrame:
    """All lines in one checked, sorted frame.

    parts      frames (the metrics/<row_id>.csv files) or single lines from `leaderboard_row`.
    row_order  row ids in the config's order; rows sort by testbed, query_set, metric, then this order, then
               row_id.
    Returns    frame with LEADERBOARD_COLUMNS. Errors: ValueError as in `check_leaderboard`, or for no parts
               at all.
    """
    frames = [part if isinstance(part, pd.DataFrame) else pd.DataFrame([part]) for part in parts]
    if not frames:
        raise ValueError("leaderboard: no metric files given; run the chapters that score the rows first")
    for frame in frames:
        check_leaderboard(frame)
    whole = pd.concat([frame.astype(dict.fromkeys(OPTIONAL, float)) for frame in frames], ignore_index=True)
    check_leaderboard(whole)
    place = {name: index for index, name in enumerate(row_order)}
    whole["_place"] = [place.get(name, len(place)) for name in whole["row_id"]]
    whole = whole.sort_values(["testbed", "query_set", "metric", "_place", "row_id"], kind="stable", ignore_index=True)
    return whole[list(LEADERBOARD_COLUMNS)]


def check_leaderboard(frame: pd.DataFrame) -> None:
    """ValueError naming the first problem: columns, key, numbers, or an interval out of order."""
    if tuple(frame.columns) != LEADERBOARD_COLUMNS:
        missing = [c for c in LEADERBOARD_COLUMNS if c not in frame.columns]
        extra = [c for c in frame.columns if c not in LEADERBOARD_COLUMNS]
        raise ValueError(f"leaderboard columns: missing {missing}, unknown {extra}, order as in LEADERBOARD_COLUMNS")
    if frame[list(KEY)].isna().any(axis=None):
        raise ValueError(
            f"leaderboard: an empty cell in the key columns {KEY}; name testbed, query set, row and metric"
        )
    repeated = frame[frame.duplicated(list(KEY), keep=False)]
    if len(repeated):
        raise ValueError(
            f"leaderboard: key {tuple(repeated[list(KEY)].iloc[0])} occurs {len(repeated)} times; keep one"
        )
    numbers = {c: pd.to_numeric(frame[c], errors="coerce") for c in (*INTERVAL_COLUMNS, *OPTIONAL, *COUNTS)}
    for name, column in numbers.items():
        bad = ~np.isfinite(column) & ~(frame[name].isna() & (name in OPTIONAL))
        if bad.any():
            key = tuple(frame.loc[bad, list(KEY)].iloc[0])
            raise ValueError(
                f"leaderboard: {name} of {key} is {frame.loc[bad, name].iloc[0]!r}; it must be a finite number"
            )
    for value, low, high in (INTERVAL_COLUMNS, *DELTA_COLUMNS.values()):
        bad = (numbers[low] > numbers[value]) | (numbers[value] > numbers[high])
        if bad.any():
            key = tuple(frame.loc[bad, list(KEY)].iloc[0])
            raise ValueError(f"leaderboard: {low} <= {value} <= {high} does not hold for {key}; recompute that row")


def pivot(
    frame: pd.DataFrame,
    testbed: str,
    query_set: str,
    metrics: Sequence[str],
    cost: pd.DataFrame | None = None,
    digits: int = 2,
) -> pd.DataFrame:
    """A table to read: one line per row id, "0.41 [0.35, 0.47]" per metric, the largest value of a metric
    starred, cost last.

    The first line, `ceiling`, holds the noise ceiling of every LDS metric. cost (COST_COLUMNS) is optional;
    its columns are joined by testbed and row id. Every cell is a string with fixed digits; a metric a row
    does not have is "-".
    Errors: ValueError if nothing matches testbed and query_set, for an unknown metric, for repeated cost
    lines.
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
        ceilings = lines.ceiling.dropna().unique()
        cells = [", ".join(f"{c:.{digits}f}" for c in ceilings) or "-"]
        for name in names:
            if name not in lines.index:
                cells.append("-")
                continue
            line = lines.loc[name]
            star = "*" if shown[name] == best else ""
            cells.append(f"{shown[name]}{star} [{line.ci_low:.{digits}f}, {line.ci_high:.{digits}f}]")
        table[metric] = cells
    if cost is not None:
        spent = cost[cost.testbed == testbed].set_index("row_id")
        if spent.index.has_duplicates:
            raise ValueError(f"pivot: cost.csv has repeated lines for testbed {testbed!r}; keep one per row")
        for name in COST_COLUMNS[2:]:
            table[name] = ["-"] + [f"{spent.loc[r, name]:.1f}" if r in spent.index else "-" for r in names]
    return table


def to_markdown(table: pd.DataFrame) -> str:
    """A table of strings as Markdown; cells with a star (the best value) are bold."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(_bold(str(cell), "**{}**").replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """A table of strings as a LaTeX tabular with booktabs rules; cells with a star are bold."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule"]
    body = [tuple(map(str, table.columns)), *table.itertuples(index=False)]
    for index, row in enumerate(body):
        lines.append(" & ".join(_bold(_tex(str(cell)), r"\textbf{{{}}}") for cell in row) + r" \\")
        if index == 0:
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _bold(cell: str, form: str) -> str:
    number, star, rest = cell.partition("* [")
    return form.format(number) + " [" + rest if star else cell


TEX = {sign: "\\" + sign for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
}


def _tex(text: str) -> str:
    return text.translate(str.maketrans(TEX))
