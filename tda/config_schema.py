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


@functools.cache
def _schema() -> dict:
    return yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))


def problem(content: dict, definition: str | None = None) -> str | None:
    """What is wrong with a configuration (or a part, ``definition`` of the schema) in one line; ``None`` if nothing.

    Draft 2020-12, except that 64.0 is not an integer: the number is used as a length.
    """
    standard = jsonschema.Draft202012Validator
    checker = standard.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    schema = {"$ref": f"#/$defs/{definition}", "$defs": _schema()["$defs"]} if definition else _schema()
    validator = jsonschema.validators.extend(standard, type_checker=checker)(schema)
    errors = sorted(
        validator.iter_errors(content), key=lambda error: (-len(error.absolute_path), dotted(error.absolute_path))
    )
    return _explain(errors[0]) if errors else None


def filled(config: dict) -> dict:
    """``config`` with the schema's defaults; wrong types are left for :func:`problem`."""
    return _fill(config, _schema())


def typed(overrides: dict, config: dict) -> dict:
    """``overrides`` whose texts are read as the type that the schema gives their key.

    Snakemake hands on every number, truth value and null inside a map or list of its command line as text. Where the
    schema wants text it stays text. Where it says nothing (the options of a row) it is read as in a YAML file, and
    ``1e-1`` as a number too. What cannot be read stays as it is, for :func:`problem`. ``config`` holds the overrides
    merged into their profile, which says the kinds of corpus and model that they change.
    """
    return _read(overrides, _schema(), filled(config))


def _explain(error: jsonschema.ValidationError) -> str:
    """A schema violation as one line."""
    key, given = dotted(error.absolute_path), error.instance
    rule, wanted = error.validator, error.validator_value
    if rule == "additionalProperties":
        allowed = sorted(error.schema.get("properties", {}))
        wrong = min(set(given) - set(allowed), key=str)
        key = dotted([*error.absolute_path, wrong])
        return f"{key}: unknown key; allowed: {', '.join(allowed)}{close(wrong, allowed)}"
    if rule == "required":
        missing = next(name for name in wanted if name not in given)
        return f"{dotted([*error.absolute_path, missing])}: missing; {_describe(error.schema, missing)}"
    if rule == "type":
        kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
        return f"{key}: {given!r} is not allowed; it must be of type {kinds}{as_number(given, kinds)}"
    if rule in ("enum", "const"):
        allowed = [str(item) for item in wanted] if rule == "enum" else [str(wanted)]
        return f"{key}: {given!r} is not allowed; allowed: {', '.join(allowed)}{close(str(given), allowed)}"
    whole = {
        "uniqueItems": "a list without repeats",
        "minItems": "a list that is not empty",
        "minProperties": "a map that is not empty",
        "minLength": "text that is not empty",
    }
    if rule in whole:
        return f"{key}: {given!r} is not allowed; it must be {whole[rule]}"
    words = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "greater than",
        "exclusiveMaximum": "less than",
        "pattern": "text that matches",
    }
    bounds = [
        f"{words[name]} {error.schema[name]}"
        for name in words
        if name in error.schema and (name == rule or "imum" in name)
    ]
    return f"{key}: {given!r} is not allowed; it must be {' and '.join(bounds) or error.message}"


def _describe(schema: dict, key: str) -> str:
    child = schema.get("properties", {}).get(key, {})
    return child.get("description", "this key is required")


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
    if isinstance(value, dict):
        value = dict(value)
        for key, child in schema.get("properties", {}).items():
            if key not in value and "default" in child:
                value[key] = copy.deepcopy(child["default"])
            if key in value:
                value[key] = _fill(value[key], child)
        other = schema.get("additionalProperties")
        if isinstance(other, dict):
            value |= {key: _fill(item, other) for key, item in value.items() if key not in schema.get("properties", {})}
    elif isinstance(value, list) and "items" in schema:
        value = [_fill(item, schema["items"]) for item in value]
    return value


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
        found = spelled if spelled is not None else WORDS.get(value.lower(), value)
    if found is None:
        return None if kinds and ("string" not in kinds or "null" in kinds) else value
    if not isinstance(found, int | float):
        return value
    if isinstance(found, bool):
        return found if "boolean" in kinds else value
    if kinds == {"integer"} and float(found).is_integer():
        return int(found)
    return found if kinds & {"integer", "number"} else value
