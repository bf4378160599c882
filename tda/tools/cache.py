"""Results that several calls share: kept in memory for the next call on equal contents, charged to all who use them.

Rows of a table often differ only in how the same numbers are read (two directions of one sweep, two damping values on
one Gram matrix). Recomputing them would double the cost of a run; a silent cache would make the second row look free.
So a remembered result knows the seconds that it took, and the remembered results that it was made from; whoever takes
it out is charged for all of them, each once per :class:`tda.provenance.Stopwatch`, as if nobody had computed them.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tda.provenance import charge
from tda.tools.content import digest


@dataclass
class _Entry:
    """A result with its own seconds, and those of the remembered results it used (``token -> seconds``)."""

    arguments: tuple
    result: Any = None
    seconds: float = 0.0
    nested: float = 0.0
    token: object = field(default_factory=object)
    uses: dict[object, float] = field(default_factory=dict)

    @property
    def bill(self) -> dict[object, float]:
        return self.uses | {self.token: self.seconds}


_computing: list[_Entry] = []  # the calls that are running, innermost last
_memories: list[OrderedDict] = []


def forget() -> None:
    """Empty the memory of every function: needed where the code itself has changed (a test that breaks it)."""
    for kept in _memories:
        kept.clear()


def remembered(size: int = 1) -> Callable:
    """Decorator: keep the last ``size`` results of a function.

    Arguments are compared by what they hold (:mod:`tda.tools.content`): a corpus that is changed in place is
    another corpus, and an equal copy is the same. The arguments are held as well, for what is only known by its
    identity; a result whose own arguments have changed since is not given out, for it may look at them. An old result
    is freed *before* a new one is computed. ``function.forget()`` empties the memory.
    """

    def decorate(function: Callable) -> Callable:
        kept: OrderedDict = OrderedDict()
        signature = inspect.signature(function)

        @functools.wraps(function)
        def recall(*positional, **named):
            bound = signature.bind(*positional, **named)
            bound.apply_defaults()  # the same call, however its defaults are spelled
            key = digest(bound.args)
            if key in kept and digest(kept[key].arguments) == key:
                kept.move_to_end(key)
            else:
                kept.pop(key, None)
                while len(kept) >= size:
                    kept.popitem(last=False)
                kept[key] = _compute(function, bound.args)
            entry = kept[key]
            if _computing:
                _computing[-1].uses.update(entry.bill)
            for token, seconds in entry.bill.items():
                charge(token, seconds)
            return entry.result

        recall.forget = kept.clear
        _memories.append(kept)
        return recall

    return decorate


def _compute(function: Callable, arguments: tuple) -> _Entry:
    entry = _Entry(arguments)
    _computing.append(entry)
    began = time.perf_counter()
    try:
        entry.result = function(*arguments)
    finally:
        _computing.pop()
        elapsed = time.perf_counter() - began
        if _computing:
            _computing[-1].nested += elapsed
    entry.seconds = elapsed - entry.nested
    charge(entry.token, 0.0)  # the clock has counted it already: never charge it to this stopwatch again
    return entry
