"""What is wrong with a configuration, in one line: checks that a schema cannot say."""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any


class ConfigError(ValueError):
    """One line: the dotted key, the value given, what is allowed."""


def _choice_of_others(config: dict, index: int, testbed: str, refuse) -> None:
    """Rows whose choice a row takes, and those that they take theirs from: on the same testbed, each other options."""
    here = {row["id"]: row for row in config["rows"] if testbed in row_testbeds(config["testbeds"], row)}
    row, key = config["rows"][index], f"rows[{index}].tune_like"
    seen, chosen, name = [row["id"]], set(row["tune"]), row["tune_like"]
    while name:
        if name in seen:
            refuse(key, row["tune_like"], "rows that take each other's choice never choose")
        other = here.get(name, {"tune": {}, "tune_like": ""})
        if chosen & set(other["tune"]) or not (other["tune"] or other["tune_like"]):
            allowed = "it must name a row with a tune grid on the same testbeds, and not of the row's own options"
            refuse(key, row["tune_like"], allowed)
        seen.append(name)
        chosen |= set(other["tune"])
        name = other["tune_like"]


def row_testbeds(testbeds: Any, row: dict) -> list[str]:
    """Names of the testbeds a row runs on, in config order."""
    return [name for name in testbeds if not row["testbeds"] or name in row["testbeds"]]


METRICS = (
    r"lds_(half|leave_5|leave_group)(_answer|_passage)?|mrr|average_precision|recall_at_[0-9]+|precision_at_10"
    r"|tailpatch_(each|joint_abs|joint_dlogp)_[0-9]+|low_overlap_lift_at_10|removal_[0-9]+|removal_growth"
    r"|finding_[a-z0-9_]+"
)


def cross_checks(config: dict, placed: Callable[[str], str]) -> None:
    """What a schema cannot say: references between sections and relations between numbers.

    ``placed`` puts the file and the place of a key before a message that starts with the key.
    """

    def refuse(key: str, given: Any, allowed: str) -> None:
        raise ConfigError(placed(f"{key}: {given!r} is not allowed; {allowed}"))

    ids, of = [row["id"] for row in config["rows"]], {name: [] for name in config["testbeds"]}
    for index, row in enumerate(config["rows"]):
        for name in row["testbeds"]:
            if name not in config["testbeds"]:
                refuse(
                    f"rows[{index}].testbeds",
                    name,
                    f"testbeds of this profile: {_list(config['testbeds'], name)}",
                )
        if any(row["id"] in of[name] for name in row_testbeds(config["testbeds"], row)):
            refuse(f"rows[{index}].id", row["id"], "row ids must be unique on a testbed, each names a score file")
        for name in row_testbeds(config["testbeds"], row):
            of[name].append(row["id"])
        _options_fit(row, f"rows[{index}]", refuse)
        if row["tune_every"] > 1 and not row["tune"]:
            refuse(f"rows[{index}].tune_every", row["tune_every"], "it needs a tune grid of the row's own; drop it")
        for name in row_testbeds(config["testbeds"], row) if row["tune_like"] else ():
            _choice_of_others(config, index, name, refuse)
    for name, testbed in config["testbeds"].items():
        key, corpus = f"testbeds.{name}", testbed["corpus"]
        _kinds_fit(testbed, key, refuse)
        for low, high in (("docs_min", "docs_max"), ("tokens_min", "tokens_max")):
            if low in corpus and corpus[low] > corpus[high]:
                refuse(f"{key}.corpus.{low}", corpus[low], f"it must be at most {high} ({corpus[high]})")
        if testbed["designs"] and "half" not in testbed["designs"]:
            refuse(f"{key}.designs", sorted(testbed["designs"]), "half must be among them; every table needs it")
        if testbed["removals"]:
            for row_id in testbed["removals"]["rows"]:
                if row_id not in ids:
                    refuse(f"{key}.removals.rows", row_id, f"rows of this profile: {_list(ids, row_id)}")
                if row_id not in of[name]:
                    refuse(f"{key}.removals.rows", row_id, f"that row does not run on testbed {name}")
            for row_id, more in testbed["removals"]["more_k"].items():
                if row_id not in testbed["removals"]["rows"]:
                    refuse(f"{key}.removals.more_k", row_id, "it must be one of removals.rows")
                if testbed["removals"]["k"] in more:
                    refuse(f"{key}.removals.more_k.{row_id}", more, "removals.k is removed anyway; name other k")
    claim_ids = [claim["id"] for claim in config["claims"]]
    for index, claim in enumerate(config["claims"]):
        key = f"claims[{index}]"
        if claim_ids.count(claim["id"]) > 1:
            refuse(f"{key}.id", claim["id"], "claim ids must be unique")
        if claim["testbed"] is None:
            _without_testbed(config, claim, key, refuse)
        elif claim["testbed"] not in config["testbeds"]:
            refuse(
                f"{key}.testbed",
                claim["testbed"],
                f"testbeds of this profile: {_list(config['testbeds'], claim['testbed'])}",
            )
        if (claim["kind"] == "value") == bool(claim["against"]):
            refuse(
                f"{key}.against",
                claim["against"],
                "kinds difference and parity name a second row here, kind value names none",
            )
        finding = claim["metric"].startswith("finding_")
        if finding == bool(claim["row"]):
            refuse(f"{key}.row", claim["row"], "a claim on a finding names no row, any other claim names one")
        if finding and claim["kind"] != "value":
            refuse(f"{key}.kind", claim["kind"], "a claim on a finding is of kind value")
        for part in ("row", "against"):
            if claim[part] and claim[part] not in ids:
                refuse(f"{key}.{part}", claim[part], f"rows of this profile: {_list(ids, claim[part])}")
            if claim[part] and claim[part] not in of[claim["testbed"]]:
                refuse(f"{key}.{part}", claim[part], f"that row does not run on testbed {claim['testbed']}")
        if not re.fullmatch(METRICS, claim["metric"]):
            refuse(f"{key}.metric", claim["metric"], f"metrics are {METRICS}")
        design = re.match(r"lds_(half|leave_5|leave_group)", claim["metric"])
        if design and design[1] not in config["testbeds"][claim["testbed"]]["designs"]:
            refuse(f"{key}.metric", claim["metric"], f"testbed {claim['testbed']} has no design {design[1]}")
        if claim["kind"] == "parity" and claim["margin"] <= 0:
            refuse(f"{key}.margin", claim["margin"], "parity needs a margin greater than 0")


