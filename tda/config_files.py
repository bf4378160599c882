"""The files of a configuration put together: a profile, the one it is based on, and the chapters' own files.

``workflow/config/chapters/<notebook>.yaml`` says what one chapter adds. Its rows and claims are those of the profile
``paper``; a section with another profile's name lists the rows and claims that the chapter has there. An entry of a
section is an id (as in ``paper``), an id with the keys that differ (any of ``tune``, ``tune_like`` and ``tune_every``
takes the place of all three), or, if it states a method or a metric, whole. A profile that stands alone has what its
sections list; one with a ``base`` has the base's rows and claims besides.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tda import config_schema
from tda.config_checks import ConfigError, close

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "workflow" / "config"
HOME = "paper"  # the profile whose rows and claims stand at the top of a chapter's file
WHOLE = {"rows": "method", "claims": "metric"}  # the key that tells a whole entry of a section from a changed one
CHOICE = {"tune", "tune_like", "tune_every"}
ORIGIN = ("origin",)  # key under which an entry carries the places of its keys; no file can hold it


def profile(name: str) -> dict[str, Any]:
    """The content of a profile, with the chapters' rows and claims and laid over its base.

    ``name`` as for :func:`tda.config.load`. Maps merge key by key. A row or claim takes the place of all entries of the
    base that have its id; new ids are added at the end.
    """
    path = profile_path(name)
    raw = _with_chapters(path)
    if not raw.get("base"):
        return raw
    base = _with_chapters(profile_path(raw["base"]))
    if base.pop("base", ""):
        raise ConfigError(f"{path.name}: base: {raw['base']!r} has a base itself; name a profile that stands alone")
    base.pop("profile", None)
    merged = merge(base, raw)
    for part in WHOLE:
        if isinstance(raw.get(part, []), list):  # anything else is for the validator
            merged[part] = _by_id(base.get(part, []), raw.get(part, []))
    return merged


def _with_chapters(path: Path) -> dict:
    raw = read(path.read_bytes(), path.name)
    for part in WHOLE:
        entries = _entries(part, path.stem, based=bool(raw.get("base")))
        if entries and isinstance(raw.get(part, []), list):
            raw[part] = _by_id(entries, raw.get(part, []))
    return raw


def chapters() -> dict[str, dict]:
    """Notebook -> content of its file, checked, in the order in which their rows and claims stand in tables."""
    found, numbers = {}, {}
    for path in sorted((PROFILES / "chapters").glob("*.yaml")):
        other = numbers.setdefault(path.stem[:2], path.name)
        if other != path.name:
            problem = f"number {path.stem[:2]} is that of {other}; rename this file and its notebook"
            raise ConfigError(f"chapters/{path.name}: {problem}")
        found[path.stem] = _chapter(path.stem, path.read_bytes())
    ids = {row["id"] for chapter in found.values() for row in chapter.get("rows", ())}
    for name, chapter in found.items():
        if missing := [row_id for row_id in chapter.get("reads", ()) if row_id not in ids]:
            raise ConfigError(f"chapters/{name}.yaml: reads: {missing[0]!r} is not allowed; no chapter has such a row")
    return dict(sorted(found.items(), key=lambda item: (item[1].get("place", int(item[0][:2])), item[0])))


@functools.lru_cache(maxsize=1024)
def _chapter(name: str, content: bytes) -> dict:
    """A chapter's file, read and checked; nobody changes what is returned."""
    where = f"chapters/{name}.yaml"
    if not (ROOT / "notebooks" / f"{name}.ipynb").exists():
        raise ConfigError(f"{where}: notebooks/{name}.ipynb does not exist; give both one name")
    chapter = read(content, where)
    if problem := config_schema.problem(chapter, "chapter"):
        raise ConfigError(f"{where}: {problem}")
    sections = [chapter, *(part for part in chapter.values() if isinstance(part, dict))]
    if "paper" not in chapter and any(section.get("claims") for section in sections):
        raise ConfigError(f"{where}: paper: missing; whose claims are they?")
    if chapter.get("testbeds") == []:
        if any(section.get("rows") for section in sections):
            raise ConfigError(f"{where}: rows: not allowed with testbeds: []; rows run on testbeds, name one")
        if each := [figure for figure in chapter.get("figures", ()) if "{testbed}" in figure]:
            raise ConfigError(f"{where}: figures: {each[0]!r} is not allowed; testbeds: [] says that there is none")
    return chapter


