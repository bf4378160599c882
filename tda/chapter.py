"""What a notebook stands in: its testbed, its rows and queries, the truth, and where its figures and tables go.

``chapter = Chapter("12_stride", profile=profile, testbed=testbed, overrides=overrides)`` prints what the notebook has
received and opens the testbed, if there is one. Everything else is built when it is first asked for, and kept on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from tda import bank, config, evidence, measures, models, plotting, scores, tuning
from tda.artefacts import atomic, write_table
from tda.evaluation.intervals import Interval
from tda.notebook import progress, received
from tda.task import Examples, Task, take
from tda.testbeds import Testbed, load


class Saving:
    """Figures, tables and findings of a chapter, under its name; ``testbed`` is part of the name where there is one."""

    name: str
    config: dict
    bed: Testbed | None

    def path(self, name: str):
        """``<figures>/<name>``, ``name`` a file that the chapter's own file in ``workflow/config/chapters`` declares,
        with ``{testbed}`` written out. Raises ``ValueError`` for any other.
        """
        declared = config.declared_figures(self.name, self.bed and self.bed.name)
        if name not in declared:
            raise ValueError(
                f"{name} is not declared: workflow/config/chapters/{self.name}.yaml lists "
                f"{', '.join(declared) or 'none'} under figures. Add it there, or change what the notebook saves."
            )
        return config.figures_dir(self.config) / name

    def _named(self, what: str) -> str:
        return f"{what}_{self.bed.name}" if self.bed else what

    def save(self, figure, what: str) -> None:
        """Write a figure as ``<number>_<what>[_<testbed>].png`` and show it."""
        plotting.save_to(figure, self.path(f"{self._named(f'{self.name[:2]}_{what}')}.png"))
        plt.show()

    def save_table(self, frame: pd.DataFrame, what: str) -> None:
        """Write a table as ``tables/<what>[_<testbed>].csv``. Raises ``ValueError`` for a name that findings have."""
        if what in (f"{self.name[:2]}_{part}" for part in evidence.TABLES):
            raise ValueError(f"{what} is a table that save_findings writes, and would be lost; give another name.")
        write_table(self.path(f"tables/{self._named(what)}.csv"), frame)

    def save_page(self, what: str, title: str, parts: Sequence[str]) -> None:
        """Write HTML parts as the self-contained page ``<number>_<what>[_<testbed>].html``."""
        with atomic(self.path(f"{self._named(f'{self.name[:2]}_{what}')}.html")) as path:
            path.write_text(plotting.page(title, parts), encoding="utf-8")

    def save_findings(self, intervals: Mapping[str, Interval]) -> None:
        """Keep the numbers ``finding_<name>`` that claims of this chapter rest on, all of them at once."""
        evidence.save_findings(self.name, self.config, self.bed, intervals)

    def claims(self) -> pd.DataFrame:
        """What this chapter's claims rest on here, with intervals that chapter 60 corrects for their number."""
        pd.set_option("display.max_colwidth", 110)
        return evidence.before_correction(self.name, self.config, self.bed).round(3)


class Asking:
    """The model of a chapter's testbed, its queries, and what retraining says about them."""

    bed: Testbed | None

    @cached_property
    def task(self) -> Task:
        return models.load_task(self.bed)

    @cached_property
    def query_rows(self) -> list[dict]:
        """What is known of every query: query_id, query_set, split, entity, ..."""
        return models.query_rows(self.bed)

    @cached_property
    def queries(self) -> Examples:
        """All queries as tensors and lists, in the order of the columns of every bank."""
        return models.query_examples(self.bed)

    def which(self, split: str = "test", query_set: str = "held_out") -> np.ndarray:
        """[Q] bool: the queries of a split (tune, test) and a set (held_out, generated)."""
        return models.which(self.bed, split, query_set)

    @cached_property
    def test(self) -> np.ndarray:
        """[Q] bool: the held-out test queries."""
        return self.which("test")

    @cached_property
    def clusters(self) -> list[str]:
        """Cluster of every held-out test query, for the intervals."""
        return models.query_clusters(self.bed, self.test)

    @cached_property
    def test_queries(self) -> Examples:
        return take(self.queries, self.test)

    def bank(self, design: str = "half") -> bank.Bank:
        """The retrained truth: ``subsets`` [M, N], ``outputs`` [M, R, Q], ..."""
        return bank.load(self.bed, design)


