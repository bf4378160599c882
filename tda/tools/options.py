"""What the options of a method may be: type and range, stated once and checked wherever an option enters, when the
method is called and when the configuration is read. ``damping: Positive = 0.1`` stands in the method's signature or,
where there are many, in a frozen dataclass with keyword-only fields, each made by :func:`option`.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import numbers
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar

import numpy as np


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words, and the test."""

    words: str
    holds: Callable[[Any], bool]


ANYTHING = Rule("anything", lambda value: True)


def is_whole(value: Any) -> bool:
    """An integer of Python or NumPy, and no truth value."""
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
    rule = Rule(f"it must be a whole number of at least {least}", lambda value: is_whole(value) and value >= least)
    return Annotated[int, rule]


def one_of(names: Sequence[str]) -> Any:
    """One of some names."""
    return Annotated[str, Rule(f"one of {tuple(names)}", lambda value: isinstance(value, str) and value in names)]


Count, Whole = whole(1), whole(0)
Positive = Annotated[float, Rule("it must be positive, a finite number", lambda value: _number(value) and value > 0)]
NotNegative = Annotated[float, Rule("it must be a finite number of at least 0", lambda v: _number(v) and v >= 0)]
Share = Annotated[float, Rule("it must be a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)]
Pattern = Annotated[str, Rule("it must be a regular expression", _compiles)]
Flag = Annotated[bool, Rule("it must be true or false", lambda value: isinstance(value, (bool, np.bool_)))]
Options = TypeVar("Options")


def option(default: Any, help: str) -> Any:
    """A field of a dataclass of options: its default and a line of help."""
    return field(default=default, metadata={"help": help})


def parameters(declared: Callable) -> list[inspect.Parameter]:
    """The options that a method, or a dataclass of options, declares: its keyword-only parameters."""
    return [p for p in inspect.signature(declared).parameters.values() if p.kind is p.KEYWORD_ONLY]


def rules(declared: Callable) -> dict[str, Rule]:
    """The rule of every option of :func:`parameters`, in their order; one that states none may be anything."""
    hints = typing.get_type_hints(declared, include_extras=True)
    annotations = {p.name: getattr(hints.get(p.name), "__metadata__", ()) for p in parameters(declared)}
    return {name: next((x for x in stated if isinstance(x, Rule)), ANYTHING) for name, stated in annotations.items()}


def described(kind: type) -> str:
    """A line for each option of a dataclass: its name, its default, its help."""
    return "\n".join(f"- ``{f.name}`` ({f.default!r}): {f.metadata['help']}." for f in fields(kind))


def read(name: str, kind: type[Options], given: Mapping[str, Any]) -> Options:
    """The dataclass ``kind`` of the options ``given`` to method ``name``, after :func:`check`."""
    check(name, rules(kind), given)
    return kind(**given)


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
    for kind in (int, float) if isinstance(value, str) else ():
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(kind(value)):
                return f" {value!r} is text; write {kind(value)!r}, without quotes."
    return ""
