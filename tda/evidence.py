"""What decides a claim? The interval of a row's metric, of a difference between two rows, or of a chapter's finding.

A *finding* is a number that no row of the leaderboard holds: a chapter that trains models of its own (a grid of
settings, say) saves its findings under names that start with ``finding_``, and a claim of the config whose metric is
such a name is judged by them like any other. A chapter runs on testbeds, with a table of findings for each, or on none:
``testbed`` is then ``None`` throughout, and its claims name no testbed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tda import attribution, bank, config_files, measures, models
from tda.artefacts import ArtefactError, read_table, write_table
from tda.config import claims_of, declared_figures, figures_dir, rows
from tda.config_checks import EVERY_OTHER
from tda.evaluation import removal
from tda.evaluation.ceiling import Ceiling
from tda.evaluation.intervals import Interval, mean_interval
from tda.evaluation.rates import Rate, least
from tda.testbeds import Testbed

SECONDS = "finding_cost_"  # how names of findings on seconds start
TABLES = ("findings", "cost")  # of findings, behind the chapter's number: of those on seconds the second
COUNTS = ("successes", "trials", "lost")  # of a rate, from which its limits at another level follow
COLUMNS = ("finding", "value", "low", "high", "df", *COUNTS)


@dataclass(frozen=True)
class Criterion:
    """A region of values: direction greater or less than `margin`, or parity (absolute value below `margin` > 0)."""

    direction: str
    margin: float = 0.0

    @property
    def region(self) -> tuple[float, float]:
        """Open interval of the values for which the claim is true."""
        greater, less, parity = (self.margin, math.inf), (-math.inf, self.margin), (-self.margin, self.margin)
        return {"greater": greater, "less": less, "parity": parity}[self.direction]

    def __str__(self) -> str:
        if self.direction == "parity":
            return f"within +-{self.margin:g} (equivalence: less than {self.margin:g} counts as none)"
        return {"greater": "> ", "less": "< "}[self.direction] + f"{self.margin:g}"


def interval_of(claim: dict, config: dict, testbed: Testbed | None) -> Interval:
    """The interval that decides a claim of the config, at the config's level: a row's metric, its paired difference to
    another row or to the best of all :func:`contenders`, or a finding.
    """
    metric, row, other = claim["metric"], claim["row"], claim["against"]
    others = contenders(claim, testbed) if other == EVERY_OTHER else (other,) if other else ()
    if metric.startswith("finding_"):
        return _finding(claim, config, testbed)
    if metric.startswith("removal_"):  # above random documents, or above another row's
        planned = measures.removals(testbed)
        outputs = removal.load(testbed, planned)
        values = removal.claimed(planned, outputs, row, metric)
        if other:
            values = values - removal.claimed(planned, outputs, other, metric)
        return mean_interval(values, level=measures.level_of(testbed))
    results = measures.on_queries(testbed, [row], claim["query_set"], others, metric)
    if metric not in results:
        raise ValueError(f"claim {claim['id']!r}: no metric {metric!r} on {testbed.name}; there are {sorted(results)}.")
    result = results[metric][0][row]
    if other == EVERY_OTHER:
        return least({name: result.difference[name] for name in others}, measures.level_of(testbed))
    return result.difference[other] if other else result.value


def contenders(claim: dict, testbed: Testbed) -> list[str]:
    """Rows of the testbed that a claim against ``every_other`` is judged by: all but ablations, baselines that know
    nothing of the model (random, metadata), and rows of chapters on the claim's own paper.
    """
    papers = {notebook: chapter.get("paper") for notebook, chapter in config_files.chapters().items()}
    return [
        row["id"]
        for row in rows(testbed.config, testbed.name)
        if not row["ablation"]
        and papers.get(row["notebook"]) != claim["paper"]
        and attribution.named(row["method"]).family != "baseline"
    ]


def ceiling_of(claim: dict, testbed: Testbed | None) -> Ceiling | None:
    """The noise ceiling of the bank behind a claim on an LDS; ``None`` for any other metric."""
    if testbed is None:
        return None
    for design in testbed.settings["designs"]:
        field = measures.read_off(testbed, design).get(claim["metric"])
        if field:
            truth = bank.load(testbed, design)
            chosen = (truth.query_set == claim["query_set"]) & (truth.split == "test")
            clusters = models.query_clusters(testbed, chosen)
            return measures.bound_of(getattr(truth, field)[:, :, chosen], clusters, measures.level_of(testbed))
    return None


def before_correction(notebook: str, config: dict, testbed: Testbed | None) -> pd.DataFrame:
    """The intervals behind a chapter's claims on a testbed, before the correction for their number (chapter 60).

    Claims on removals are left to chapter 60, since chapter 05 trains their models, and so are claims against every
    other row.
    """
    lines = []
    for claim in claims_of(config, testbed and testbed.name, notebook):
        if not claim["metric"].startswith("removal_") and claim["against"] != EVERY_OTHER:
            numbers = dict(zip(("value", "low", "high"), interval_of(claim, config, testbed), strict=True))
            region = str(Criterion(claim["direction"], claim["margin"]))
            lines.append({"claim": claim["claim"]} | numbers | {"true if": region})
    return pd.DataFrame(lines)


def save_findings(notebook: str, config: dict, testbed: Testbed | None, intervals: Mapping[str, Interval]) -> None:
    """Write the findings of a chapter, all of them at once; the intervals are at the config's level.

    Raises ``ValueError`` for a name that does not start with ``finding_``, for numbers out of order or not finite, and
    for an interval without degrees of freedom, which could not be read at Holm's level.
    """
    for name, interval in intervals.items():
        if not re.fullmatch(r"finding_[a-z0-9_]+", name):
            raise ValueError(f"finding {name!r}: a name is finding_ and then lower case, digits or _.")
        if not interval.low <= interval.value <= interval.high or not np.isfinite([interval.low, interval.high]).all():
            raise ValueError(f"{name} is {tuple(interval)}; value and interval must be finite, low <= value <= high.")
        if not interval.df > 0:
            raise ValueError(f"{name} has {interval.df} degrees of freedom; give those of its interval (inf: normal).")
    lines = [(name, *i, i.df, *(getattr(i, part, math.nan) for part in COUNTS)) for name, i in intervals.items()]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    of_seconds = frame.finding.str.startswith(SECONDS)
    for seconds, part in ((False, frame[~of_seconds]), (True, frame[of_seconds])):
        path, about = _findings(notebook, config, testbed, seconds)
        declared = declared_figures(notebook, testbed and testbed.name)
        if len(part) or f"tables/{path.name}" in declared:
            write_table(path, part, about)


def _finding(claim: dict, config: dict, testbed: Testbed | None) -> Interval:
    """The finding that decides a claim; :class:`ArtefactError` where its chapter has not saved it."""
    again = f"{claim['notebook']}{f' on {testbed.name}' if testbed else ''} again"
    path, about = _findings(claim["notebook"], config, testbed, claim["metric"].startswith(SECONDS))
    cure = f"delete {path.name} and run {again}"
    saved = read_table(path, "findings", COLUMNS, about, cure).set_index("finding") if path.exists() else pd.DataFrame()
    if claim["metric"] not in saved.index:
        raise ArtefactError(f"claim {claim['id']!r}: {path} has no {claim['metric']!r}. Run {again}.")
    line = saved.loc[claim["metric"]]
    found = {"value": line["value"], "low": line["low"], "high": line["high"], "df": line["df"]}
    return Interval(**found) if math.isnan(line["trials"]) else Rate(**found, **line[list(COUNTS)])


def _findings(notebook: str, config: dict, testbed: Testbed | None, seconds: bool = False) -> tuple[Path, dict]:
    """The table of a chapter's findings, one of its declared files, and what it says of itself. Those on seconds are in
    a cost table, which is not repeated to the byte.
    """
    suffix = f"_{testbed.name}" if testbed else ""
    path = figures_dir(config) / "tables" / f"{notebook[:2]}_{TABLES[seconds]}{suffix}.csv"
    name, key = (testbed.name, models.model_key(testbed)) if testbed else (None, None)
    made = {"notebook": notebook, "profile": config["profile"], "seed": config["seed"]}
    return path, {"kind": "findings", "testbed": name, "key": key, **made}
