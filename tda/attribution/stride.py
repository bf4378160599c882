"""STRIDE (Dagli et al. 2026): influences recovered from what simulated training on random subsets would change.

Datamodels retrain on many random subsets and regress a query's loss on membership. STRIDE replaces retraining by
steering: every subset A_k owns a small code on top of the frozen model (:mod:`tda.steering.operators`), trained so that
the steered model fits A_k and stays as it was elsewhere (:mod:`tda.steering.fitting`). A query's K measurements

    y_k = loss(frozen) - loss(steered by code k)        (positive: the subset helps)

come from one forward pass, and its weights solve y = b + M w (:mod:`tda.steering.recovery`).

Ours, since unpublished: what the training module lists, the weights of the losses, the choice of the penalty, the
intercept, the plain mean over target positions. With steps = 0 and a strong stability loss the scores are influence
with a low-rank output head, seen through M. Only the order of measurements is simulated, not their size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tda.attribution.registry import method
from tda.steering import recovery
from tda.steering.fitting import Weights, train
from tda.steering.operators import Operators, depth, effects, snapshot
from tda.task import Examples, Task, n_examples
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK
from tda.tools.options import Count, NotNegative, Share, Whole, one_of, option, whole

SUBSETS, RANK = 1000, 16  # as published, where documents and activations allow it


@dataclass(frozen=True, kw_only=True)
class Options:
    """The subsets, the operators trained on them, and the recovery of the documents' weights."""

    seed: Whole = option(0, "draws everything")
    chunk: Count = option(CHUNK, "examples in a forward pass")
    subsets: Whole = option(0, "K; 0: twice the documents, at most 1000")
    degree: Count = option(10, "d, the subsets that a document joins")
    rank: Whole = option(0, "r; 0: 16, at most the width")
    layer: whole(-1) = option(-1, "depth at which activations are read; -1: 0.6 of the blocks")
    fidelity: NotNegative = option(1.0, "weight of that loss; 0 drops it")
    stability: NotNegative = option(100.0, "weight of that loss; 0 drops it")
    linearity: NotNegative = option(1.0, "weight of that loss; 0 drops it")
    steps: Whole = option(30, "of the descent; 0: the closed-form start")
    rate: Share = option(0.05, "of the descent")
    recovery: one_of(recovery.METHODS) = option("lasso", "how documents' weights are solved for")
    penalty: NotNegative = option(0.0, "relative, of lasso and ridge; 0: by held-out measurements")

    def of_operators(self) -> Options:
        """Without what only the recovery reads: equal for all recoveries from the same operators."""
        return replace(self, recovery="lasso", penalty=0.0)


@method("stride", family="simulation", paper="STRIDE", needs=("params", "outputs"), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """STRIDE scores [Q, N]: simulated nats per document of a subset, on a scale that ``stability`` sets.

    Raises ``ValueError`` for empty subsets, no such layer, a rank above the width, measurements that do not vary.
    """
    trained = operators(task, train, options.of_operators())
    y = measurements(trained, task, queries, options.chunk)
    return recovery.recover(trained.measure, y, options.recovery, options.seed, options.penalty or None)


@remembered(2)
def operators(task: Task, train: Examples, options: Options) -> Operators:
    """The operators of random left-regular subsets: the set-up, to which no query is known.

    Shared by recoveries, which ask with :meth:`Options.of_operators`.
    """
    n = n_examples(train)
    subsets = recovery.left_regular(n, options.subsets or min(SUBSETS, 2 * n), options.degree, [options.seed, 81])
    return operators_for(task, train, subsets, options)


def operators_for(task: Task, train_examples: Examples, measure: np.ndarray, options: Options) -> Operators:
    """Operators for given subsets ``measure`` bool [K, n]."""
    if measure.shape[-1] != n_examples(train_examples):
        raise ValueError(
            f"stride: subsets of {measure.shape[-1]} documents, but there are {n_examples(train_examples)}; one column "
            f"of measure belongs to each document."
        )
    layer = depth(task, options.layer)
    shot = snapshot(task, train_examples, layer, options.chunk)
    rank = options.rank or min(RANK, shot.states.shape[1])
    weights = Weights(options.fidelity, options.stability, options.linearity)
    return train(shot, measure, layer, rank, weights, steps=options.steps, rate=options.rate, seed=options.seed)


def measurements(trained: Operators, task: Task, queries: Examples, chunk: int = CHUNK) -> np.ndarray:
    """y [K, Q], in nats: frozen minus steered loss of every query under every operator."""
    return effects(trained, snapshot(task, queries, trained.layer, chunk))
