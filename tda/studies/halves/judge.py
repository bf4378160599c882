"""A judge that no estimator has seen: models on new subsets with new seeds, and the noise ceiling of their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tda.evaluation.ceiling import Ceiling, ceiling, share_of_ceiling, with_seeds
from tda.evaluation.intervals import Interval, RowResult, lds_intervals
from tda.task import Examples, Task, n_examples
from tda.tools import halves

STREAM = 2  # of subsets and seeds: 0 and 1 are those of half-model influence


@dataclass(frozen=True)
class Judge:
    """``subsets`` [M, N], ``outputs`` [M, R, Q] losses, the noise ``ceiling`` of their mean over R seeds, its estimate
    ``bound``, where these losses gave it, or its standard ``error``, where other models did, and the ``seeds`` [M],
    where subsets have different ones.
    """

    subsets: np.ndarray
    outputs: np.ndarray
    ceiling: float
    bound: Ceiling | None = None
    error: float = 0.0
    seeds: Sequence[int] | None = None

    def lds(
        self, scores: Mapping[str, np.ndarray], clusters: Sequence, level: float, against: Sequence[str] = (),
        predictions: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, RowResult]:  # fmt: skip
        """LDS of rows on this judge, with intervals and paired differences to the rows ``against``. Where subsets have
        different seeds, within seeds: predictions lose the mean over a seed's subsets as the losses have.
        """
        if self.seeds is not None:
            sums = {name: np.asarray(part, np.float64) @ self.subsets.T for name, part in scores.items()}
            told = {
                name: halves.without_seeds(part, self.seeds) for name, part in {**sums, **(predictions or {})}.items()
            }
            return lds_intervals({}, self.subsets, self.outputs, clusters, level, against, told)
        return lds_intervals(scores, self.subsets, self.outputs, clusters, level, against, predictions)

    def share(self, result: RowResult, clusters: Sequence, level: float) -> Interval:
        """An LDS as a share of the ceiling. One of other models errs apart from the LDS: by the delta method,
        ``(se / share)^2 = (se of the LDS / LDS)^2 + (error / ceiling)^2``.
        """
        if self.bound is not None:
            return share_of_ceiling(result, self.bound, clusters, level)
        of = result.value
        value, se = of.value / self.ceiling, np.hypot(of.se, of.value * self.error / self.ceiling) / self.ceiling
        low, high = ((side - of.value) / of.se * se for side in (of.low, of.high))
        return Interval(value, value + low, value + high, se, of.df)


def new_bank(
    task: Task, train: Examples, queries: Examples, count: int, seeds: int, clusters: Sequence, level: float,
    seed: int = 0,
) -> Judge:  # fmt: skip
    """``count`` new halves, each trained with ``seeds`` new seeds, and the noise ceiling of their losses."""
    masks = halves.draw(n_examples(train), count, seed, stream=STREAM)
    losses = []
    for number in halves.seeds_from(seed, seeds, STREAM):  # each shared by all subsets, as in a bank
        models = halves.trained(task, masks, [number] * count)
        losses.append(np.exp(halves.log_losses(task, [moments[-1] for moments in models], queries)).T)
    outputs = np.stack(losses, 1).astype(np.float32)
    bound = ceiling(outputs, clusters, level)
    return Judge(masks, outputs, bound.value, bound)


def of_own_models(masks: np.ndarray, seeds: Sequence[int], log_losses: np.ndarray, bank: Ceiling) -> Judge:
    """The halves ``masks`` [m, N] of a residual as judges of what was not regressed on them, log losses [Q, m].
    ``bank``: the ceiling of a bank on these queries, converted to one seed with its error.
    """
    outputs = np.exp(halves.without_seeds(log_losses, seeds)).T[:, None].astype(np.float32)
    value = with_seeds(bank.value, bank.n_seeds, 1)
    slope = value / bank.value / (1 - bank.value**2 + bank.value**2 / bank.n_seeds)  # of with_seeds by its value
    return Judge(masks, outputs, value, error=slope * bank.slope * bank.agreement.se, seeds=seeds)


def compare(
    scores: Mapping[str, np.ndarray], bank, chosen: np.ndarray, clusters: Sequence, level: float, against: str
) -> dict[str, RowResult]:
    """LDS of rows [Q, N] on a shipped bank's ``chosen`` queries, paired with the row ``against``."""
    return lds_intervals(scores, bank.subsets, bank.outputs[..., chosen], clusters, level, [against])


def unit(predictions: np.ndarray) -> np.ndarray:
    """Predictions [Q, M] with mean 0 and variance 1 in every row."""
    centred = predictions - predictions.mean(1, keepdims=True)
    return centred / np.maximum(centred.std(1, keepdims=True), np.finfo(float).tiny)