class Rows:
    """The rows of a chapter: their options, scores and metrics."""

    name: str
    config: dict
    bed: Testbed | None

    @cached_property
    def row_ids(self) -> list[str]:
        """Rows of the config that this chapter runs on its testbed."""
        return [row["id"] for row in config.rows(self.config, self.bed.name, self.name)]

    @cached_property
    def all_row_ids(self) -> list[str]:
        """Rows of all chapters on the testbed."""
        return [row["id"] for row in config.rows(self.config, self.bed.name)]

    def row(self, row_id: str) -> dict:
        return tuning.row_of(self.bed, row_id)

    def options(self, row_id: str) -> dict:
        """The options that a row runs with, tuned ones included."""
        return tuning.options_of(self.bed, self.row(row_id))

    def scores(self, row_id: str, **other: object) -> np.ndarray:
        """Scores [Q, N] of any row of the testbed; with ``other`` options than its own they are made anew."""
        if not other:
            return scores.load(self.bed, row_id)[0]
        return scores.over_seeds(self.bed, self.row(row_id), self.options(row_id) | other)

    def run(self) -> pd.DataFrame:
        """Tune and run the chapter's rows, and print their progress. Returns, a row a line, its options, which of those
        that the tune queries chose are :func:`tda.tuning.at_the_edge` of their grid, and the seconds of both.
        """
        say, lines = progress(), {}
        for row_id in self.row_ids:
            choice = tuning.tuned(self.bed, self.row(row_id))
            scores.run(self.bed, row_id)
            seconds = scores.load(self.bed, row_id)[1]["seconds"]
            edges = " ".join(tuning.at_the_edge(self.row(row_id), choice["trials"]))
            costs = {"at the edge": edges, "tuning [s]": choice["seconds"], "queries [s]": seconds}
            lines[row_id] = self.options(row_id) | costs
            say(f"{row_id}: {choice['options']}, tuning {choice['seconds']:.0f} s, queries {seconds:.0f} s")
        table = pd.DataFrame(lines.values(), index=pd.Index(lines, name="row"))
        return table.round({"tuning [s]": 2, "queries [s]": 2}).fillna("")

    def compare(self, metric: str, row_ids: Sequence[str], references: Sequence[str] = ()) -> dict:
        """``{row id: RowResult}`` of a metric on the held-out test queries, paired with ``references``."""
        return measures.on_queries(self.bed, row_ids, "held_out", references, metric)[metric][0]

    def metrics(self) -> pd.DataFrame:
        """Metrics of the chapter's rows, measured anew, and of those that it is compared with."""
        if self.row_ids:
            measures.write(self.bed, self.row_ids)
        return measures.of_chapter(self.bed, self.name)


class Chapter(Saving, Asking, Rows):
    """A notebook on a testbed, or on none: ``bed`` is then ``None``, and ``beds`` has all of the profile."""

    def __init__(
        self, name: str, *, profile: str = "smoke", testbed: str | None = None, overrides: dict | None = None, **more
    ) -> None:
        on = {"testbed": testbed} if testbed is not None else {}
        received(profile=profile, **on, **more, overrides=overrides or {})
        self.name = name
        self._load = lambda other: load(other, profile, overrides)
        self.bed = self._load(testbed) if testbed is not None else None
        self.config = self.bed.config if self.bed else config.load(profile, overrides)
        tuning.check_rows(self.config)
        self.level: float = self.config["statistics"]["level"]

    @cached_property
    def beds(self) -> dict[str, Testbed]:
        """Every testbed of the profile."""
        return {name: self._load(name) for name in self.config["testbeds"]}
