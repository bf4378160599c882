"""What a solver costs on its way: the steps of :mod:`tda.curvature.solvers` with their time and error (chapter 20)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from tda.curvature.solvers import Step


@dataclass
class Solved:
    """A solution [B, P] and the way to it: one dict a recorded step."""

    solution: Tensor
    trace: list[dict[str, float]]


def traced(steps: Iterator[Step], reference: Tensor | None = None, every: int = 1) -> Solved:
    """Run a solver and keep a trace of ``every`` so many of its steps, and of the last.

    ``hvps`` and ``residual`` as in :class:`Step`; ``seconds`` that the solver took, without those of keeping the trace;
    ``error``: the mean over B of |x - reference| / |reference|, NaN without a ``reference`` [B, P].
    """

    def row(step: Step, seconds: float) -> dict[str, float]:
        error = math.nan
        if reference is not None:
            error = float(((step.solution() - reference).norm(dim=1) / reference.norm(dim=1)).mean())
        return {"hvps": step.hvps, "seconds": seconds, "residual": step.residual, "error": error}

    trace, seconds, began = [], 0.0, time.perf_counter()
    for number, step in enumerate(steps, 1):
        seconds += time.perf_counter() - began
        if number % every == 0:
            trace.append(row(step, seconds))
        began = time.perf_counter()
    if number % every:
        trace.append(row(step, seconds))
    return Solved(step.solution(), trace)
