"""Two or more methods in one: the mean of a document's ranks (Borda count), since scores have different units.

With r_m(q, i) in [0, 1] the share of the other documents that method m scores below document i (half of those that tie)

    score(q, i) = mean over m of r_m(q, i)

How STRIDE's paper combines methods is not known to us. A sum of ranks over a subset predicts no effect (chapter 13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from scipy.stats import rankdata

from tda.attribution.registry import attribute as attribute_by
from tda.attribution.registry import method, named
from tda.task import Examples, Task
from tda.tools.gradients import CHUNK
from tda.tools.options import Count, Rule, Whole, check

NAME = "rank_combined"


def shares_below(scores: np.ndarray) -> np.ndarray:
    """Ranks along the last axis as numbers in [0, 1]: the share of the others below, ties counted half."""
    return (rankdata(scores, axis=-1) - 1) / max(1, np.shape(scores)[-1] - 1)


def combine(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Mean rank, in [0, 1], of two or more finite score arrays of one shape; ranks run along the last axis."""
    shapes = [np.shape(part) for part in parts]
    if len(parts) < 2 or len(set(shapes)) > 1:
        raise ValueError(f"{NAME}: parts of shapes {shapes}; give at least two score arrays of the same shape.")
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError(f"{NAME}: scores that are not finite have no rank; check the methods on their own.")
    return np.mean([shares_below(part) for part in parts], axis=0)


def _combinable(names: Any) -> bool:
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return listed and len(set(names)) == len(names) > 1 and NAME not in names and all(named(name) for name in names)


def _accepted(given: Any) -> bool:
    for name, options in (given or {}).items() if given is None or isinstance(given, Mapping) else [("", None)]:
        if not isinstance(options, Mapping):
            return False
        check(name, named(name).rules, options)  # says what is wrong
    return True


Methods = Annotated[Sequence[str], Rule(f"name at least two different methods other than {NAME!r}", _combinable)]
Options = Annotated[Mapping, Rule("it must map methods to maps of their options", _accepted)]


@method("rank_combined", family="combination", paper="STRIDE", needs=("params", "outputs"), signed=False)
def attribute(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK,
    methods: Methods = ("stride", "logra"), options: Options = None,
) -> np.ndarray:  # fmt: skip
    """Mean ranks [Q, N] in [0, 1] of registered ``methods``, each with its own ``options[name]``; ``seed`` and
    ``chunk`` go to all. A rank has no zero, so nothing is an opponent.

    Raises ``ValueError`` for fewer than two methods, one named twice, this one, and options of another method.
    """
    options = dict(options or {})
    if foreign := sorted(set(options) - set(methods)):
        raise ValueError(f"{NAME}: options for {foreign}; they belong to one of methods={list(methods)}.")
    given = {name: {"seed": seed, "chunk": chunk, **options.get(name, {})} for name in methods}
    return combine([attribute_by(name, task, train, queries, **given[name]) for name in methods])
