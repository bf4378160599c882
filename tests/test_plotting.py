"""What is drawn is what was given: intervals, ceilings, and the colours of proponents and opponents."""

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from tda import plotting

ROWS = pd.DataFrame(
    [
        ("low", "gradient", 0.1, 0.0, 0.3, 0.8),
        ("high", "lexical", 0.5, 0.45, 0.6, 0.8),
        ("odd", "?", 0.2, 0.1, 0.9, 0.8),
    ],
    columns=["row_id", "family", "value", "ci_low", "ci_high", "ceiling"],
)


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.mark.parametrize("order", [None, ["high", "low"]])
def test_dots_and_intervals_are_the_numbers(ax, order):
    plotting.dot_intervals(ax, ROWS, "LDS", order=order)
    names, lines = order or ["low", "odd", "high"], list(ax.get_lines())
    assert [label.get_text() for label in ax.get_yticklabels()] == names and ax.get_xlabel() == "LDS"
    for y, name in enumerate(names):
        row, interval, dot = ROWS.set_index("row_id").loc[name], lines[2 * y], lines[2 * y + 1]
        assert list(interval.get_xdata()) == [row.ci_low, row.ci_high] and list(interval.get_ydata()) == [y, y]
        assert list(dot.get_xdata()) == [row.value] and list(dot.get_ydata()) == [y]
        assert {interval.get_color(), dot.get_color()} == {plotting.COLOURS.get(row.family, plotting.FALLBACK)}
    zero, ceiling = lines[2 * len(names) :]
    assert set(zero.get_xdata()) == {0} and set(ceiling.get_xdata()) == {0.8} and ceiling.get_linestyle() == "--"


def test_no_ceiling_where_there_is_none(ax):
    plotting.dot_intervals(ax, ROWS.assign(ceiling=np.nan), "MRR")
    assert len(ax.get_lines()) == 2 * len(ROWS) + 1


def spans(page):
    found = re.findall(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)\">(.*?)</span>", page)
    return [("#" + "".join(f"{int(part):02X}" for part in rgb[:3]), float(rgb[3]), rgb[4]) for rgb in found]


def test_proponents_are_orange_and_opponents_blue():
    orange, blue = plotting.SHADES[True], plotting.SHADES[False]
    assert (orange, blue) == (plotting.COLOURS["lexical"], plotting.COLOURS["unrolling"])
    page = plotting.shaded(["for", "<against>"], np.array([2.0, -4.0]))
    assert spans(page) == [(orange, 0.45, "for"), (blue, 0.9, "&lt;against&gt;")]
    figure = plotting.shaded_text("title", [("heading", ["for", "against"], np.array([0.5, -1.0]))])
    patches = figure.axes[0].patches
    assert [to_hex(patch.get_facecolor()).upper() for patch in patches] == [orange.upper(), blue.upper()]
    assert [patch.get_alpha() for patch in patches] == [0.45, 0.9]
    plt.close(figure)
