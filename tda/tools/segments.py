"""The algebra of SOURCE (:mod:`tda.attribution.source`): segments of training in which the curvature stands still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tda.task import Checkpoint, Examples, Task, n_examples, take
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK, blocks

GROWTH = 1e3  # a perturbation that a segment multiplies by more than this has left the region of its quadratic


@dataclass(frozen=True)
class Segment:
    """A stretch of training: the task at its checkpoints, its learning rates, the examples drawn from (bool [N])."""

    tasks: tuple[Task, ...]
    rates: np.ndarray
    members: np.ndarray


def segments_of(task: Task, checkpoints: Sequence[Checkpoint], rates: np.ndarray, count: int, n: int) -> list[Segment]:
    """``count`` consecutive segments of (nearly) equally many checkpoints, each ending with its last, with all ``n``
    examples as members. ``rates`` [T]: the learning rate of every step. Raises ``ValueError`` if the checkpoints do not
    end with the last step, or there are fewer than segments.
    """
    if not checkpoints or not 0 < count <= len(checkpoints) or count != int(count):
        raise ValueError(
            f"source: segments={count}; the run recorded {len(checkpoints)} checkpoints, and a segment needs at least "
            f"one. Use 1 to {len(checkpoints)}, or train with more training.checkpoints."
        )
    if checkpoints[-1].step != len(rates):
        raise ValueError(
            f"source: the last checkpoint is of step {checkpoints[-1].step}, the run has {len(rates)} learning rates. "
            f"Checkpoints are missing or of another run; train again."
        )
    last = [round((i + 1) * len(checkpoints) / count) for i in range(int(count))]
    at, segments = _tasks_at(task, checkpoints), []
    for begin, end in zip([0, *last[:-1]], last, strict=True):
        first_step = checkpoints[begin - 1].step if begin else 0
        segments.append(Segment(at[begin:end], rates[first_step : checkpoints[end - 1].step], np.ones(n, bool)))
    return segments


@remembered(2)
def _tasks_at(task: Task, checkpoints: Sequence[Checkpoint]) -> tuple[Task, ...]:
    """The task at each checkpoint: the same objects for any number of segments, so that curvature is remembered."""
    return tuple(replace(task, params=c.params) for c in checkpoints)


def responses(eigenvalues: Tensor, rates: np.ndarray, momentum: float) -> Tensor:
    """What one segment of SGD does to the derivatives (p by theta, u by v) along eigenvectors, [3, 2, W]: the recursion
    of :mod:`tda.attribution.unroll` with the Hessian a number. Row 0: what it adds to the score's direction, rows 1 and
    2: what leaves it as p and as u; column 0 per unit of p, column 1 per unit of u that enter.
    """
    w = eigenvalues.double()
    enter = torch.eye(2, dtype=w.dtype).reshape(2, 2, *(1,) * w.dim())
    p, u = (unit * torch.ones_like(w) for unit in enter)
    added = torch.zeros_like(p)
    for rate in np.asarray(rates, float)[::-1]:
        a = u - rate * p
        added, p, u = added - a, p + w * a, momentum * a
    return torch.stack([added, p, u])


def propagate(
    operators: Sequence,
    rates: Sequence[np.ndarray],
    query_gradients: Tensor,
    momentum: float,
    weight_decay: float,
    variant: str,
) -> list[Tensor]:
    """The directions ``r_l S_{l+1} ... S_L g_q``, [Q, P] for each segment l, from ``query_gradients`` [Q, P] and the
    mean curvature of each segment, anything with ``function(f, V [B, P]) -> V f(H)``. Raises ``ValueError`` where a
    perturbation explodes.
    """
    p, u, directions = query_gradients, torch.zeros_like(query_gradients), []
    through = _recursion if variant == "exact" else _exponential
    for place in reversed(range(len(operators))):
        try:
            direction, p, u = through(operators[place], np.asarray(rates[place], float), p, u, momentum, weight_decay)
        except OverflowError as explosion:
            raise ValueError(
                f"source: segment {place + 1} of {len(operators)} multiplies a perturbation by {explosion.args[0]:.3g} "
                f"(variant={variant!r}): its curvature is negative, or too large for the learning rate, over that many "
                f"steps. Use a curvature that is never negative (ggn, ekfac), variant='exponential', or more segments."
            ) from None
        directions.append(direction)
    return directions[::-1]


def _exponential(operator, rates: np.ndarray, p: Tensor, u: Tensor, momentum: float, weight_decay: float):
    total = rates.sum() / (1 - momentum)

    def injected(w: Tensor) -> Tensor:  # (1 - exp(-total w)) / w, and its limit at w = 0
        w = w.double() + weight_decay
        near = (total * w).abs() < 1e-12
        return torch.where(near, total, -torch.expm1(-total * w) / torch.where(near, 1.0, w))

    def passed(w: Tensor) -> Tensor:
        return _bounded(torch.exp(-total * (w.double() + weight_decay)))

    after, direction = operator.functions([passed, injected], p)  # the first may be refused
    return direction, after, u


def _recursion(operator, rates: np.ndarray, p: Tensor, u: Tensor, momentum: float, weight_decay: float):
    def factor(row: int, column: int, w: Tensor) -> Tensor:
        response = responses(w.double() + weight_decay, rates, momentum)
        _bounded(response[1, 0])
        return response[row, column]

    entering = (p, u) if momentum else (p,)
    parts = [operator.functions([partial(factor, row, c) for row in range(3)], v) for c, v in enumerate(entering)]
    return [sum(of_row) for of_row in zip(*parts, strict=True)]


def _bounded(factor: Tensor) -> Tensor:
    if not factor.abs().max() <= GROWTH:
        raise OverflowError(float(factor.abs().max()))
    return factor


def scores_of(
    segments: Sequence[Segment],
    operators: Sequence,
    train: Examples,
    query_gradients: Tensor,
    momentum: float,
    weight_decay: float,
    variant: str,
    chunk: int = CHUNK,
) -> np.ndarray:
    """Scores by segment, [L, Q, N]: what the examples taught in each stretch. Their sum is SOURCE's score."""
    directions = propagate(operators, [s.rates for s in segments], query_gradients, momentum, weight_decay, variant)
    scores = np.zeros((len(segments), len(query_gradients), n_examples(train)))
    for place, (segment, direction) in enumerate(zip(segments, directions, strict=True)):
        rows = np.flatnonzero(segment.members)
        inside = take(train, rows)
        for task in segment.tasks:
            for part, gradients in blocks(task, inside, chunk):
                scores[place][:, rows[part]] += (direction @ gradients.T).numpy() / (len(rows) * len(segment.tasks))
    return scores
