"""Results that several calls share: kept in memory while their arguments live, and charged to everyone who uses them.

Rows of a table often differ only in how the same numbers are read (two directions of one sweep, two damping values on
one Gram matrix). Recomputing them would double the cost of a run; a silent cache would make the second row look free.
So a remembered result carries the seconds that it took, and whoever takes it out is charged for them
(:func:`tda.provenance.charge`).
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Callable

from tda.provenance import charge

PLAIN = (str, int, float, bool, type(None))


def remembered(size: int = 1) -> Callable:
    """Decorator: keep the last ``size`` results of a function of positional arguments.

    Plain values are compared by value, everything else (a task, a corpus) by identity; the arguments are held, so that
    an identity cannot pass to another object. Contents must not be changed in place. An old result is freed *before* a
    new one is computed. ``function.forget()`` empties the memory.
    """

    def decorate(function: Callable) -> Callable:
        kept: OrderedDict = OrderedDict()

        @functools.wraps(function)
        def recall(*arguments):
            key = tuple((type(a), a) if isinstance(a, PLAIN) else id(a) for a in arguments)
            if key in kept:
                kept.move_to_end(key)
                _, result, seconds = kept[key]
                charge(seconds)
                return result
            while len(kept) >= size:
                kept.popitem(last=False)
            began = time.perf_counter()
            result = function(*arguments)
            kept[key] = (arguments, result, time.perf_counter() - began)
            return result

        recall.forget = kept.clear
        return recall

    return decorate
