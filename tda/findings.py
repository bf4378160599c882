"""Findings: numbers of a chapter that no row of the leaderboard holds and that claims may rest on.

A chapter that trains models of its own (a grid of settings, say) saves its findings under names that start with
``finding_``; a claim of the config whose metric is such a name is judged by them like any other. The table is one of
the figures that the chapter's file declares, so that the verdicts of chapter 60 wait for it.

A chapter either runs on testbeds, with a table of findings for each, or on none: then the configuration stands here
in the testbed's place, and its claims name no testbed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from tda import models
from tda.artefacts import ArtefactError, read_table, write_table
from tda.config import figures_dir
from tda.evaluation.claims import Measurement
from tda.evaluation.intervals import Interval
from tda.testbeds import Testbed

COLUMNS = ("finding", "value", "low", "high", "df")


def path_of(home: Testbed | dict, notebook: str) -> Path:
    """``<figures>/tables/<number of the notebook>_findings[_<testbed>].csv``; ``home`` as in :func:`save`."""
    config, suffix = (home.config, f"_{home.name}") if isinstance(home, Testbed) else (home, "")
    return figures_dir(config) / "tables" / f"{notebook[:2]}_findings{suffix}.csv"


def save(home: Testbed | dict, notebook: str, found: Mapping[str, Interval]) -> pd.DataFrame:
    """Write the findings of a chapter, all of them at once; the intervals are at the config's level.

    ``home`` is the testbed on which the chapter ran, or the configuration if it runs on none.

    Raises ``ValueError`` for a name that does not start with ``finding_`` and for numbers out of order or not finite.
    """
    for name, interval in found.items():
        if not re.fullmatch(r"finding_[a-z0-9_]+", name):
            raise ValueError(f"finding {name!r}: a name is finding_ and then lower case, digits or _.")
        if not interval.low <= interval.value <= interval.high or not np.isfinite([interval.low, interval.high]).all():
            raise ValueError(f"{name} is {tuple(interval)}; value and interval must be finite, low <= value <= high.")
    frame = pd.DataFrame([(name, *i, i.df) for name, i in found.items()], columns=list(COLUMNS))
    write_table(path_of(home, notebook), frame, _about(home, notebook))
    return frame


def _about(home: Testbed | dict, notebook: str) -> dict:
    """What a table of findings says of itself; its record lies beside it, the committed ones' too."""
    config, name, key = home, None, None
    if isinstance(home, Testbed):
        config, name, key = home.config, home.name, models.model_key(home)
    made = {"notebook": notebook, "profile": config["profile"], "seed": config["seed"]}
    return {"kind": "findings", "testbed": name, "key": key, **made}


def measure(home: Testbed | dict, claim: dict) -> Measurement:
    """The finding that decides a claim; ``home`` as in :func:`save`.

    Raises :class:`ArtefactError` where its chapter has not saved it.
    """
    config, where = (home.config, f" on {home.name}") if isinstance(home, Testbed) else (home, "")
    chapter, path = claim["notebook"], path_of(home, claim["notebook"])
    cure, about = f"delete {path.name} and run {chapter}{where} again", _about(home, chapter)
    known = read_table(path, "findings", COLUMNS, about, cure).set_index("finding") if path.exists() else pd.DataFrame()
    if claim["metric"] not in known.index:
        raise ArtefactError(f"claim {claim['id']!r}: {path} has no {claim['metric']!r}. Run {chapter}{where} again.")
    line = known.loc[claim["metric"]]
    level = config["statistics"]["level"]
    return Measurement(line["value"], line["low"], line["high"], line["df"], level)
