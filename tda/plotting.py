"""Figures that look alike: one style, colour-blind-safe colours, deterministic files, shaded text."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb

from tda.artefacts import atomic

# Okabe and Ito's palette: distinguishable with any common colour blindness, and in grey by lightness.
COLOURS = {
    "baseline": "#7f7f7f",
    "lexical": "#E69F00",
    "representation": "#CC79A7",
    "gradient": "#0072B2",
    "unlearning": "#D55E00",
    "curvature": "#009E73",
    "unrolling": "#56B4E9",
    "simulation": "#332288",
    "retraining": "#882255",
}
FALLBACK = "#000000"
NAMES = {
    "abu": "AbU", "airrep": "AirRep", "bgo": "BGO", "bm25": "BM25", "cg": "CG", "concept trak": "Concept-TRAK",
    "d trak": "D-TRAK", "das": "DAS", "datainf": "DataInf", "diffusion trak": "TRAK", "ekfac": "EK-FAC",
    "ewc": "EWC", "ggn": "GGN", "half influence residual": "half-model influence, residual",
    "half influence": "half-model influence",
    "hessian": "Hessian", "journey trak": "Journey-TRAK", "kfac": "K-FAC", "lissa": "LiSSA", "logra": "LoGra",
    "minilm": "MiniLM", "mucs": "MUCS", "nda": "NDA", "nystrom": "Nyström", "pca": "PCA", "pcg": "PCG",
    "source": "SOURCE", "stride": "STRIDE", "tfidf": "TF-IDF", "tracincp": "TracInCP", "trackstar": "TrackStar",
    "trak": "TRAK",
}  # fmt: skip
NAMED = re.compile(r"\b(" + "|".join(sorted(NAMES, key=len, reverse=True)) + r")\b")
SHADES = {True: "#E69F00", False: "#56B4E9"}  # words with positive and with negative weight


def style() -> None:
    """Set matplotlib's defaults for the compendium: sizes that stay readable at half width."""
    plt.rc("figure", dpi=110)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("savefig", dpi=200)
    plt.rc("font", size=11)
    plt.rc("axes", titlesize=12, titlelocation="left")
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("legend", frameon=False)


def save_to(figure, path: Path) -> None:
    """Write a figure without date or software stamps, so that equal figures are equal files."""
    with atomic(path) as unfinished:
        figure.savefig(unfinished, metadata={"Software": None})


