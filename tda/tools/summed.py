"""Scores summed over several models: the checkpoints of a run, or runs with other seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tda.task import Task
from tda.tools.cache import remembered


@remembered(4)
def trajectory(task: Task, checkpoints: int) -> list[tuple[Task, float]]:
    """``[(task at a checkpoint, its weight), ...]``: ``checkpoints`` of the recorded ones, evenly spaced and ending
    with the last (0: all). The weight is the sum of the learning rates since the previous checkpoint *used*, so that a
    sum over fewer checkpoints approximates the same integral along training. ``ValueError`` if there are not as many.
    """
    known = () if task.run is None else task.run.checkpoints
    if not known:
        raise ValueError(f"task {task.name!r} has no checkpoints; train with training.checkpoints, or use one model.")
    count = checkpoints or len(known)
    if not 0 < count <= len(known) or count != int(count):
        raise ValueError(
            f"checkpoints={checkpoints}; the run recorded {len(known)}. Use 0 for all, or 1 to {len(known)}."
        )
    last = [round((i + 1) * len(known) / count) - 1 for i in range(count)]
    starts = [0, *(place + 1 for place in last[:-1])]
    weights = [sum(c.lr_sum for c in known[a : b + 1]) for a, b in zip(starts, last, strict=True)]
    return [(replace(task, params=known[place].params), w) for place, w in zip(last, weights, strict=True)]


def over_checkpoints(task: Task, count: int, score: Callable[[Task], np.ndarray]) -> np.ndarray:
    """``score(task)`` [Q, N] at ``count`` checkpoints of the run (0: all), summed as :func:`along` does it."""
    return along([(score(part), weight) for part, weight in trajectory(task, count)])


def along(parts: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Weighted sum of score matrices [Q, N], each query's scores first scaled to unit mean magnitude: raw scores of
    late checkpoints, where gradients are small and their inverse Fisher large, would drown the early ones.
    """
    return sum(weight * unit_scale(scores) for scores, weight in parts)


def unit_scale(scores: np.ndarray) -> np.ndarray:
    """Scores [Q, N] with mean magnitude 1 in every row (rows of zeros stay)."""
    return scores / np.maximum(np.abs(scores).mean(1, keepdims=True), np.finfo(np.float32).tiny)
