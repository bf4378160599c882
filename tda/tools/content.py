"""What an object holds, as a key: results kept in memory belong to contents, not to an object that may have changed.

A tensor counts through its bytes, a network through its parameters, buffers and printed structure, a function through
its code, its defaults and everything that it refers to in the scope where it was defined, a file through its path, size
and time of change. What is none of these counts through its identity, and whoever keeps the key must keep the object.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch

DATA = (int, float, str, bool, torch.Tensor, np.ndarray, torch.nn.Module, Mapping, Sequence, Set, partial)
LIBRARIES = ("torch.", "transformers.", "tda.")  # whose objects do not change between two calls
SKIPPED = {"retrain"}  # of a training record: no score depends on how the run could be done again


def digest(value: Any) -> str:
    """Equal contents, equal digest (64 hexadecimal digits)."""
    reader = _Reader()
    reader.add(value)
    return reader.hash.hexdigest()


def vars_of(value: Any) -> dict[str, Any]:
    """The attributes of an object that has any."""
    return dict(getattr(value, "__dict__", {}))


class _Reader:
    def __init__(self) -> None:
        self.hash, self.seen = hashlib.sha256(), {}  # the fastest where the processor knows it

    def add(self, value: Any) -> None:
        if isinstance(value, (str, int, float, bool, bytes, type(None))):
            return self.note(type(value).__name__, repr(value))
        if id(value) in self.seen:  # what refers to itself, and what is shared, is read once
            return self.note("again", self.seen[id(value)][0])
        self.seen[id(value)] = len(self.seen), value  # held, so that nothing else takes its identity meanwhile
        if isinstance(value, torch.Tensor):
            return self.array(value, value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return self.array(value, np.ascontiguousarray(value))
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

    def array(self, value: torch.Tensor | np.ndarray, content: np.ndarray) -> None:
        self.note(value.dtype.str if isinstance(value, np.ndarray) else value.dtype, tuple(value.shape))
        self.hash.update(content.data)

    def module(self, value: torch.nn.Module) -> None:
        """Parameters and buffers, and of every submodule its code, its other attributes and its hooks."""
        self.note("module", repr(value))
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            self.note(name)
            self.add(tensor)
        for part in value.modules():
            self.note(type(part).__module__, type(part).__qualname__)
            self.add(getattr(type(part), "forward", None))
            for name, other in vars(part).items():
                if name not in ("_parameters", "_buffers", "_modules"):
                    self.note(name)
                    self.add(other)

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
            found = value.__globals__.get(name)
            own = getattr(found, "__module__", None) if isinstance(found, (FunctionType, type)) else value.__module__
            inside = own == value.__module__ and not isinstance(found, (ModuleType, NoneType))
            if isinstance(found, DATA) or (inside and not value.__module__.startswith(LIBRARIES)):
                self.note(name)
                self.add(found)

    def code(self, value: CodeType) -> list[str]:
        """Note the code, inner functions included; return the names that it reads."""
        self.note(value.co_code, [const for const in value.co_consts if not isinstance(const, CodeType)])
        inner = [self.code(const) for const in value.co_consts if isinstance(const, CodeType)]
        return list(dict.fromkeys([*value.co_names, *(name for names in inner for name in names)]))

    def parts(self, value: Any) -> None:
        self.note(type(value).__qualname__)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in SKIPPED}
        if isinstance(value, partial):
            value = (value.func, value.args, value.keywords)
        elif isinstance(value, type):
            value = {name: x for name, x in vars(value).items() if not name.startswith("__")}
        elif hasattr(value, "to_dict"):  # the config of a model, which holds how it computes
            value = value.to_dict()
        elif not isinstance(value, (Mapping, Sequence, Set, ModuleType)) and vars_of(value):
            value = vars_of(value)
        if isinstance(value, Mapping):
            self.note(len(value))
            for key, item in value.items():
                self.add(key)
                self.add(item)
        elif isinstance(value, Sequence):
            self.note(len(value))
            for item in value:
                self.add(item)
        elif isinstance(value, Set):
            self.note(sorted(map(repr, value)))
        else:
            self.note("object", id(value))
