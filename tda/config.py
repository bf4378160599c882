"""The configuration: a YAML profile, defaults from the schema, overrides, validation, and where its data
lives.

``workflow/config/schema.yaml`` describes every key and holds its default. ``load`` returns one plain dict
in which every key is present, so no code elsewhere repeats a default.
"""

from __future__ import annotations

import copy
import importlib.metadata
from pathlib import Path
from typing import Any

import yaml

from tda import config_schema
from tda.artefacts import key_of
from tda.config_checks import ConfigError, close, cross_checks, dotted, finite, numbers_as_text, row_testbeds

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "workflow" / "config"
REFERENCE_ROWS = ("gradient_dot", "bm25")  # every chapter reports paired differences to these
BASELINE_ROWS = ("random", "same_entity", "bm25", "tfidf", "minilm", "hidden_cosine", "gradient_dot", "tracincp")


def load(profile: str = "smoke", overrides: dict | None = None, *, as_text: bool = False) -> dict[str, Any]:
    """The validated configuration of ``profile``, with every default filled in.

    ``profile`` is a name in ``workflow/config`` or a path to a YAML file (whose ``profile`` key, if any,
    equals the file's name). A profile with a ``base`` states only what differs from that one.
    ``overrides`` is merged into it: maps merge key by key, lists and values replace, ``None`` removes a
    design or ``removals``. With ``as_text`` they come from a command line that hands on numbers as text, and
    :func:`tda.config_schema.typed` reads them. The result holds ``overrides`` (``{}`` when there are none). Raises
    :class:`ConfigError`.
    """
    path = _profile_path(profile)
    where = path.name
    raw = _on_its_base(_read(path), where)
    stated = raw.setdefault("profile", path.stem)
    if stated != path.stem:
        raise ConfigError(
            f"{where}: profile: {stated!r} differs from the file's name; write {path.stem!r} or rename the "
            "file, so that two profiles never share a folder"
        )
    overrides = copy.deepcopy(overrides) if overrides else {}
    if not isinstance(overrides, dict) or {"profile", "base", "overrides"} & set(overrides):
        raise ConfigError(f"overrides: must be a map of config keys other than 'profile' and 'base', got {overrides!r}")
    if as_text:
        overrides = config_schema.typed(overrides, _merge(raw, overrides))
    config = _merge(raw, overrides)
    for testbed in _maps(config.get("testbeds")):
        if isinstance(testbed.get("designs"), dict):
            testbed["designs"] = {name: design for name, design in testbed["designs"].items() if design is not None}
    where = f"{where} with overrides" if overrides else where
    finite(config, where)
    config = config_schema.filled(config)
    errors = sorted(
        config_schema.errors(config),
        key=lambda error: (-len(error.absolute_path), dotted(error.absolute_path)),
    )
    if errors:
        raise ConfigError(f"{where}: {config_schema.explain(errors[0])}")
    numbers_as_text(config, where)
    cross_checks(config, where)
    config["overrides"] = overrides
    return config


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


def declared_figures(notebook: str, testbed: str | None = None) -> list[str]:
    """Files under ``figures/`` that a chapter says it makes, with ``{testbed}`` written out."""
    declared = yaml.safe_load((ROOT / "workflow" / "figures.yaml").read_text(encoding="utf-8")).get(notebook, [])
    return [name.replace("{testbed}", testbed) if testbed else name for name in declared]


def rows(config: dict, testbed: str | None = None, notebook: str | None = None) -> list[dict]:
    """Rows of ``testbed`` and ``notebook`` (``None`` = any) in config order, without :func:`skipped_rows`."""
    chosen = [row for row in config["rows"] if notebook in (None, row["notebook"])]
    if testbed is not None:
        chosen = [row for row in chosen if testbed in row_testbeds(config["testbeds"], row)]
    return [row for row in chosen if _installed(row["requires"])]


def compared_rows(config: dict, testbed: str, notebook: str) -> list[str]:
    """Ids of the rows that a chapter shows, in config order: its own, those that its claims name, and the baselines."""
    claims = [claim for claim in config["claims"] if (claim["notebook"], claim["testbed"]) == (notebook, testbed)]
    others = {claim[part] for claim in claims for part in ("row", "against")} | set(BASELINE_ROWS)
    return [row["id"] for row in rows(config, testbed) if row["notebook"] == notebook or row["id"] in others]


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


def _profile_path(profile: str) -> Path:
    names = sorted(path.stem for path in PROFILES.glob("*.yaml") if path.stem != "schema")
    if not names:
        raise ConfigError(f"{PROFILES}: no profiles found; install tda from its repository: pip install -e . --no-deps")
    text = str(profile)
    if text in names:
        return PROFILES / f"{text}.yaml"
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"profile: {text!r} is unknown; allowed: {', '.join(names)}, or a path to a .yaml file{close(text, names)}"
        )
    if path.stem in ("banks", "sources", "scratch", "downloads"):
        raise ConfigError(f"profile: {text!r} would write into data/{path.stem}, which is taken; rename the file")
    path = next((found for found in (path, ROOT / path) if found.is_file()), None)
    if path is None:
        raise ConfigError(
            f"profile: no file {text!r}; give a path to an existing .yaml file or one of {', '.join(names)}"
        )
    if path.stem in names and path.resolve() != PROFILES / f"{path.stem}.yaml":
        raise ConfigError(
            f"profile: {text!r} has the name of a built-in profile; rename the file, it also names the data"
        )
    return path


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _read(path: Path) -> dict:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(
            f"{path.name}: {line}{getattr(error, 'problem', None) or error}; the file must be YAML in UTF-8"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: must hold a map of config keys, got {type(content).__name__}")
    return content


def _on_its_base(raw: dict, where: str) -> dict:
    """``raw`` laid over the profile that its ``base`` names, if any.

    Maps merge key by key. A row or claim takes the place of all entries of the base that have its id; new ids are added
    at the end.
    """
    if not raw.get("base"):
        return raw
    base = _read(_profile_path(raw["base"]))
    if base.pop("base", ""):
        raise ConfigError(f"{where}: base: {raw['base']!r} has a base itself; name a profile that stands alone")
    base.pop("profile", None)
    merged = _merge(base, raw)
    for part in ("rows", "claims"):
        if isinstance(raw.get(part, []), list):  # anything else is for the validator
            merged[part] = _by_id(base.get(part, []), raw.get(part, []))
    return merged


def _by_id(base: list, own: list) -> list:
    def name(entry: Any) -> str:  # as text: what is not a map with a name is for the validator to refuse
        return str(entry.get("id")) if isinstance(entry, dict) else ""

    named: dict[str, list] = {}
    for entry in own:
        named.setdefault(name(entry), []).append(entry)
    joined, placed = [], set()
    for entry in base:
        joined += [] if name(entry) in placed else named.get(name(entry), [entry])
        placed |= {name(entry)} & set(named)
    return joined + [entry for key, entries in named.items() if key not in placed for entry in entries]


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {
            key: _merge(base[key], over[key])
            if key in base and key in over
            else copy.deepcopy(over.get(key, base.get(key)))
            for key in [*base, *(key for key in over if key not in base)]
        }
    return copy.deepcopy(over)


def _maps(value: Any) -> list[dict]:
    return [item for item in value.values() if isinstance(item, dict)] if isinstance(value, dict) else []


def _installed(package: str) -> bool:
    if not package:
        return True
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
