"""TRAK (Park et al. 2023): influence of a linearised, randomly projected model.

With f the model output (its log-odds, see :func:`tda.tools.projection.margins`), phi_i = S grad f_i its projected
gradient, Phi [N, d] their matrix and Q_i = 1 - p_i:

    score(q, i) = phi_q^T (Phi^T Phi + delta)^-1 phi_i * Q_i

which is one Newton step of logistic regression on the features phi. An ensemble averages its two factors apart:
``mean_m kernel_m(q, i) * mean_m Q_m,i`` (as in the authors' code), every member with a projection of its own.

From the paper and its code: log-odds of a classifier, Q = 1 - p, the kernel without damping, the two averages. Ours:
for a language model f is the *mean* of the log-odds over target tokens and Q the mean of 1 - p (the published output
for text generation is not known to us); ``output="loss"`` uses the loss itself, with Q = 1; and ``damping``, without
which d must stay below N and the projection is coarse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tda.attribution.registry import method
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools.door import entered
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.options import Count, NotNegative, Whole, one_of
from tda.tools.projection import KINDS, OUTPUTS, check, damped_inverse, features, log_odds
from tda.tools.summed import trajectory

ROWS = 32  # features turned to float64 at once
MEMBER = 100_000  # added to the seed of the projection for every further member of an ensemble


@method("trak", family="curvature", paper="Park et al. 2023", needs=("params", "outputs"), signed=True)
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    output: one_of(OUTPUTS) = "margin",
    projection: one_of(KINDS) = "sparse",
    dimension: Count = 4096,
    damping: NotNegative = 0.1,
) -> np.ndarray:
    """TRAK scores of one model, [Q, N]; no unit (the kernel does not know the scale of the gradients).

    Options: ``output`` margin or loss; ``projection`` sparse, rademacher, gaussian or none; ``dimension`` d;
    ``damping`` in units of the mean eigenvalue of Phi^T Phi (0: the published kernel, which is refused for d >= N).
    ``seed`` draws the projection. Memory: (N + Q) x d x 4 bytes and chunk x P x 4.
    Raises ``ValueError`` for other options, a singular kernel, gradients that are not finite.
    """
    return ensemble([task], train, queries, seed, chunk, output, projection, dimension, damping)


@method(
    "trak_trajectory",
    family="curvature",
    paper="Park et al. 2023",
    needs=("params", "outputs", "checkpoints"),
    signed=True,
)
def attribute_trajectory(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    output: one_of(OUTPUTS) = "margin",
    projection: one_of(KINDS) = "sparse",
    dimension: Count = 4096,
    damping: NotNegative = 0.1,
    checkpoints: Whole = 0,
) -> np.ndarray:
    """TRAK with the checkpoints of one run as its ensemble (0: all), [Q, N]: members that cost no training.

    Every checkpoint weighs the same, since the kernel does not know the scale of the gradients. Options as in
    :func:`attribute`.
    """
    members = [part for part, _ in trajectory(task, checkpoints)]
    return ensemble(members, train, queries, seed, chunk, output, projection, dimension, damping)


def ensemble(
    tasks: Sequence[Task],
    train: Examples,
    queries: Examples,
    seed: int = 0,
    chunk: int = CHUNK,
    output: str = "margin",
    projection: str = "sparse",
    dimension: int = 4096,
    damping: float = 0.1,
) -> np.ndarray:
    """TRAK over several models of one recipe, [Q, N]: mean kernel times mean Q. Options as in :func:`attribute`.

    With ``output="loss"`` it needs no logits, and works on any task.
    """
    if not len(tasks):
        raise ValueError("trak: an ensemble of no models; give at least one task.")
    for task in tasks:
        check("trak", task, output, projection, dimension, damping)
    kernels, weights = [], []
    for member, task in enumerate(tasks):  # members project independently, so that their projection errors average out
        options = (output, projection, dimension, seed + MEMBER * member, chunk)
        phi, asked = features(task, train, *options), features(task, queries, *options)
        solved = damped_inverse(phi, damping, "trak")(asked)
        kernels.append(torch.cat([solved @ part.double().T for part in phi.split(ROWS)], dim=1))
        weights.append(residuals(task, train, output, chunk))
    return (sum(kernels) / len(tasks) * (sum(weights) / len(tasks))).numpy()


def self_influence(
    task: Task,
    train: Examples,
    seed: int = 0,
    chunk: int = CHUNK,
    output: str = "margin",
    projection: str = "sparse",
    dimension: int = 4096,
    damping: float = 0.1,
) -> np.ndarray:
    """Score of every document with itself, [N]: leverage phi_i^T (Phi^T Phi + delta)^-1 phi_i times Q_i, in [0, 1].

    High for documents that the model fits on their own account (mislabelled, odd). Options as in :func:`attribute`.
    """
    check("trak", task, output, projection, dimension, damping)
    with entered(task, ("params",), train=train) as (train,):
        phi = features(task, train, output, projection, dimension, seed, chunk)
        leverage = (damped_inverse(phi, damping, "trak")(phi) * phi).sum(1)
        return (leverage * residuals(task, train, output, chunk)).numpy()


def residuals(task: Task, train: Examples, output: str, chunk: int = CHUNK) -> Tensor:
    """Q, [N] float64: minus the derivative of the loss in the output, 1 - p (mean over tokens), or 1 for ``loss``."""
    if output == "loss":
        return torch.ones(n_examples(train), dtype=torch.float64)
    parts = []
    with torch.no_grad():
        for part in chunks(n_examples(train), chunk):
            odds, target = log_odds(task, task.params, batch_of(take(train, part)))
            parts.append((torch.sigmoid(-odds) * target).sum(-1) / target.sum(-1))
    return torch.cat(parts).double()
