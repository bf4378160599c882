"""A judge that no estimator has seen: models on new subsets with new seeds, and the noise ceiling of their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tda.evaluation.ceiling import ceiling, with_seeds
from tda.evaluation.intervals import RowResult, lds_intervals
from tda.task import Examples, Task, n_examples
from tda.tools import halves

STREAM = 2  # of subsets and seeds: 0 and 1 are those of half-model influence


@dataclass(frozen=True)
class Judge:
    """``subsets`` [M, N], ``outputs`` [M, R, Q] losses, and the noise ``ceiling`` of their mean over R seeds."""

    subsets: np.ndarray
    outputs: np.ndarray
    ceiling: float

    def lds(self, scores: Mapping[str, np.ndarray], clusters: Sequence, level: float, against: Sequence[str] = (),
            predictions: Mapping[str, np.ndarray] | None = None) -> dict[str, RowResult]:  # fmt: skip
        """LDS of rows on this judge, with intervals and paired differences to the rows ``against``."""
        return lds_intervals(scores, self.subsets, self.outputs, clusters, level, against, predictions)


def new_bank(task: Task, train: Examples, queries: Examples, count: int, seeds: int, seed: int = 0) -> Judge:
    """``count`` new halves, each trained with ``seeds`` new seeds, and the noise ceiling of their losses."""
    masks = halves.draw(n_examples(train), count, seed, stream=STREAM)
    losses = []
    for r in range(seeds):
        numbers = [s + r * count for s in halves.seeds_from(seed, count, STREAM)]
        models = halves.trained(task, masks, numbers)
        losses.append(np.exp(halves.log_losses(task, [moments[-1] for moments in models], queries)).T)
    outputs = np.stack(losses, 1).astype(np.float32)
    return Judge(masks, outputs, ceiling(outputs).value)


def of_own_models(masks: np.ndarray, log_losses: np.ndarray, ceiling: float, seeds: int) -> Judge:
    """The halves ``masks`` [m, N] of a residual as judges of what was not regressed on them, log losses [Q, m].
    ``ceiling``: that of a bank with ``seeds`` seeds on these queries, converted to one seed.
    """
    outputs = np.exp(log_losses).T[:, None].astype(np.float32)
    return Judge(masks, outputs, with_seeds(ceiling, seeds, 1))
