"""What is drawn is what was given: text is escaped in a page and no formula in a figure, numbers keep their places."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from tda import plotting

HOSTILE = "<script>alert('x')</script> & \"co\""
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;co&quot;"
FORMULAS = ["$$", "costs $5 or $6", r"$\frac{", "a_b^c $x_$", r"\$"]


def test_notes_and_texts_of_a_ranking_are_escaped_and_markup_is_not():
    shaded = plotting.shaded([HOSTILE, "plain"], np.array([1.0, -1.0]))
    table = plotting.ranking_html(
        [(HOSTILE, HOSTILE), (f"by {HOSTILE}", shaded), ("note", plotting.Markup("<b>x</b>"))]
    )
    assert table.count(ESCAPED) == 4 and "<script" not in table and "<b>x</b>" in table and shaded in table
    page = plotting.page(HOSTILE, [table])
    assert page.count(ESCAPED) == 6 and "<script" not in page and table in page


def test_what_is_joined_to_markup_is_text_again():
    shaded = plotting.shaded(["word"], np.array([1.0]), separator="<br>")
    assert "<b>" not in plotting.ranking_html([("note", "<b>" + shaded)])
    assert "<br>" not in plotting.shaded(["a", "b"], np.ones(2), separator="<br>")


@pytest.mark.parametrize("text", FORMULAS)
def test_dollars_in_a_text_are_drawn_as_they_are(text):
    figure = plotting.shaded_text(
        text, [(text, [text, "word"], np.array([1.0, -0.5])), (f"query: {text}", [], np.array([]))]
    )
    figure.canvas.draw()  # mathtext is parsed here
    drawn = [one for one in figure.findobj(Text) if text in one.get_text()]
    assert len(drawn) == 4 and not any(one.get_parse_math() for one in drawn)
    plt.close(figure)


@pytest.mark.parametrize("text", FORMULAS)
def test_names_of_rows_are_drawn_as_they_are(text):
    figure, ax = plt.subplots()
    frame = pd.DataFrame(
        {"row_id": [text], "family": "lexical", "value": 0.1, "ci_low": 0.0, "ci_high": 0.2, "ceiling": 1.0}
    )
    plotting.dot_intervals(ax, frame, "LDS")
    figure.canvas.draw()
    assert ax.get_yticklabels()[0].get_text() == plotting.named(text)
    plt.close(figure)


# --- numbers and colours

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


@pytest.mark.parametrize(
    ("row_id", "name"),
    [("influence_ekfac", "influence EK-FAC"), ("d_trak", "D-TRAK"), ("diffusion_trak", "TRAK"),
     ("trak_seeds", "TRAK seeds"), ("stride_and_logra", "STRIDE and LoGra"), ("resource_2", "resource 2"),
     ("gradient_dot", "gradient dot")],
)  # fmt: skip
def test_methods_are_called_by_their_names(row_id, name):
    """Whole words only: "source" in "resource" stays."""
    assert plotting.named(row_id) == name


def test_nothing_is_cut_off_in_the_committed_figures():
    """What runs out of a figure has ink in its outermost rows or columns of pixels."""
    cut = []
    for path in sorted((Path(__file__).parents[1] / "figures").glob("*.png")):
        pixels = plt.imread(path)[..., :3]
        if min(edge.min() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])) < 0.9:
            cut.append(path.name)
    assert not cut, "shorten their titles and labels, or break the lines"
