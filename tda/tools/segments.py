"""The algebra of SOURCE (:mod:`tda.attribution.source`): segments of training in which the curvature stands still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tda.task import Checkpoint, Examples, Task, n_examples, take
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK, blocks

GROWTH = 1e3  # a perturbation that a segment multiplies by more than this has left the region of its quadratic


@dataclass(frozen=True)
class Segment:
    """A stretch of training.

    ``tasks``: the task at its checkpoints; ``rates``: the learning rate of each of its steps; ``members`` [N] bool: the
    examples its batches were drawn from.
    """

    tasks: tuple[Task, ...]
    rates: np.ndarray
    members: np.ndarray


def segments_of(task: Task, checkpoints: Sequence[Checkpoint], rates: np.ndarray, count: int, n: int) -> list[Segment]:
    """``count`` consecutive segments of (nearly) equally many of the recorded checkpoints, each ending with its last.

    ``rates`` [T]: the learning rate of every step of the run; ``n``: the number of training examples, all of which are
    members of every segment (``dataclasses.replace(segment, members=...)`` for training in stages).
    Raises ``ValueError`` if the checkpoints do not end with the last step, or there are fewer than segments.
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
    at, found = _tasks_at(task, checkpoints), []
    for begin, end in zip([0, *last[:-1]], last, strict=True):
        first_step = checkpoints[begin - 1].step if begin else 0
        taken = np.asarray(rates)[first_step : checkpoints[end - 1].step]
        found.append(Segment(at[begin:end], taken, np.ones(n, bool)))
    return found


@remembered(2)
def _tasks_at(task: Task, checkpoints: Sequence[Checkpoint]) -> tuple[Task, ...]:
    """The task at each checkpoint: the same objects for any number of segments, so that curvature is remembered."""
    return tuple(replace(task, params=c.params) for c in checkpoints)


def responses(eigenvalues: Tensor, rates: np.ndarray, momentum: float) -> Tensor:
    """What one segment of SGD does to the derivatives (p by theta, u by v) along eigenvectors, [3, 2, W].

    Row 0: what it adds to the score's direction, rows 1 and 2: what leaves it as p and as u; column 0 per unit of p,
    column 1 per unit of u that enter. The recursion of :mod:`tda.attribution.unroll` with the Hessian a number.
    """
    w = eigenvalues.double()
    enter = torch.eye(2, dtype=w.dtype).reshape(2, 2, *(1,) * w.dim())
    p, u = (one * torch.ones_like(w) for one in enter)
    added = torch.zeros_like(p)
    for rate in np.asarray(rates, float)[::-1]:
        a = u - rate * p
        added, p, u = added - a, p + w * a, momentum * a
    return torch.stack([added, p, u])


def propagate(
    operators: Sequence, rates: Sequence[np.ndarray], asked: Tensor, momentum: float, weight_decay: float, variant: str
) -> list[Tensor]:
    """The directions ``r_l S_{l+1} ... S_L g_q``, [Q, P] for each segment l, from the query gradients ``asked`` [Q, P].

    ``operators``: the mean curvature of each segment, anything with ``function(f, V [B, P]) -> V f(H)``; ``rates``: its
    learning rates. Raises ``ValueError`` where frozen curvature makes a perturbation explode.
    """
    p, u, directions = asked, torch.zeros_like(asked), []
    through = _exact if variant == "exact" else _exponential
    for place in reversed(range(len(operators))):
        try:
            direction, p, u = through(operators[place], np.asarray(rates[place], float), p, u, momentum, weight_decay)
        except _Explodes as explosion:
            raise ValueError(
                f"source: segment {place + 1} of {len(operators)} multiplies a perturbation by {explosion.args[0]:.3g} "
                f"(variant={variant!r}): its curvature is negative, or too large for the learning rate, over that many "
                f"steps. Use a curvature that is never negative (ggn, ekfac), variant='exponential', or more segments."
            ) from None
        directions.append(direction)
    return directions[::-1]


class _Explodes(Exception):
    pass


def _exponential(operator, rates: np.ndarray, p: Tensor, u: Tensor, momentum: float, weight_decay: float):
    total = rates.sum() / (1 - momentum)

    def injected(w: Tensor) -> Tensor:  # (1 - exp(-total w)) / w, and its limit at w = 0
        w = w.double() + weight_decay
        near = (total * w).abs() < 1e-12
        return torch.where(near, total, -torch.expm1(-total * w) / torch.where(near, 1.0, w))

    def passed(w: Tensor) -> Tensor:
        return _bounded(torch.exp(-total * (w.double() + weight_decay)))

    after = operator.function(passed, p)
    return operator.function(injected, p), after, u


def _exact(operator, rates: np.ndarray, p: Tensor, u: Tensor, momentum: float, weight_decay: float):
    def factor(row: int, column: int):
        def f(w: Tensor) -> Tensor:
            found = responses(w.double() + weight_decay, rates, momentum)
            _bounded(found[1, 0])
            return found[row, column]

        return f

    entering = (p, u) if momentum else (p,)
    leaving = [sum(operator.function(factor(row, c), v) for c, v in enumerate(entering)) for row in range(3)]
    return leaving[0], leaving[1], leaving[2]


def _bounded(factor: Tensor) -> Tensor:
    if not factor.abs().max() <= GROWTH:
        raise _Explodes(float(factor.abs().max()))
    return factor


def scores_of(
    segments: Sequence[Segment],
    operators: Sequence,
    train: Examples,
    asked: Tensor,
    momentum: float,
    weight_decay: float,
    variant: str,
    chunk: int = CHUNK,
) -> np.ndarray:
    """Scores by segment, [L, Q, N]: what the examples taught in each stretch. Their sum is SOURCE's score."""
    along = propagate(operators, [s.rates for s in segments], asked, momentum, weight_decay, variant)
    scores = np.zeros((len(segments), len(asked), n_examples(train)))
    for place, (segment, direction) in enumerate(zip(segments, along, strict=True)):
        rows = np.flatnonzero(segment.members)
        inside = take(train, rows)
        for task in segment.tasks:
            for part, gradients in blocks(task, inside, chunk):
                scores[place][:, rows[part]] += (direction @ gradients.T).numpy() / (len(rows) * len(segment.tasks))
    return scores