def panels(count: int, across: int, size: tuple[float, float], **options):
    """A figure of ``count`` panels, ``across`` in a row, ``size`` inches each: ``(figure, list of count axes)``."""
    down = -(-count // across)
    figure, axes = plt.subplots(down, across, figsize=(size[0] * across, size[1] * down), squeeze=False, **options)
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, list(axes.flat[:count])


def legend_below(figure, ax=None, ncols: int = 3, **options) -> None:
    """One legend below all panels, with the labels of ``ax`` (of all panels by default)."""
    handles = ax.get_legend_handles_labels() if ax is not None else ()
    figure.legend(*handles, loc="outside lower center", ncols=ncols, **options)


def named(row_id: str) -> str:
    """A row's id as a reader knows it: ``influence_ekfac`` is "influence EK-FAC"."""
    return NAMED.sub(lambda found: NAMES[found[0]], row_id.replace("_", " "))


def interval(ax, place: float, interval, colour: str, across: bool = True, **options) -> None:
    """A dot and the line of its interval at ``place`` on the other axis; ``across``: the interval is horizontal."""
    value, low, high = interval
    ends, dot = ([low, high], [place, place]), (value, place)
    ax.plot(*(ends if across else ends[::-1]), color=colour, lw=2, solid_capstyle="butt")
    ax.plot(*(dot if across else dot[::-1]), "o", color=colour, **options)


def dot_intervals(ax, frame: pd.DataFrame, label: str, order: Sequence[str] | None = None) -> None:
    """One dot and interval per row of a leaderboard part (columns row_id, family, value, ci_low, ci_high, ceiling).

    Rows are sorted by value unless ``order`` names them from bottom to top. The noise ceiling is a dashed line.
    """
    frame = frame.sort_values("value").set_index("row_id")
    frame = frame if order is None else frame.loc[list(order)]
    for y, (_, line) in enumerate(frame.iterrows()):
        interval(ax, y, (line.value, line.ci_low, line.ci_high), COLOURS.get(line.family, FALLBACK), ms=6)
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    if frame.ceiling.notna().any():
        ax.axvline(frame.ceiling.dropna().iloc[0], color="0.2", lw=1.2, ls="--", zorder=0)
    ax.set_yticks(range(len(frame)), [named(str(name)) for name in frame.index], parse_math=False)
    ax.set_xlabel(label)


def family_legend(figure, families: Sequence[str], ceiling: bool = True, additive: bool = False) -> None:
    """A legend below the panels: one colour per family, the dashed line of the noise ceiling, and the dotted one of the
    additive ceiling.
    """
    names = dict.fromkeys(families)
    handles = [plt.Line2D([], [], marker="o", color=COLOURS.get(f, FALLBACK), lw=2, label=f) for f in names]
    if ceiling:
        handles.append(plt.Line2D([], [], color="0.2", ls="--", lw=1.2, label="noise ceiling of the bank"))
    if additive:
        handles.append(plt.Line2D([], [], color="0.2", ls=":", lw=1.6, label="additive ceiling"))
    legend_below(figure, ncols=min(len(handles), int(figure.get_figwidth() / 1.9)), handles=handles)


class Markup(str):
    """A string that is HTML already. Any other string is text, and is escaped where it is put into a table."""


def shaded(words: Sequence[str], weights: np.ndarray, largest: float | None = None, separator: str = " ") -> Markup:
    """Words as HTML, shaded by weight: orange where positive (proponent), blue where negative (opponent)."""
    weights = np.asarray(weights, dtype=float)
    largest = largest or float(np.abs(weights).max()) or 1.0
    spans = []
    for word, weight in zip(words, weights, strict=True):
        red, green, blue = (int(255 * part) for part in to_rgb(SHADES[weight > 0]))
        alpha = min(1.0, abs(weight) / largest) * 0.9
        spans.append(f'<span style="background: rgba({red},{green},{blue},{alpha:.2f})">{html.escape(word)}</span>')
    return Markup(html.escape(separator).join(spans))


def ranking_html(lines: Sequence[tuple[str, str]]) -> Markup:
    """A table of (note, text), the query above its documents; what is not :class:`Markup` is escaped."""
    cell = "<td style='text-align:left;vertical-align:top'>"
    escaped = [[part if isinstance(part, Markup) else html.escape(part) for part in line] for line in lines]
    body = "".join(f"<tr>{cell}{note}</td>{cell}{text}</td></tr>" for note, text in escaped)
    return Markup(f"<table class='tex2jax_ignore mathjax_ignore'>{body}</table>")


def page(title: str, parts: Sequence[str]) -> str:
    """A self-contained HTML page (no scripts, no outside files) around ``parts``, which are HTML."""
    look = "body{font:15px sans-serif;max-width:60em;margin:2em auto}td{padding:.3em .6em;vertical-align:top}"
    body = "\n<hr>\n".join(parts)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{look}</style><h1>{html.escape(title)}</h1>{body}</html>\n"
    )


def shaded_text(title: str, lines: Sequence[tuple[str, Sequence[str], np.ndarray]], separator: str = " "):
    """A figure of (heading, words, weights in [-1, 1]) shaded like :func:`shaded`; long lines are wrapped.

    ``separator`` stands between words; give "" for pieces that carry their own spaces (byte-level tokens).
    """
    size, inches = 9, 9.0
    width = int(inches * 72 * 0.93 / (0.602 * size))  # characters of the monospaced font that fit
    placed, row = [], 0.0
    for heading, words, weights in lines:
        for line in textwrap.wrap(heading, width) or [""]:
            placed.append((0, row, line, None))
            row += 1
        column = 0
        for word, weight in zip(words, weights, strict=True):
            word = word.replace("\n", " ")
            if column + len(word) > width:
                row, column = row + 1, 0
            placed.append((column, row, word if column else word.lstrip(), float(weight)))
            column += len(placed[-1][2]) + len(separator)
        row += 1.7 if len(words) else 0.2
    figure, ax = plt.subplots(figsize=(inches, 0.6 + 0.185 * row))
    ax.set_axis_off()
    ax.set(xlim=(0, width), ylim=(row, -1))
    ax.set_title(title, parse_math=False)  # dollars are dollars: texts are not formulas
    for column, row, word, weight in placed:
        if weight is not None:
            alpha = min(1.0, abs(weight)) * 0.9
            colour = SHADES[weight > 0]
            ax.add_patch(plt.Rectangle((column, row - 0.45), len(word), 0.9, color=colour, alpha=alpha, lw=0))
        tone = "0.35" if weight is None else "0"
        ax.text(column, row, word, fontsize=size, family="monospace", va="center", color=tone, parse_math=False)
    return figure
