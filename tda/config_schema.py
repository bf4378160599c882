"""The schema of a profile applied to a configuration: defaults, values given as text, errors in one line."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tda.config_checks import as_number, close, dotted, number

SCHEMA = Path(__file__).resolve().parents[1] / "workflow" / "config" / "schema.yaml"
FREE = ("integer", "number", "boolean", "null")  # where the schema says nothing
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "null": None, "~": None}
WHOLE = {
    "uniqueItems": "a list without repeats",
    "minItems": "a list that is not empty",
    "minProperties": "a map that is not empty",
    "minLength": "text that is not empty",
}
BOUNDS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "greater than",
    "exclusiveMaximum": "less than",
}


@functools.cache
def _schema() -> dict:
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


def problem(content: dict, definition: str | None = None) -> str | None:
    """What is wrong with a configuration (or a part, ``definition`` of the schema) in one line; ``None`` if nothing.

    Draft 2020-12, except that 64.0 is not an integer: the number is used as a length.
    """
    standard = jsonschema.Draft202012Validator
    checker = standard.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    schema = {"$ref": f"#/$defs/{definition}", "$defs": _schema()["$defs"]} if definition else _schema()
    validator = jsonschema.validators.extend(standard, type_checker=checker)(schema)
    errors = sorted(validator.iter_errors(content), key=lambda error: (-len(error.path), dotted(error.path)))
    return _explain(errors[0]) if errors else None


def _explain(error: jsonschema.ValidationError) -> str:
    """A schema violation as one line."""
    key, given, schema = dotted(error.path), error.instance, error.schema
    rule, wanted = error.validator, error.validator_value
    if rule == "additionalProperties":
        allowed = sorted(schema.get("properties", {}))
        wrong = min(set(given) - set(allowed), key=str)
        return f"{dotted([*error.path, wrong])}: unknown key; allowed: {', '.join(allowed)}{close(wrong, allowed)}"
    if rule == "required":
        missing = next(name for name in wanted if name not in given)
        about = schema.get("properties", {}).get(missing, {}).get("description", "this key is required")
        return f"{dotted([*error.path, missing])}: missing; {about}"
    if rule in ("enum", "const"):
        names = [str(item) for item in wanted] if rule == "enum" else [str(wanted)]
        allowed = f"allowed: {', '.join(names)}{close(given, names)}"
    elif rule == "type":
        kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
        allowed = f"it must be of type {kinds}{as_number(given, kinds)}"
    elif rule in WHOLE:
        allowed = f"it must be {WHOLE[rule]}"
    elif rule in BOUNDS:
        bounds = [f"{words} {schema[name]}" for name, words in BOUNDS.items() if name in schema]
        allowed = f"it must be {' and '.join(bounds)}"
    else:
        allowed = f"it must be text that matches {wanted}" if rule == "pattern" else error.message
    return f"{key}: {given!r} is not allowed; {allowed}"


def filled(config: dict) -> dict:
    """``config`` with the schema's defaults; wrong types are left for :func:`problem`."""
    return _fill(config, _schema())


def typed(overrides: dict, config: dict) -> dict:
    """``overrides`` whose texts are read as the type that the schema gives their key.

    Snakemake hands on every number, truth value and null inside a map or list of its command line as text. Where the
    schema says nothing (the options of a row) it is read as in a YAML file, and ``1e-1`` as a number too. What cannot
    be read stays for :func:`problem`. ``config`` holds the overrides merged into their profile, which says the kinds
    of corpus and model that they change.
    """
    return _read(overrides, _schema(), filled(config))


def _flat(schema: dict, value: Any) -> dict:
    """``schema`` with its reference followed and, for a map, the keys of the branch that its kind selects."""
    if "$ref" in schema:
        shared = _schema()["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        schema = {**shared, **{key: schema[key] for key in schema if key != "$ref"}}
    for branch in schema.get("allOf", ()) if isinstance(value, dict) else ():
        key, condition = next(iter(branch["if"]["properties"].items()))
        if value.get(key, schema["properties"][key].get("default")) == condition["const"]:
            return {**schema, "properties": _flat(branch["then"], value)["properties"] | schema["properties"]}
    return schema


def _fill(value: Any, schema: dict) -> Any:
    schema = _flat(schema, value)
    if isinstance(value, list):
        return [_fill(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    known, other = schema.get("properties", {}), schema.get("additionalProperties") or {}
    defaults = {key: copy.deepcopy(child["default"]) for key, child in known.items() if "default" in child}
    value = value | {key: default for key, default in defaults.items() if key not in value}
    return {key: _fill(item, known.get(key, other)) for key, item in value.items()}


def _read(value: Any, schema: dict, merged: Any) -> Any:
    schema = _flat(schema, merged)
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties") or {}
        inside = merged if isinstance(merged, dict) else {}
        return {key: _read(item, known.get(key, other), inside.get(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_read(item, schema.get("items", {}), None) for item in value]
    kinds = schema.get("type", () if {"enum", "const"} & set(schema) else FREE)
    return _scalar(value, {kinds} if isinstance(kinds, str) else set(kinds))


def _scalar(value: Any, kinds: set[str]) -> Any:
    """A text as one of ``kinds``, or itself; a whole number for an integer."""
    found = value
    if isinstance(value, str):
        spelled = number(value)
        found = WORDS.get(value.lower(), value) if spelled is None else spelled
    if found is None:
        return None if kinds and ("string" not in kinds or "null" in kinds) else value
    if isinstance(found, bool):
        return found if "boolean" in kinds else value
    if not isinstance(found, int | float):
        return value
    if kinds == {"integer"} and float(found).is_integer():
        return int(found)
    return found if kinds & {"integer", "number"} else value
