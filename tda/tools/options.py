"""What the options of a method may be: type and range, stated once, in the signature of the method.

``damping: Positive = 0.1`` is checked wherever an option enters: when the method is called, and when the configuration
is read, so that a row with ``damping: "0.1"`` stops there and not in the middle of a chapter.
"""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words, and the test."""

    words: str
    holds: Callable[[Any], bool]


ANYTHING = Rule("anything", lambda value: True)


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _compiles(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def whole(least: int) -> Any:
    """An integer of at least ``least``."""
    words = f"it must be a whole number of at least {least}"
    return Annotated[int, Rule(words, lambda value: _whole(value) and value >= least)]


def one_of(names: Sequence[str]) -> Any:
    """One of some names."""
    return Annotated[str, Rule(f"one of {tuple(names)}", lambda value: isinstance(value, str) and value in names)]


Count, Whole = whole(1), whole(0)
Positive = Annotated[float, Rule("it must be positive, a finite number", lambda value: _number(value) and value > 0)]
NotNegative = Annotated[float, Rule("it must be a finite number of at least 0", lambda v: _number(v) and v >= 0)]
Share = Annotated[float, Rule("it must be a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)]
Pattern = Annotated[str, Rule("it must be a regular expression", lambda value: _compiles(value))]
Flag = Annotated[bool, Rule("it must be true or false", lambda value: isinstance(value, (bool, np.bool_)))]


def rules(function: Callable) -> dict[str, Rule]:
    """The rule of every option of a method, in the order of its signature; one that states none may be anything."""
    hints, found = typing.get_type_hints(function, include_extras=True), {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            stated = [x for x in getattr(hints.get(parameter.name), "__metadata__", ()) if isinstance(x, Rule)]
            found[parameter.name] = stated[0] if stated else ANYTHING
    return found


def check(name: str, allowed: Mapping[str, Rule], options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for the first of ``options`` that method ``name`` does not have or that breaks its rule."""
    for option, value in options.items():
        if option not in allowed:
            near = difflib.get_close_matches(str(option), list(allowed), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"method {name!r} has no option {option!r}; it accepts {list(allowed)}.{hint}")
        if not allowed[option].holds(value):
            raise ValueError(f"{name}: {option}={value!r}; {allowed[option].words}.{_as_number(value)}")


def _as_number(value: Any) -> str:
    """What a number in quotes should have been; YAML reads 1e-1 as text, too."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    plain = int(number) if number == int(number) and value.strip().lstrip("+-").isdigit() else number
    return f" {value!r} is text; write {plain!r}, without quotes."
