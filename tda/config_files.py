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


def profile(path: Path) -> dict[str, Any]:
    """The content of a profile, with the chapters' rows and claims and laid over its base.

    Maps merge key by key. A row or claim takes the place of all entries of the base that have its id; new ids are added
    at the end.
    """
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
    """A profile's file, with the rows and claims of all chapters (with a base, of the ids that a section names)."""
    raw, found = read(path.read_bytes(), path.name), chapters()
    for part in WHOLE:
        own = {name: _listed(part, name, chapter) for name, chapter in found.items()}
        entries = [entry for listed in own.values() for entry in listed]
        if path.stem != HOME:
            changes = {name: _listed(part, name, chapter, path.stem) for name, chapter in found.items()}
            named = {entry["id"] for listed in changes.values() for entry in listed} if raw.get("base") else set()
            entries = [entry for name in own for entry in _changed(part, name, own[name], changes[name], named)]
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
    elif "testbeds" in chapter:
        ends = tuple(f"_{testbed}" for testbed in ("{testbed}", *chapter["testbeds"]))
        if other := [figure for figure in chapter.get("figures", ()) if not Path(figure).stem.endswith(ends)]:
            raise ConfigError(f"{where}: figures: {other[0]!r} is not allowed; a name ends with {' or '.join(ends)}")
    return chapter


def _listed(part: str, name: str, chapter: dict, section: str = "") -> list[dict]:
    """The entries of a list in a chapter's file as maps; whole ones hold what the file says once for all of them."""
    testbeds = chapter.get("testbeds", [])
    common = {"notebook": name, "testbeds": testbeds}
    if part == "claims":
        only = testbeds[0] if len(testbeds) == 1 else None
        common = {"notebook": name, "paper": chapter.get("paper"), "testbed": only}
        common |= {key: chapter[key] for key in ("abstract",) if key in chapter}
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
    for entry in (change for change in changes if WHOLE[part] not in change):
        problem = None
        if entry["id"] not in known:
            problem = f"{part} of {name}: {', '.join(known) or 'none'}; with a {WHOLE[part]} it is a new one"
        elif entry["id"] in {*over, *(other["id"] for other in whole)}:
            problem = "it is listed twice; list it once"
        if problem:
            given = f"{entry[ORIGIN]['']}.id: {entry['id']!r}"
            raise ConfigError(f"{given} is not allowed; {problem}{close(entry['id'], known)}")
        over[entry["id"]] = entry
    wanted = named | {entry["id"] for entry in changes}
    return _by_id([_over(entry, over.get(entry["id"])) for entry in own if entry["id"] in wanted], whole)


def _over(entry: dict, change: dict | None) -> dict:
    if change is None:
        return entry
    kept = {key: value for key, value in entry.items() if not (key in CHOICE and CHOICE & change.keys())}
    origin = entry[ORIGIN] | {str(key): change[ORIGIN][""] for key in change}
    return kept | change | {ORIGIN: origin}


def origins(config: dict, where: str) -> dict[str, Any]:
    """Takes the places of the chapters' entries out of ``config`` and returns them, for
    :func:`tda.config_checks.located`: ``rows[57]`` -> key -> the chapter's file and the place in it, and for all other
    keys ``""`` -> ``where``.
    """
    places: dict[str, Any] = {"": where}
    for part in WHOLE:
        for index, entry in enumerate(config[part] if isinstance(config.get(part), list) else []):
            if isinstance(entry, dict) and ORIGIN in entry:
                places[f"{part}[{index}]"] = entry.pop(ORIGIN)
    return places


def profile_path(name: str) -> Path:
    """The file of a profile: a name in ``workflow/config``, or a path to a YAML file."""
    names, text, path = sorted({path.stem for path in PROFILES.glob("*.yaml")} - {"schema"}), str(name), Path(str(name))
    if not names:
        raise ConfigError(f"{PROFILES}: no profiles found; install tda from its repository: pip install -e . --no-deps")
    if text in names:
        return PROFILES / f"{text}.yaml"
    if path.suffix not in (".yaml", ".yml"):
        known = f"{', '.join(names)}, or a path to a .yaml file{close(text, names)}"
        raise ConfigError(f"profile: {text!r} is unknown; allowed: {known}")
    if path.stem in ("banks", "sources", "scratch", "downloads"):
        raise ConfigError(f"profile: {text!r} would write into data/{path.stem}, which is taken; rename the file")
    found = next((file for file in (path, ROOT / path) if file.is_file()), None)
    if found is None:
        known = f"give a path to an existing .yaml file or one of {', '.join(names)}"
        raise ConfigError(f"profile: no file {text!r}; {known}")
    if found.stem in names and found.resolve() != PROFILES / f"{found.stem}.yaml":
        problem = "has the name of a built-in profile; rename the file, it also names the data"
        raise ConfigError(f"profile: {text!r} {problem}")
    return found


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
    named: dict[str, list] = {}
    for entry in own:
        named.setdefault(_id(entry), []).append(entry)
    joined, placed = [], set()
    for entry in base:
        joined += [] if _id(entry) in placed else named.get(_id(entry), [entry])
        placed |= {_id(entry)} & named.keys()
    return joined + [entry for key, entries in named.items() if key not in placed for entry in entries]


def _id(entry: Any) -> str:
    """As text: what is not a map with a name is for the validator to refuse."""
    return str(entry.get("id")) if isinstance(entry, dict) else ""


def merge(base: Any, over: Any) -> Any:
    """A copy of ``base`` with ``over`` laid over it: maps merge key by key, anything else replaces what was there."""
    if isinstance(base, dict) and isinstance(over, dict):
        return copy.deepcopy(base) | {key: merge(base.get(key), value) for key, value in over.items()}
    return copy.deepcopy(over)
