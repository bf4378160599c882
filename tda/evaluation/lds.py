"""Linear datamodelling score (LDS): does the sum of scores over a subset predict the loss after training on
it?

Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023. For query q and subsets S_1..S_M of the
training set:

    LDS_q = Spearman over m of  ( sum_{i in S_m} scores[q, i] )  and  ( - mean_r outputs[m, r, q] )

Outputs are losses and a positive score lowers the loss, hence the minus sign: a good method has a positive
LDS.
"""

from __future__ import annotations

import numpy as np

from .ranks import EPS, average_ranks, correlate_ranks, spearman_rows

__all__ = [
    "lds",
    "group_lds",
    "spearman_rows",
    "prediction_ranks",
    "output_ranks",
    "check_outputs",
    "check_subsets",
]


def lds(scores: np.ndarray, subsets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """LDS of every query.

    scores   [Q, N] finite; > 0 means that training on the example lowers the query's loss.
    subsets  [M, N] bool, M >= 3, which examples each model was trained on.
    outputs  [M, R, Q] losses after training on subset m with seed r (nats).
    Returns  [Q] float64 in [-1, 1]; 0 where the prediction (or the measured loss) does not vary over the
             subsets.
    Errors   ValueError for shapes that do not match, NaN or infinite numbers, fewer than 3 subsets,
             identical subsets.
    """
    outputs = check_outputs(outputs)
    return correlate_ranks(prediction_ranks(scores, subsets, outputs), output_ranks(outputs))


def group_lds(predictions: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """LDS of a method that predicts subsets directly: predictions [Q, M] (larger = lower loss), outputs [M,
    R, Q] -> [Q].

    Errors as in `lds`. The row of such a method is marked `group` in the tables.
    """
    outputs = check_outputs(outputs)
    return correlate_ranks(given_prediction_ranks(predictions, outputs), output_ranks(outputs))


def prediction_ranks(scores: np.ndarray, subsets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Average ranks [Q, M] of the subset sums `subsets @ scores.T`, in float64 and safe against large common
    offsets.

    The scores of a query are centred first and the part |S| * mean is added back, so that a constant added
    to all scores changes nothing among subsets of equal size. Sums closer than the round-off bound count as
    ties (a 0/1 rule such as "same person" ties often on paper).
    """
    scores = np.asarray(scores)
    subsets = check_subsets(subsets)
    if scores.ndim != 2 or scores.shape != (outputs.shape[2], subsets.shape[1]) or len(subsets) != len(outputs):
        raise ValueError(
            f"lds: given scores {scores.shape}, subsets {subsets.shape}, outputs {outputs.shape}; "
            "they must be [Q, N], [M, N] and [M, R, Q] with the same Q, N and M"
        )
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise ValueError(f"lds: the scores of query {bad} hold NaN or infinite numbers; mend the method that made them")
    scores = scores.astype(np.float64)
    mean = scores.mean(axis=1)
    centred = scores - mean[:, None]
    size = subsets.sum(axis=1)
    sums = centred @ subsets.T.astype(np.float64) + mean[:, None] * (size - size.min())
    tolerance = 4 * EPS * (np.abs(centred).sum(axis=1) + np.abs(mean) * np.ptp(size))
    return average_ranks(sums, tolerance)


def given_prediction_ranks(predictions: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Average ranks [Q, M] of predictions that a method made for the subsets itself."""
    predictions = np.asarray(predictions, dtype=np.float64)
    if predictions.shape != (outputs.shape[2], outputs.shape[0]):
        raise ValueError(
            f"group_lds: given predictions {predictions.shape} and outputs {outputs.shape}; give [Q, M] and [M, R, Q]"
        )
    if not np.isfinite(predictions).all():
        raise ValueError("group_lds: the predictions hold NaN or infinite numbers; mend the method that made them")
    return average_ranks(predictions)


def output_ranks(outputs: np.ndarray) -> np.ndarray:
    """Average ranks [Q, M] of minus the seed-averaged loss; outputs [M, R, Q]."""
    return average_ranks(-outputs.astype(np.float64).mean(axis=1).T)


def check_outputs(outputs: np.ndarray, subsets: int = 3) -> np.ndarray:
    """Return outputs as an array [M, R, Q] after checking shape, size and finiteness."""
    outputs = np.asarray(outputs)
    if outputs.ndim != 3 or 0 in outputs.shape:
        raise ValueError(f"outputs have shape {outputs.shape}; give [M, R, Q]: subsets, seeds, queries, none empty")
    if len(outputs) < subsets:
        raise ValueError(
            f"{len(outputs)} subsets in the bank; a rank correlation needs at least {subsets}: retrain more"
        )
    if not np.isfinite(outputs).all():
        m, r, q = np.argwhere(~np.isfinite(outputs))[0]
        raise ValueError(f"the loss of subset {m}, seed {r}, query {q} is NaN or infinite; retrain that model")
    return outputs


def check_subsets(subsets: np.ndarray) -> np.ndarray:
    """Return subsets as bool [M, N] after checking type and that they are not all the same."""
    subsets = np.asarray(subsets)
    if subsets.ndim != 2 or subsets.dtype != bool or 0 in subsets.shape:
        raise ValueError(f"subsets have shape {subsets.shape} and type {subsets.dtype}; give a boolean mask [M, N]")
    if (subsets == subsets[:1]).all():
        raise ValueError(f"all {len(subsets)} subsets are identical; draw different subsets of the training set")
    return subsets
