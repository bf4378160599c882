"""Results that several calls share: kept in memory for the next call on equal contents, charged to all who use them.

Rows of a table often differ only in how the same numbers are read. Recomputing them would double the cost of a run; a
silent cache would make the second row look free. So a remembered result knows the seconds that it and the remembered
results that it was made from took; whoever takes it out is charged for all of them, each once per
:class:`tda.provenance.Stopwatch`, as if nobody had computed them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch

from tda.provenance import charge

DATA = (int, float, str, bool, torch.Tensor, np.ndarray, torch.nn.Module, Mapping, Sequence, Set, functools.partial)
LIBRARIES = ("torch.", "transformers.", "tda.")  # whose objects do not change between two calls
SKIPPED = {"retrain", "retrain_many"}  # of a training record: no score depends on how the run could be done again


@dataclasses.dataclass
class _Entry:
    """A result with its own seconds, and those of all remembered results that it is made of (``token -> seconds``)."""

    arguments: tuple
    result: Any = None
    nested: float = 0.0
    bill: dict[object, float] = dataclasses.field(default_factory=dict)


_computing: list[_Entry] = []  # the calls that are running, innermost last
_memories: list[OrderedDict] = []


def forget() -> None:
    """Empty the memory of every function: needed where the code itself has changed (a test that breaks it)."""
    for kept in _memories:
        kept.clear()


def remembered(size: int = 1) -> Callable:
    """Decorator: keep the last ``size`` results of a function.

    Arguments are compared by what they hold (:func:`digest`), and kept, as some are known by identity only. A result
    whose arguments have changed since is not given out, for it may look at them. An old result is freed *before* a new
    one is computed. ``function.forget()`` empties the memory.
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
                _computing[-1].bill.update(entry.bill)
            for token, seconds in entry.bill.items():
                charge(token, seconds)
            return entry.result

        recall.forget = kept.clear
        _memories.append(kept)
        return recall

    return decorate


def _compute(function: Callable, arguments: tuple) -> _Entry:
    entry, token = _Entry(arguments), object()
    _computing.append(entry)
    began = time.perf_counter()
    try:
        entry.result = function(*arguments)
    finally:
        _computing.pop()
        elapsed = time.perf_counter() - began
        if _computing:
            _computing[-1].nested += elapsed
    entry.bill[token] = elapsed - entry.nested
    charge(token, 0.0)  # the clock has counted it already: never charge it to this stopwatch again
    return entry


def digest(value: Any) -> str:
    """What an object holds, as 64 hexadecimal digits: equal contents, equal digest.

    A tensor counts through its bytes, a network through all that it computes with, a function through its code, its
    defaults and what it refers to where it was defined, a file through its path, size and time of change. What is none
    of these counts through its identity: whoever keeps the digest must keep the object.
    """
    reader = _Reader()
    reader.add(value)
    return reader.hash.hexdigest()


class _Reader:
    def __init__(self) -> None:
        self.hash, self.seen = hashlib.sha256(), {}  # the fastest where the processor knows it

    def add(self, value: Any) -> None:
        if isinstance(value, (str, int, float, bool, bytes, NoneType)):
            return self.note(type(value).__name__, repr(value))
        if id(value) in self.seen:  # what refers to itself, and what is shared, is read once
            return self.note("again", self.seen[id(value)][0])
        self.seen[id(value)] = len(self.seen), value  # held, so that nothing else takes its identity meanwhile
        if isinstance(value, torch.Tensor):
            return self.array(value.dtype, value, value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return self.array(value.dtype.str, value, np.ascontiguousarray(value))
        if isinstance(value, torch.nn.Module):
            return self.module(value)
        if isinstance(value, Path):
            stat = value.stat() if value.exists() else None
            return self.note("path", value, stat and (stat.st_mtime_ns, stat.st_size))
        if isinstance(value, (FunctionType, MethodType)):
            return self.function(value)
        return self.parts(value)

    def note(self, *what: Any) -> None:
        self.hash.update(repr(what).encode())

    def array(self, kind: Any, value: torch.Tensor | np.ndarray, content: np.ndarray) -> None:
        self.note(kind, tuple(value.shape))
        self.hash.update(content.data)

    def module(self, value: torch.nn.Module) -> None:
        """Of every submodule its code, its parameters and buffers, its other attributes and its hooks."""
        self.note("module", repr(value))
        for part in value.modules():
            self.note(type(part).__module__, type(part).__qualname__)
            self.add(getattr(type(part), "forward", None))
            for name, held in vars(part).items():
                if name != "_modules":
                    self.note(name)
                    self.add(held)

    def function(self, value: FunctionType | MethodType) -> None:
        if isinstance(value, MethodType):
            self.add(value.__self__)
            value = value.__func__
        self.note("function", value.__module__, value.__qualname__)
        self.add(value.__defaults__)
        self.add(value.__kwdefaults__)
        for cell in value.__closure__ or ():
            self.add(cell.cell_contents)
        # Of the module's own names: what libraries hold does not change, and is large.
        for name in self.code(value.__code__):
            held = value.__globals__.get(name)
            own = getattr(held, "__module__", None) if isinstance(held, (FunctionType, type)) else value.__module__
            inside = own == value.__module__ and not isinstance(held, (ModuleType, NoneType))
            if isinstance(held, DATA) or (inside and not value.__module__.startswith(LIBRARIES)):
                self.note(name)
                self.add(held)

    def code(self, value: CodeType) -> list[str]:
        """Note the code, inner functions included; return the names that it reads."""
        self.note(value.co_code, [const for const in value.co_consts if not isinstance(const, CodeType)])
        inner = [self.code(const) for const in value.co_consts if isinstance(const, CodeType)]
        return list(dict.fromkeys([*value.co_names, *(name for names in inner for name in names)]))

    def parts(self, value: Any) -> None:
        self.note(type(value).__qualname__)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in SKIPPED}
        if isinstance(value, functools.partial):
            value = (value.func, value.args, value.keywords)
        elif isinstance(value, type):
            value = {name: x for name, x in vars(value).items() if not name.startswith("__")}
        elif hasattr(value, "to_dict"):  # the config of a model, which holds how it computes
            value = value.to_dict()
        elif not isinstance(value, (Mapping, Sequence, Set, ModuleType)) and getattr(value, "__dict__", None):
            value = dict(vars(value))
        if isinstance(value, (Mapping, Sequence)):
            self.note(len(value))
            for item in [x for pair in value.items() for x in pair] if isinstance(value, Mapping) else value:
                self.add(item)
        elif isinstance(value, Set):
            self.note(sorted(map(repr, value)))
        else:
            self.note("object", id(value))
