"""STRIDE (Dagli et al. 2026): influences recovered from what simulated training on random subsets would change.

Datamodels retrain on many random subsets and regress a query's loss on membership. STRIDE keeps the regression and
replaces retraining by steering: every subset A_k owns a small code on top of the frozen model
(:mod:`tda.steering.operators`), trained so that the steered model fits A_k and stays as it was elsewhere
(:mod:`tda.steering.fitting`). A query's K measurements

    y_k = loss(frozen) - loss(steered by code k)        (positive: the subset helps)

come from one forward pass, and its weights solve y = b + M w (:mod:`tda.steering.recovery`).

From the paper: the shift of the logits, the three losses, the measurement, the left-regular design and the Lasso;
K = 1000, d = 10, r = 16, a layer at about 0.6 of the depth. Ours, since unpublished: everything the training module
lists, the weights of the losses, the choice of the penalty, the intercept (y and M are centred). Ours and not the
paper's: the mean over target positions, all of one weight (the paper sums them with weights omega_t in [0, 1], which
are not known).

**The closed-form start (steps = 0), at a strong stability loss,** has small codes, measurements that are linear in
them, and scores that are influence with a low-rank output head, seen through M (a test shows it). The curvature is
E[p_c B B^T], one block a class: that of the upper bound 1/2 E_p[delta^2] of KL = 1/2 Var_p[delta], not the Gauss-Newton
matrix, which couples the classes. Where training ends is another matter.

Only the order of measurements is simulated: their size is about inverse to the weight of the stability loss.
"""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.steering import recovery as solver
from tda.steering.fitting import Weights, train
from tda.steering.operators import Operators, effects
from tda.steering.snapshot import depth, snapshot
from tda.task import Examples, Task, n_examples
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK
from tda.tools.options import Count, NotNegative, Share, Whole, one_of, whole

DESIGNS = ("left_regular", "bernoulli")
SUBSETS, RANK = 1000, 16  # as published, where documents and activations allow it


@method("stride", family="simulation", paper="STRIDE", needs=("params", "outputs"), signed=True)
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    subsets: Whole = 0,
    degree: Count = 10,
    rank: Whole = 0,
    layer: whole(-1) = -1,
    design: one_of(DESIGNS) = "left_regular",
    fidelity: NotNegative = 1.0,
    stability: NotNegative = 100.0,
    linearity: NotNegative = 1.0,
    steps: Whole = 30,
    rate: Share = 0.05,
    recovery: one_of(solver.METHODS) = "lasso",
    penalty: NotNegative = 0.0,
    sparsity: Whole = 0,
) -> np.ndarray:
    """STRIDE scores [Q, N]: simulated nats per document of a subset, on a scale that ``stability`` sets; their order
    within a query is what counts.

    Options: ``subsets`` K (0: twice the documents, at most 1000), ``degree`` d (subsets that a document joins; its mean
    for ``design`` bernoulli), ``rank`` r (0: 16, at most the width), ``layer`` (depth; -1: 0.6 of the blocks);
    ``fidelity``, ``stability``, ``linearity``: weights of the losses, 0 drops one; ``steps`` and ``rate`` of the
    descent (0 steps: the closed-form start); ``recovery`` lasso, ridge or correlation with the relative ``penalty``
    (0: by held-out measurements); ``sparsity`` k: warn where K is below k log(n / k). ``seed`` draws everything.
    Raises ``ValueError`` for other options, empty subsets, a layer that does not exist, a rank above the width, and
    measurements that do not vary (no fidelity, for example).
    """
    trained = operators(
        task, train, seed=seed, chunk=chunk, subsets=subsets, degree=degree, rank=rank, layer=layer, design=design,
        fidelity=fidelity, stability=stability, linearity=linearity, steps=steps, rate=rate,
    )  # fmt: skip
    y = measurements(trained, task, queries, chunk)
    return solver.recover(trained.measure, y, recovery, seed=seed, penalty=penalty or None, sparsity=sparsity or None)


@remembered(2)
def operators(
    task: Task,
    train_examples: Examples,
    seed: int = 0,
    chunk: int = CHUNK,
    subsets: int = 0,
    degree: int = 10,
    rank: int = 0,
    layer: int = -1,
    design: str = "left_regular",
    fidelity: float = 1.0,
    stability: float = 100.0,
    linearity: float = 1.0,
    steps: int = 30,
    rate: float = 0.05,
) -> Operators:
    """The operators of a design of random subsets: the set-up, to which no query is known. Options as in
    :func:`attribute`.
    """
    n = n_examples(train_examples)
    measure = draw(design, n, subsets or min(SUBSETS, 2 * n), degree, seed)
    weights = Weights(fidelity, stability, linearity)
    how = {"seed": seed, "chunk": chunk, "rank": rank, "layer": layer, "steps": steps, "rate": rate}
    return operators_for(task, train_examples, measure, weights=weights, **how)


def operators_for(
    task: Task,
    train_examples: Examples,
    measure: np.ndarray,
    seed: int = 0,
    chunk: int = CHUNK,
    *,
    rank: int = 0,
    layer: int = -1,
    weights: Weights | None = None,
    steps: int = 30,
    rate: float = 0.05,
) -> Operators:
    """Operators for given subsets ``measure`` bool [K, n]. Options as in :func:`attribute`."""
    if measure.shape[-1] != n_examples(train_examples):
        raise ValueError(
            f"stride: subsets of {measure.shape[-1]} documents, but there are {n_examples(train_examples)}; one column "
            f"of measure belongs to each document."
        )
    layer = depth(task, layer)
    shot = snapshot(task, train_examples, layer, chunk)
    rank = rank or min(RANK, shot.states.shape[1])
    return train(shot, measure, layer, rank, weights, steps=steps, rate=rate, seed=seed)


def draw(design: str, n: int, subsets: int, degree: int, seed: int) -> np.ndarray:
    """Random subsets bool [K, n] of a named design, independent of any retraining bank."""
    if design not in DESIGNS:
        raise ValueError(f"stride: design={design!r}; one of {DESIGNS}.")
    seed = [seed, 81]
    if design == "bernoulli":
        return solver.bernoulli(n, subsets, degree / subsets, seed)
    return solver.left_regular(n, subsets, degree, seed)


def measurements(trained: Operators, task: Task, queries: Examples, chunk: int = CHUNK) -> np.ndarray:
    """y [K, Q]: frozen minus steered loss of every query under every operator, in nats of the steered model (their size
    is set by ``stability``); the cost of a further query.
    """
    return effects(trained, snapshot(task, queries, trained.layer, chunk))
