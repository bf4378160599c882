"""The configuration: a profile with its chapters, defaults from the schema, overrides, validation, and where its data
lives. Every key is present in what :func:`load` returns, so no code elsewhere repeats a default.
"""

from __future__ import annotations

import copy
import importlib.metadata
from pathlib import Path
from typing import Any

from tda import config_files, config_schema
from tda.artefacts import key_of
from tda.config_checks import ConfigError, located, number_faults, reference_faults, refuse, row_testbeds
from tda.config_files import PROFILES, ROOT, merge

__all__ = ["PROFILES", "ROOT", "ConfigError"]
REFERENCE_ROWS = ("gradient_dot", "bm25")  # every chapter reports paired differences to these
BASELINE_ROWS = ("random", "same_entity", "bm25", "tfidf", "minilm", "hidden_cosine", "gradient_dot", "tracincp")


def load(profile: str = "smoke", overrides: dict | None = None, *, as_text: bool = False) -> dict[str, Any]:
    """The validated configuration of ``profile``, a plain dict with every default of
    ``workflow/config/schema.yaml`` filled in; :func:`tda.tuning.check_rows` checks the methods of its rows.

    ``profile`` is a name in ``workflow/config`` or a path to a YAML file (whose ``profile`` key, if any,
    equals the file's name). A profile with a ``base`` states only what differs from that one.
    ``overrides`` is merged into it: maps merge key by key, lists and values replace, ``None`` removes a
    design or ``removals``. With ``as_text`` they come from a command line that hands on numbers as text, and
    :func:`tda.config_schema.typed` reads them. The result holds ``overrides`` (``{}`` when there are none) and
    ``places``, for :func:`tda.config_checks.located`. Raises :class:`ConfigError`.
    """
    path = config_files.profile_path(profile)
    raw = config_files.profile(path)
    stated = raw.setdefault("profile", path.stem)
    if stated != path.stem:
        raise ConfigError(
            f"{path.name}: profile: {stated!r} differs from the file's name; write {path.stem!r} or rename the "
            "file, so that two profiles never share a folder"
        )
    overrides = copy.deepcopy(overrides) if overrides else {}
    if not isinstance(overrides, dict) or {"profile", "base", "overrides", "places"} & set(overrides):
        raise ConfigError(f"overrides: must be a map of config keys other than 'profile' and 'base', got {overrides!r}")
    if as_text:
        overrides = config_schema.typed(overrides, merge(raw, overrides))
    config = merge(raw, overrides)
    testbeds = config.get("testbeds")
    for testbed in testbeds.values() if isinstance(testbeds, dict) else ():
        if isinstance(testbed, dict) and isinstance(testbed.get("designs"), dict):
            testbed["designs"] = {name: design for name, design in testbed["designs"].items() if design is not None}
    places = config_files.origins(config, f"{path.name} with overrides" if overrides else path.name)
    refuse(number_faults(config), places)
    config = config_schema.filled(config)
    if problem := config_schema.problem(config):
        raise ConfigError(located(places, problem))
    for claim in config["claims"]:
        paired = "parity" if claim["direction"] == "parity" else "difference"
        claim.setdefault("kind", paired if claim["against"] else "value")
    refuse(reference_faults(config), places)
    return config | {"overrides": overrides, "places": places}


def data_dir(config: dict) -> Path:
    """``data/<profile>``, or ``data/scratch/<hash of the settings>`` for a configuration with
    overrides.
    """
    if config["overrides"]:
        settings = {key: config[key] for key in ("profile", "overrides", "seed", "testbeds")}
        return ROOT / "data" / "scratch" / key_of(settings)
    return ROOT / "data" / config["profile"]


def figures_dir(config: dict) -> Path:
    """``figures/`` for the paper profile as committed, ``<data_dir>/figures`` for everything else."""
    committed = config["profile"] == "paper" and not config["overrides"]
    return ROOT / "figures" if committed else data_dir(config) / "figures"