def _options_fit(row: dict, key: str, refuse: Callable[[str, Any, str], None]) -> None:
    """The method exists, and every option and every value of the tune grid is one that it accepts."""
    # Only once a configuration is whole, since it imports torch; by name, since no rule of the workflow depends on all
    # methods (tda.provenance.modules_used reads import statements).
    methods = importlib.import_module("tda.attribution").METHODS
    check = importlib.import_module("tda.tools.options").check
    if row["method"] not in methods:
        refuse(f"{key}.method", row["method"], f"registered methods: {_list(methods, row['method'])}")
    given = [("options", name, value) for name, value in row["options"].items()]
    given += [("tune", name, value) for name, values in row["tune"].items() for value in values]
    for part, name, value in given:
        try:
            check(row["method"], methods[row["method"]].rules, {name: value})
        except ValueError as error:
            refuse(f"{key}.{part}.{name}", value, str(error))


def _without_testbed(config: dict, claim: dict, key: str, refuse: Callable[[str, Any, str], None]) -> None:
    """A claim may do without a testbed if it is on a finding of a chapter that runs on no testbed at all."""
    if not claim["metric"].startswith("finding_"):
        names = ", ".join(config["testbeds"])
        refuse(f"{key}.testbed", None, f"only a claim on a finding_ may have no testbed; name one of {names}")
    others = [*config["rows"], *(other for other in config["claims"] if other["testbed"])]
    if any(other["notebook"] == claim["notebook"] for other in others):
        refuse(f"{key}.testbed", None, f"{claim['notebook']} runs on testbeds (other rows or claims say so); name one")


def _kinds_fit(testbed: dict, key: str, refuse: Callable[[str, Any, str], None]) -> None:
    """The settings ask for nothing that the kind of corpus refuses (:meth:`tda.testbeds.modality.Modality.check`)."""
    kinds = importlib.import_module("tda.testbeds").KINDS  # late and by name, as the methods are
    for part, given, allowed in kinds[testbed["corpus"]["kind"]].check(testbed):
        refuse(f"{key}.{part}", given, allowed)


def finite(config: Any, placed: Callable[[str], str]) -> None:
    for path, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(placed(f"{dotted(path)}: {value!r} is not allowed; it must be a finite number"))


def numbers_as_text(config: dict, placed: Callable[[str], str]) -> None:
    """The options of a row, of which the schema says nothing, hold numbers as numbers."""
    for index, row in enumerate(config["rows"]):
        for path, value in _leaves({part: row[part] for part in ("options", "tune")}, ("rows", index)):
            if number(value) is not None:
                raise ConfigError(placed(f"{dotted(path)}: {value!r} is not allowed{as_number(value, 'number')}"))


def number(text: Any) -> int | float | None:
    """The number that a text spells, 1e-1 included, which YAML 1.1 leaves as text; ``None`` for everything else."""
    if not isinstance(text, str) or not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
        return None
    found = float(text) if re.search(r"[.eE]", text) else int(text)
    return found if math.isfinite(found) else None


def as_number(given: Any, kinds: str) -> str:
    """Hint for a number that is written as text: how YAML reads it as a number."""
    found = number(given)
    if found is None or not {"integer", "number"} & set(kinds.split(" or ")):
        return ""
    if kinds == "integer":
        if not float(found).is_integer():
            return ""
        found = int(found)
    plain = re.sub(r"^(-?[0-9]+)e", r"\1.0e", repr(found))  # 1e-05 is text again
    return f" (that is text: write {plain})"


def _leaves(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
    for key, item in items or ():
        yield from _leaves(item, (*path, key))


def dotted(path: Any) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "the configuration"


def close(given: str, allowed: Any) -> str:
    match = difflib.get_close_matches(str(given), [str(name) for name in allowed], n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def _list(names: Any, given: str) -> str:
    return ", ".join(names) + close(given, names)
