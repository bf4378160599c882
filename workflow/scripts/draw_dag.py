"""Draw the rule graph of the workflow as SVG, with matplotlib alone: `draw_dag.py OUT.svg -- <snakemake
options>`.

Jobs of one stage on several testbeds (`bank_on_people`, `bank_on_authors`) become one box. Columns are the
longest path from the start, and boxes that start nothing stand just left of what they end in; the same
rules give the same bytes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from tda.artefacts import atomic

COLOURS = {
    "corpora": "#dbe9f6",
    "training": "#dbe9f6",
    "bank": "#fde7c9",
    "removal": "#fde7c9",
    "chapter": "#dff0d8",
}


def rule_graph(dot: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Boxes and arrows of Snakemake's DOT text, with the testbeds of a stage joined."""
    labels = dict(re.findall(r'^\s*(\d+)\s*\[\s*label\s*=\s*"([^"\\]+)', dot, flags=re.MULTILINE))
    if not labels:
        raise SystemExit(f"no rules in the answer of snakemake --rulegraph:\n{dot}")
    names = {key: label.split("_on_")[0] for key, label in labels.items()}
    arrows = {(names[a], names[b]) for a, b in re.findall(r"^\s*(\d+)\s*->\s*(\d+)", dot, flags=re.MULTILINE)}
    return set(names.values()), {(a, b) for a, b in arrows if a != b}


def layers(boxes: set[str], arrows: set[tuple[str, str]]) -> dict[str, int]:
    """Column of each box."""
    parents = {box: sorted(a for a, b in arrows if b == box) for box in boxes}
    depth: dict[str, int] = {}

    def visit(box: str) -> int:
        if box not in depth:
            depth[box] = 1 + max((visit(parent) for parent in parents[box]), default=-1)
        return depth[box]

    for box in sorted(boxes):
        visit(box)
    for box in sorted(box for box in boxes if not parents[box]):
        depth[box] = max(0, min((depth[b] for a, b in arrows if a == box), default=1) - 1)
    return depth


def shortest(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Arrows that no longer path replaces (transitive reduction)."""
    after = defaultdict(set)
    for a, b in arrows:
        after[a].add(b)

    def reaches(start: str, goal: str) -> bool:
        return goal in after[start] or any(reaches(step, goal) for step in after[start])

    return {(a, b) for a, b in arrows if not any(reaches(c, b) for c in after[a] - {b})}


def draw(dot: str, path: Path) -> None:
    boxes, arrows = rule_graph(dot)
    depth = layers(boxes, arrows)
    columns = defaultdict(list)
    for box in sorted(boxes):
        columns[depth[box]].append(box)
    tallest = max(map(len, columns.values()))
    place = {
        box: (1.75 * level, (len(column) - 1) / 2 * 0.6 - 0.6 * index)
        for level, column in columns.items()
        for index, box in enumerate(column)
    }
    plt.rcParams |= {
        "svg.hashsalt": "tda",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
    }
    figure, axes = plt.subplots(figsize=(1.75 * len(columns), 0.6 + 0.6 * tallest))
    figure.subplots_adjust(0, 0, 1, 1)
    for a, b in sorted(shortest(arrows)):
        (x, y), (u, v) = place[a], place[b]
        arrow = {"arrowstyle": "-|>", "color": "0.45", "shrinkA": 30, "shrinkB": 30}
        axes.annotate("", xy=(u, v), xytext=(x, y), arrowprops=arrow)
    for box, (x, y) in sorted(place.items()):
        style = {
            "boxstyle": "round,pad=0.45",
            "facecolor": COLOURS.get(box.split("_")[0], "#eeeeee"),
            "edgecolor": "0.4",
        }
        text = box.removeprefix("chapter_").replace("_", " ").replace(" ", "\n", 1)
        axes.text(x, y, text, ha="center", va="center", bbox=style)
    axes.set(xlim=(-0.875, 1.75 * len(columns) - 0.875), ylim=(-0.3 * tallest - 0.3, 0.3 * tallest + 0.3))
    axes.set_axis_off()
    with atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[2] != "--":
        raise SystemExit("usage: draw_dag.py OUT.svg -- <snakemake options>")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--rulegraph",
        "--forceall",
        "--nolock",
        "--quiet",
        "all",
        *sys.argv[3:],
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{answer.stderr}")
    draw(answer.stdout, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
