"""SOURCE (Bae et al. 2024): unrolled differentiation with a few checkpoints instead of every step.

Training is cut into L segments. Inside a segment the mean gradient of every example and the mean curvature H of its
checkpoints stand for all K steps, so the products of the unrolled derivative become functions of H's eigenvalues. A
perturbation that enters in the segment, and one that passes through it, are multiplied by

    r(H) = (1 - exp(-eta K H)) H^-1          S(H) = exp(-eta K H)

(``eta K``: the sum of the segment's learning rates, over 1 - mu with momentum mu; weight decay adds to the eigenvalues)
and

    score(q, i) = sum_l <r_l S_{l+1} ... S_L grad l_q(theta_T), gbar_{l,i}> / N_l

with gbar_{l,i} the mean gradient of example i over the segment's checkpoints and N_l the number of examples of the
segment. It is read from the right: start with the query's gradient, apply r for the scores, S to go one segment back.
The unit is that of :mod:`tda.attribution.unroll`: the fall of the query's loss (nats) per unit of the weight of example
i; positive = proponent. With one segment and a long run r(H) tends to H^-1: influence without damping. Directions with
eta K w << 1 are left as they are, so that 1 / (eta K) plays the part of a damping.

Variants: ``exponential`` (the paper's); ``fast`` (FAST-SOURCE: gradients and curvature once, at the mean parameters of
a segment); ``exact`` (ours): the recursion of SGD itself, momentum and learning rates included, on every eigenvalue. It
equals unrolling wherever gradients and curvature really are constant; for a constant rate without momentum its S is
(1 - eta w)^K. All of this holds for SGD. The paper's treatment of Adam is not known to us, so a model trained by
another optimiser is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tda.attribution.registry import method
from tda.curvature import named
from tda.curvature.averaged import averaged
from tda.curvature.kronecker import UNTRACKED
from tda.output_loss import FISHERS
from tda.task import Examples, Task, n_examples, take
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK, matrix
from tda.tools.options import Count, Pattern, Whole, one_of
from tda.tools.recorded import sgd_run
from tda.tools.segments import Segment, scores_of, segments_of

VARIANTS = ("exponential", "exact", "fast")
SAME = 1e-3  # largest difference of a parameter between the model and its last checkpoint


@method("source", family="unrolling", paper="SOURCE", needs=("params", "outputs", "checkpoints"), signed=True)
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    segments: Count = 3,
    curvature: one_of(named.CURVATURES) = "ekfac",
    fisher: one_of(FISHERS) = "sampled",
    layers: Pattern = "",
    rest: one_of(UNTRACKED) = "drop",
    variant: one_of(VARIANTS) = "exponential",
) -> np.ndarray:
    """SOURCE's scores, [Q, N]: the fall of each query's loss (nats) per unit of the weight of each training example.

    Needs a recorded SGD run. Options: ``segments`` L, at most one a checkpoint; ``variant`` exponential, fast or exact;
    ``curvature`` (hessian, ggn, block_ggn, kfac, ekfac, diagonal, empirical_fisher, identity), ``fisher``, ``layers``,
    ``rest`` as in :func:`tda.curvature.operator`. Parameters that the curvature drops (``rest="drop"``) take no part.
    There is no damping. Time: a sweep for gradients, and the curvature's, at every checkpoint (``fast``: once a
    segment). Memory: that of L curvatures, of which the last two sets are remembered (but for ``fast``), of the
    checkpoints, and (Q L + chunk) P. ``seed``: of sampled labels.
    Raises ``ValueError`` for a run of another optimiser, missing or foreign checkpoints, and a segment that explodes.
    """
    options = {"curvature": curvature, "fisher": fisher, "layers": layers, "rest": rest}
    known = {"seed": seed, "chunk": chunk, "segments": segments, "variant": variant}
    return by_segment(task, train, queries, **known, **options).sum(0)


def by_segment(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: int = 0,
    chunk: int = CHUNK,
    segments: int = 3,
    variant: str = "exponential",
    stages: np.ndarray | None = None,
    curvature: str = "ekfac",
    fisher: str = "sampled",
    layers: str = "",
    rest: str = "drop",
) -> np.ndarray:
    """:func:`attribute` taken apart: what each example taught in each segment, [L, Q, N]; the sum over L is the score.

    ``stages`` [L, N] bool: the examples that the batches of each segment were drawn from (all by default). An example
    scores zero in the segments of another stage, and a segment's curvature is that of its own examples. The other
    options are those of :func:`attribute`.
    """
    if variant not in VARIANTS:
        raise ValueError(f"source: variant={variant!r}; one of {VARIANTS}.")
    recipe, at_means = sgd_run(task, "source").recipe, variant == "fast"
    build = _stretches if at_means or stages is not None else _remembered
    parts, operators = build(task, train, segments, curvature, fisher, layers, rest, seed, chunk, at_means, stages)
    asked = matrix(task, queries, chunk)
    return scores_of(parts, operators, train, asked, recipe.momentum, recipe.weight_decay, variant, chunk)


def _stretches(task, train, segments, curvature, fisher, layers, rest, seed, chunk, at_means, stages) -> tuple:
    """``(segments, the mean curvature of each, decomposed)``."""
    parts = segments_of(task, task.run.checkpoints, task.run.learning_rates, segments, n_examples(train))
    _same_model(task, parts[-1].tasks[-1])
    if stages is not None:
        parts = [replace(part, members=members) for part, members in zip(parts, _checked(stages, parts), strict=True)]
    if at_means:
        parts = [replace(part, tasks=(at_mean(part.tasks),)) for part in parts]
    options = {"curvature": curvature, "fisher": fisher, "layers": layers, "rest": rest, "seed": seed, "chunk": chunk}
    operators = [
        averaged(tasks=part.tasks, train=train if part.members.all() else take(train, part.members), **options)
        for part in parts
    ]
    for operator in operators:
        operator.eigenvalues  # noqa: B018  (a dense one decomposes when first asked: here, where it is charged)
    return parts, operators


_remembered = remembered(2)(_stretches)  # for other queries, and for the other way of reading the same segments


def _checked(stages: np.ndarray, parts: list[Segment]) -> np.ndarray:
    stages, expected = np.asarray(stages), (len(parts), len(parts[0].members))
    if stages.dtype != bool or stages.shape != expected or not stages.any(1).all():
        raise ValueError(
            f"source: stages is {stages.dtype} {stages.shape}; bool {expected} is wanted, [segments, training "
            f"examples], with at least one example in each segment."
        )
    return stages


def _same_model(task: Task, last: Task) -> None:
    gap = max(float((task.params[k] - last.params[k]).abs().max()) for k in task.params)
    if gap > SAME:
        raise ValueError(
            f"source: the last checkpoint differs from the model by up to {gap:.2g}: the checkpoints are of another "
            f"run. Attribute the model that the record describes."
        )


def at_mean(tasks: Sequence[Task]) -> Task:
    """The task at the mean of the parameters of ``tasks``."""
    mean = {k: sum(task.params[k] for task in tasks) / len(tasks) for k in tasks[0].params}
    return replace(tasks[0], params=mean)
