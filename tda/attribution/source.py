"""SOURCE (Bae et al. 2024): unrolled differentiation with a few checkpoints instead of every step.

Training is cut into L segments. Inside a segment the mean gradient of every example and the mean curvature H of its
checkpoints stand for all K steps. A perturbation that enters in the segment, or passes through it, is multiplied by

    r(H) = (1 - exp(-eta K H)) H^-1          S(H) = exp(-eta K H)

(``eta K``: the sum of the segment's learning rates, over 1 - mu with momentum mu; weight decay adds to the eigenvalues)

    score(q, i) = sum_l <r_l S_{l+1} ... S_L grad l_q(theta_T), gbar_{l,i}> / N_l

with gbar_{l,i} the mean gradient of example i over the segment's checkpoints and N_l the examples of the segment. Unit
and sign are those of :mod:`tda.attribution.unroll`; 1 / (eta K) plays the part of a damping.

Variants: ``exponential`` (the paper's); ``fast`` (FAST-SOURCE: gradients and curvature once, at the mean parameters of
a segment); ``exact`` (ours): the recursion of SGD itself on every eigenvalue. How the paper treats Adam is not known to
us, so another optimiser than SGD is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tda.attribution.registry import method
from tda.curvature import named
from tda.curvature.operators import Spectral
from tda.task import Examples, Task, n_examples
from tda.tools.cache import remembered
from tda.tools.gradients import matrix
from tda.tools.options import Count, one_of, option, read
from tda.tools.recorded import sgd_run
from tda.tools.segments import Segment, scores_of, segments_of

VARIANTS = ("exponential", "exact", "fast")
SAME = 1e-3  # largest difference of a parameter between the model and its last checkpoint


@dataclass(frozen=True, kw_only=True)
class Options(named.CurvatureOptions):
    """The segments, the curvature H of each, and how it is used."""

    segments: Count = option(3, "L, at most one a checkpoint")
    variant: one_of(VARIANTS) = option("exponential", "see the module's text")


@method("source", family="unrolling", paper="SOURCE", needs=("params", "outputs", "checkpoints"), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """SOURCE's scores, [Q, N]: the fall of each query's loss (nats) per unit of the weight of each training example.

    Memory: that of L curvatures, of the checkpoints, and (Q L + chunk) P.
    Raises ``ValueError`` for a run of another optimiser, missing or foreign checkpoints, and a segment that explodes.
    """
    return by_segment(task, train, queries, **vars(options)).sum(0)


def by_segment(task: Task, train: Examples, queries: Examples, **options) -> np.ndarray:
    """:func:`attribute` (same options) taken apart: what each example taught in each segment, [L, Q, N]."""
    chosen = read("source", Options, options)
    recipe = sgd_run(task, "source").recipe
    if chosen.variant == "fast":
        parts, operators = _stretches(task, train, chosen)
    else:  # exponential and exact read the same segments
        parts, operators = _remembered(task, train, replace(chosen, variant="exponential"))
    gradients = matrix(task, queries, chosen.chunk)
    run = recipe.momentum, recipe.weight_decay
    return scores_of(parts, operators, train, gradients, *run, chosen.variant, chosen.chunk)


def _stretches(task: Task, train: Examples, options: Options) -> tuple[list[Segment], list[Spectral]]:
    parts = segments_of(task, task.run.checkpoints, task.run.learning_rates, options.segments, n_examples(train))
    _same_model(task, parts[-1].tasks[-1])
    if options.variant == "fast":
        parts = [replace(part, tasks=(at_mean(part.tasks),)) for part in parts]
    operators = [named.averaged(options.curvature, part.tasks, train, **options.arguments()) for part in parts]
    for operator in operators:
        operator.eigenvalues  # noqa: B018  (a dense one decomposes when first asked: here, where it is charged)
    return parts, operators


_remembered = remembered(2)(_stretches)  # for other queries, and for the other way of reading the same segments


def _same_model(task: Task, last: Task) -> None:
    gap = max(float((task.params[k] - last.params[k]).abs().max()) for k in task.params)
    if gap > SAME:
        raise ValueError(
            f"source: the last checkpoint differs from the model by up to {gap:.2g}: the checkpoints are of another "
            f"run. Attribute the model that the record describes."
        )


def at_mean(tasks: Sequence[Task]) -> Task:
    mean = {k: sum(task.params[k] for task in tasks) / len(tasks) for k in tasks[0].params}
    return replace(tasks[0], params=mean)
