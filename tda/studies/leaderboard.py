"""Chapter 60: all lines of the leaderboard in one checked, sorted frame, and its tables as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from tda.evaluation.tables import (
    COUNTS,
    DELTA_COLUMNS,
    INTERVAL_COLUMNS,
    KEY,
    LEADERBOARD_COLUMNS,
    OPTIONAL,
    SHARE_COLUMNS,
)


def leaderboard(parts: Sequence[pd.DataFrame], row_order: Sequence[str] = ()) -> pd.DataFrame:
    """Frames of LEADERBOARD_COLUMNS as one, by testbed, query_set, metric, then row ids in this order, then row_id.

    Errors: ValueError for no parts, an empty cell in a key, a repeated key, a number that is not finite, and an
    interval out of order.
    """
    if not parts:
        raise ValueError("leaderboard: no metric files given; run the chapters that score the rows first")
    whole = pd.concat([frame.astype(dict.fromkeys(OPTIONAL, float)) for frame in parts], ignore_index=True)
    _check(whole)
    place = {name: index for index, name in enumerate(row_order)}
    whole["_place"] = [place.get(name, len(place)) for name in whole["row_id"]]
    whole = whole.sort_values(["testbed", "query_set", "metric", "_place", "row_id"], kind="stable", ignore_index=True)
    return whole[list(LEADERBOARD_COLUMNS)]


def _check(frame: pd.DataFrame) -> None:
    """ValueError that names the first line with a problem."""
    for name, bad in _problems(frame):
        if bad.any():
            key = tuple(frame.loc[bad, list(KEY)].iloc[0])
            raise ValueError(f"leaderboard: {name} ({bad.sum()} lines), first for {key}; run the chapter of that row")


def _problems(frame: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    yield f"an empty cell in the key columns {KEY}", frame[list(KEY)].isna().any(axis=1)
    yield "a repeated key", frame.duplicated(list(KEY), keep=False)
    numbers = frame[[*INTERVAL_COLUMNS, *OPTIONAL, *COUNTS]].apply(pd.to_numeric, errors="coerce")
    for name, column in numbers.items():
        yield f"{name} is not a finite number", ~np.isfinite(column) & ~(frame[name].isna() & (name in OPTIONAL))
    for value, low, high in (INTERVAL_COLUMNS, SHARE_COLUMNS, *DELTA_COLUMNS.values()):
        outside = (numbers[low] > numbers[value]) | (numbers[value] > numbers[high])
        yield f"{low} <= {value} <= {high} does not hold", outside


def to_markdown(table: pd.DataFrame) -> str:
    """A table of strings as Markdown; cells with a star (the best value) are bold."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(_bold(str(cell), "**{}**").replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """A table of strings as a LaTeX tabular with booktabs rules; cells with a star are bold."""
    head, *body = (
        " & ".join(_bold(str(cell).translate(TEX), r"\textbf{{{}}}") for cell in row) + r" \\"
        for row in (table.columns, *table.itertuples(index=False))
    )
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


TEX = str.maketrans({sign: "\\" + sign for sign in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"})
TEX |= str.maketrans({"^": r"\^{}"})


def _bold(cell: str, form: str) -> str:
    number, star, rest = cell.partition("* [")
    return form.format(number) + " [" + rest if star else cell