def rows(config: dict, testbed: str | None = None, notebook: str | None = None) -> list[dict]:
    """Rows of ``testbed`` and ``notebook`` (``None`` = any) in config order, without :func:`skipped_rows`."""
    chosen = [row for row in config["rows"] if notebook in (None, row["notebook"])]
    if testbed is not None:
        chosen = [row for row in chosen if testbed in row_testbeds(config["testbeds"], row)]
    return [row for row in chosen if _installed(row["requires"])]


def claims_of(config: dict, testbed: str | None, notebook: str) -> list[dict]:
    """Claims of a chapter on a testbed, or on findings of no testbed."""
    return [claim for claim in config["claims"] if (claim["notebook"], claim["testbed"]) == (notebook, testbed)]


def compared_rows(config: dict, testbed: str, notebook: str) -> list[str]:
    """Ids of the rows that a chapter shows, in config order: its own, those of its claims, those that its file says it
    reads, and the baselines.
    """
    reads = config_files.chapters().get(notebook, {}).get("reads", [])
    claims = claims_of(config, testbed, notebook)
    others = {claim[part] for claim in claims for part in ("row", "against")} | {*BASELINE_ROWS, *reads}
    return [row["id"] for row in rows(config, testbed) if row["notebook"] == notebook or row["id"] in others]


def chapter_testbeds(config: dict, notebook: str) -> list[str | None]:
    """Testbeds on which a chapter runs, in config order; ``[None]`` if it runs once, on none, ``[]`` if not at all.

    They are those of its rows and of the claims on its findings; for a chapter whose file has neither, those that the
    file declares and that have the rows that it reads. A notebook whose file declares none has a rule of its own.
    """
    claims = [claim for claim in config["claims"] if claim["notebook"] == notebook]
    found = {claim["testbed"] for claim in claims if claim["metric"].startswith("finding_")}
    used = [name for name in config["testbeds"] if name in found or rows(config, name, notebook)]
    chapter = config_files.chapters().get(notebook, {})
    if used or None in found or "testbeds" not in chapter or chapter.keys() & {"rows", "claims"}:
        return used or ([None] if None in found else [])
    named = (chapter.get(name) for name in (config["profile"], config["base"]))
    section = next((part for part in named if isinstance(part, dict)), {})  # `paper` names the article
    declared = section.get("testbeds", chapter["testbeds"])
    if not declared:
        return [None]
    reads = set(chapter.get("reads", ()))
    here = [name for name in config["testbeds"] if name in declared]
    return [name for name in here if reads <= {row["id"] for row in rows(config, name)}]


def declared_figures(notebook: str, testbed: str | None = None) -> list[str]:
    """Files below :func:`figures_dir` that a chapter says it makes; on ``testbed`` those with ``{testbed}`` written
    out, and those that name this testbed themselves.
    """
    names = config_files.chapters().get(notebook, {}).get("figures", {})
    if not testbed:
        return list(names)
    mine = [name for name in names if "{testbed}" in name or Path(name).stem.endswith(f"_{testbed}")]
    return [name.replace("{testbed}", testbed) for name in mine]


def removal_rows(config: dict, testbed: str) -> list[dict]:
    """Rows of ``testbed`` whose top documents are removed, in config order, without :func:`skipped_rows`."""
    wanted = (config["testbeds"][testbed]["removals"] or {"rows": []})["rows"]
    return [row for row in rows(config, testbed) if row["id"] in wanted]


def skipped_rows(config: dict) -> dict[str, str]:
    """Row id -> one-line reason, for rows left out because their optional package is not installed."""
    return {
        row["id"]: f"row {row['id']} is left out: the optional package {row['requires']} is not installed "
        f"(pip install --no-deps {row['requires']})"
        for row in config["rows"]
        if not _installed(row["requires"])
    }


def _installed(package: str) -> bool:
    try:
        return not package or bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False