def _entries(part: str, profile: str, based: bool) -> list[dict]:
    """Rows or claims (``part``) of all chapters in a profile; with a base, those of an id that some section names."""
    found = chapters()
    own = {name: _listed(part, name, chapter) for name, chapter in found.items()}
    if profile == HOME:
        return [entry for entries in own.values() for entry in entries]
    changes = {name: _listed(part, name, chapter, profile) for name, chapter in found.items()}
    named = {entry["id"] for entries in changes.values() for entry in entries} if based else set()
    return [entry for name in own for entry in _changed(part, name, own[name], changes[name], named)]


def _listed(part: str, name: str, chapter: dict, section: str = "") -> list[dict]:
    """The entries of a list in a chapter's file as maps; whole ones hold what the file says once for all of them."""
    testbeds = chapter.get("testbeds", [])
    common = {"notebook": name, "testbeds": testbeds}
    if part == "claims":
        only = testbeds[0] if len(testbeds) == 1 else None
        common = {"notebook": name, "paper": chapter.get("paper"), "testbed": only}
    listed = (chapter.get(section, {}) if section else chapter).get(part, [])
    where = f"chapters/{name}.yaml: {section}{'.' if section else ''}{part}"
    entries = [{"id": entry} if isinstance(entry, str) else entry for entry in listed]
    return [
        (common if WHOLE[part] in entry else {}) | entry | {ORIGIN: {"": f"{where}[{index}]"}}
        for index, entry in enumerate(entries)
    ]


def _changed(part: str, name: str, own: list[dict], changes: list[dict], named: set[str]) -> list[dict]:
    """A chapter's entries of the ids in ``changes`` and ``named``, in their order, the changes laid over them."""
    known = sorted({entry["id"] for entry in own})
    whole = [entry for entry in changes if WHOLE[part] in entry]
    over: dict[str, dict] = {}
    for entry in changes:
        if WHOLE[part] in entry:
            continue
        if entry["id"] not in known:
            problem = f"{part} of {name}: {', '.join(known) or 'none'}; with a {WHOLE[part]} it is a new one"
        elif entry["id"] in over or entry["id"] in {other["id"] for other in whole}:
            problem = "it is listed twice; list it once"
        else:
            over[entry["id"]] = entry
            continue
        raise ConfigError(
            f"{entry[ORIGIN]['']}.id: {entry['id']!r} is not allowed; {problem}{close(entry['id'], known)}"
        )
    wanted = named | {entry["id"] for entry in changes}
    return _by_id([_over(entry, over.get(entry["id"])) for entry in own if entry["id"] in wanted], whole)


def _over(entry: dict, change: dict | None) -> dict:
    if change is None:
        return entry
    kept = {key: value for key, value in entry.items() if not (key in CHOICE and CHOICE & change.keys())}
    origin = entry[ORIGIN] | {str(key): change[ORIGIN][""] for key in change}
    return kept | change | {ORIGIN: origin}


def origins(config: dict, where: str) -> Callable[[str], str]:
    """Takes the places of the chapters' entries out of ``config``; returns a function that puts one before a message.

    The message starts with its key. One on ``rows[57].tune`` then names the chapter's file and the place in it, any
    other ``where``.
    """
    places = {}
    for part in WHOLE:
        for index, entry in enumerate(config[part] if isinstance(config.get(part), list) else []):
            if isinstance(entry, dict) and ORIGIN in entry:
                places[f"{part}[{index}]"] = entry.pop(ORIGIN)

    def placed(message: str) -> str:
        entry, dot, rest = message.partition(".")
        if not dot or entry not in places:
            return f"{where}: {message}"
        key = rest.split(":")[0].split(".")[0].split("[")[0]
        return f"{places[entry].get(key, places[entry][''])}.{rest}"

    return placed


def profile_path(name: str) -> Path:
    """The file of a profile: a name in ``workflow/config``, or a path to a YAML file."""
    names = sorted(path.stem for path in PROFILES.glob("*.yaml") if path.stem != "schema")
    if not names:
        raise ConfigError(f"{PROFILES}: no profiles found; install tda from its repository: pip install -e . --no-deps")
    text = str(name)
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


def read(text: bytes, where: str) -> dict:
    """The map in the text of a YAML file; errors start with ``where``."""
    try:
        content = yaml.load(text.decode("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(
            f"{where}: {line}{getattr(error, 'problem', None) or error}; the file must be YAML in UTF-8"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: must hold a map of config keys, got {type(content).__name__}")
    return content


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


def merge(base: Any, over: Any) -> Any:
    """A copy of ``base`` with ``over`` laid over it: maps merge key by key, anything else replaces what was there."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {
            key: merge(base[key], over[key])
            if key in base and key in over
            else copy.deepcopy(over.get(key, base.get(key)))
            for key in [*base, *(key for key in over if key not in base)]
        }
    return copy.deepcopy(over)
