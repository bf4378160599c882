"""What is wrong with a configuration, in one line: checks that a schema cannot say."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

METRICS = (
    r"lds_(half|leave_5|leave_group)(_answer|_passage|_pooled)?|mrr|average_precision|recall_at_[0-9]+|precision_at_10"
    r"|tailpatch_(each|joint_abs|joint_dlogp)_[0-9]+|low_overlap_lift_at_10|removal_[0-9]+|removal_growth"
    r"|finding_[a-z0-9_]+"
)
EVERY_OTHER = "every_other"  # in place of a row that a claim compares with: the best of all that are not its paper's
Faults = Iterator[tuple[str, Any, str]]  # key, value given, what is allowed


class ConfigError(ValueError):
    """One line: the file, the dotted key, the value given, what is allowed."""


def located(places: dict, message: str) -> str:
    """``message``, which starts with its key, behind the file that says it, of a row or claim the place in that file.

    ``places`` is what :func:`tda.config_files.origins` returns.
    """
    entry, dot, rest = message.partition(".")
    if not dot or entry not in places:
        return f"{places['']}: {message}"
    key = re.split(r"[:.[]", rest, maxsplit=1)[0]
    return f"{places[entry].get(key, places[entry][''])}.{rest}"


def refuse(faults: Faults, places: dict) -> None:
    """Raises :class:`ConfigError` for the first fault, if there is one."""
    for key, given, allowed in faults:
        raise ConfigError(located(places, f"{key}: {given!r} is not allowed{allowed}"))


def row_testbeds(testbeds: Any, row: dict) -> list[str]:
    """Names of the testbeds a row runs on, in config order."""
    return [name for name in testbeds if not row["testbeds"] or name in row["testbeds"]]


def reference_faults(config: dict) -> Faults:
    """References between the sections of a whole configuration, and relations between its numbers."""
    testbeds, rows_on = config["testbeds"], {name: {} for name in config["testbeds"]}
    for index, row in enumerate(config["rows"]):
        yield from _row_faults(f"rows[{index}]", row, testbeds, rows_on)
    for index, row in enumerate(config["rows"]):
        for name in row_testbeds(testbeds, row) if row["tune_like"] else ():
            yield from _choice_faults(f"rows[{index}].tune_like", row, rows_on[name])
    for name in testbeds:
        yield from _testbed_faults(f"testbeds.{name}", name, config, rows_on)
    for index, claim in enumerate(config["claims"]):
        yield from _claim_faults(f"claims[{index}]", claim, config, rows_on)


def _unknown(key: str, name: str, names: Any, what: str) -> Faults:
    if name not in names:
        yield key, name, f"; {what} of this profile: {listed(names, name)}"


def _does_not_run(key: str, row_id: str, testbed: str, config: dict, rows_on: dict) -> Faults:
    yield from _unknown(key, row_id, [row["id"] for row in config["rows"]], "rows")
    if row_id not in rows_on[testbed]:
        yield key, row_id, f"; that row does not run on testbed {testbed}"


def _row_faults(key: str, row: dict, testbeds: dict, rows_on: dict) -> Faults:
    for name in row["testbeds"]:
        yield from _unknown(f"{key}.testbeds", name, testbeds, "testbeds")
    for name in row_testbeds(testbeds, row):
        if rows_on[name].setdefault(row["id"], row) is not row:
            yield f"{key}.id", row["id"], "; row ids must be unique on a testbed, each names a score file"
    if row["tune_every"] > 1 and not row["tune"]:
        yield f"{key}.tune_every", row["tune_every"], "; it needs a tune grid of the row's own; drop it"


def _choice_faults(key: str, row: dict, here: dict) -> Faults:
    """Rows whose choice a row takes, and those that they take theirs from, each choose other options."""
    seen, chosen, name = [row["id"]], set(row["tune"]), row["tune_like"]
    while name:
        if name in seen:
            yield key, row["tune_like"], "; rows that take each other's choice never choose"
        other = here.get(name, {"tune": {}, "tune_like": ""})
        if chosen & set(other["tune"]) or not (other["tune"] or other["tune_like"]):
            allowed = "; it must name a row with a tune grid on the same testbeds, and not of the row's own options"
            yield key, row["tune_like"], allowed
        seen.append(name)
        chosen |= set(other["tune"])
        name = other["tune_like"]


def _testbed_faults(key: str, name: str, config: dict, rows_on: dict) -> Faults:
    testbed = config["testbeds"][name]
    corpus, designs, removals = testbed["corpus"], testbed["designs"], testbed["removals"]
    for low, high in (("docs_min", "docs_max"), ("tokens_min", "tokens_max")):
        if low in corpus and corpus[low] > corpus[high]:
            yield f"{key}.corpus.{low}", corpus[low], f"; it must be at most {high} ({corpus[high]})"
    if designs and "half" not in designs:
        yield f"{key}.designs", sorted(designs), "; half must be among them; every table needs it"
    for row_id in removals["rows"] if removals else ():
        yield from _does_not_run(f"{key}.removals.rows", row_id, name, config, rows_on)
    for row_id, more in removals["more_k"].items() if removals else ():
        if row_id not in removals["rows"]:
            yield f"{key}.removals.more_k", row_id, "; it must be one of removals.rows"
        if removals["k"] in more:
            yield f"{key}.removals.more_k.{row_id}", more, "; removals.k is removed anyway; name other k"


def _claim_faults(key: str, claim: dict, config: dict, rows_on: dict) -> Faults:
    testbed, kind, metric = claim["testbed"], claim["kind"], claim["metric"]
    finding = metric.startswith("finding_")
    others = [*config["rows"], *(other for other in config["claims"] if other["testbed"])]
    if [other["id"] for other in config["claims"]].count(claim["id"]) > 1:
        yield f"{key}.id", claim["id"], "; claim ids must be unique"
    if testbed is not None:
        yield from _unknown(f"{key}.testbed", testbed, config["testbeds"], "testbeds")
    elif not finding:
        names = ", ".join(config["testbeds"])
        yield f"{key}.testbed", None, f"; only a claim on a finding_ may have no testbed; name one of {names}"
    elif any(other["notebook"] == claim["notebook"] for other in others):
        allowed = f"; {claim['notebook']} runs on testbeds (other rows or claims say so); name one"
        yield f"{key}.testbed", None, allowed
    if (kind == "value") == bool(claim["against"]):
        allowed = "; kinds difference and parity name a second row here, kind value names none"
        yield f"{key}.against", claim["against"], allowed
    if finding == bool(claim["row"]):
        yield f"{key}.row", claim["row"], "; a claim on a finding names no row, any other claim names one"
    if finding and kind != "value":
        yield f"{key}.kind", kind, "; a claim on a finding is of kind value"
    if claim["against"] == EVERY_OTHER and not metric.startswith("lds_"):
        yield f"{key}.metric", metric, f"; a claim against {EVERY_OTHER} is on an LDS, which every row has"
    for part in ("row", "against"):
        if claim[part] and (part, claim[part]) != ("against", EVERY_OTHER):
            yield from _does_not_run(f"{key}.{part}", claim[part], testbed, config, rows_on)
    if not re.fullmatch(METRICS, metric):
        yield f"{key}.metric", metric, f"; metrics are {METRICS}"
    design = re.match(r"lds_(half|leave_5|leave_group)", metric)
    if design and design[1] not in config["testbeds"][testbed]["designs"]:
        yield f"{key}.metric", metric, f"; testbed {testbed} has no design {design[1]}"
    if kind == "parity" and claim["margin"] <= 0:
        yield f"{key}.margin", claim["margin"], "; parity needs a margin greater than 0"


def number_faults(value: Any, path: tuple = ()) -> Faults:
    """Numbers that are not finite, and those of rows' options, of which the schema says nothing, that are text."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from number_faults(item, (*path, key))
    if isinstance(value, float) and not math.isfinite(value):
        yield dotted(path), value, "; it must be a finite number"
    if path[:1] == ("rows",) and path[2:3] in (("options",), ("tune",)) and (hint := as_number(value, "number")):
        yield dotted(path), value, hint


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


def dotted(path: Any) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "the configuration"


def close(given: Any, allowed: Any) -> str:
    match = difflib.get_close_matches(str(given), [str(name) for name in allowed], n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def listed(names: Any, given: Any) -> str:
    return ", ".join(names) + close(given, names)
