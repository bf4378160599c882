"""What comes from data is text: escaped in a page, and no formula in a figure."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
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
    assert ax.get_yticklabels()[0].get_text() == text.replace("_", " ")
    plt.close(figure)
