"""Linear datamodelling score (LDS): does the sum of scores over a subset predict the loss after training on it?

Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023. For query q and subsets S_1..S_M of the training
set:

    LDS_q = Spearman over m of  ( sum_{i in S_m} scores[q, i] )  and  ( - mean_r outputs[m, r, q] )

Outputs are losses and a positive score lowers the loss, hence the minus sign: a good method has a positive LDS.
"""

from __future__ import annotations

import numpy as np

EPS = np.finfo(np.float64).eps


def lds(scores: np.ndarray, subsets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """LDS of every query, float64 [Q] in [-1, 1]; 0 where the prediction or the measured loss does not vary.

    scores   [Q, N] finite; > 0 means that training on the example lowers the query's loss.
    subsets  [M, N] bool, M >= 3, which examples each model was trained on.
    outputs  [M, R, Q] losses after training on subset m with seed r (nats).
    Errors   ValueError for shapes that do not match, NaN or infinite numbers, fewer than 3 or identical subsets.
    """
    outputs = check_outputs(outputs)
    return correlate_ranks(prediction_ranks(scores, subsets, outputs), output_ranks(outputs))


def prediction_ranks(scores: np.ndarray, subsets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Average ranks [Q, M] of the subset sums `subsets @ scores.T`, in float64 and safe against large common offsets.

    The scores of a query are centred first and the part |S| * mean is added back, so that a constant added to all
    scores changes nothing among subsets of equal size. Sums closer than the round-off bound count as ties (a 0/1 rule
    such as "same person" ties often on paper).
    """
    scores, subsets = np.asarray(scores), np.asarray(subsets)
    if subsets.ndim != 2 or subsets.dtype != bool or 0 in subsets.shape:
        raise ValueError(f"subsets have shape {subsets.shape} and type {subsets.dtype}; give a boolean mask [M, N]")
    if (subsets == subsets[:1]).all():
        raise ValueError(f"all {len(subsets)} subsets are identical; draw different subsets of the training set")
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
    return average_ranks(sums, 4 * EPS * (np.abs(centred).sum(axis=1) + np.abs(mean) * np.ptp(size)))


def given_prediction_ranks(predictions: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Average ranks [Q, M] of predictions (larger = lower loss) that a method makes for the subsets itself."""
    predictions = np.asarray(predictions, dtype=np.float64)
    if predictions.shape != (outputs.shape[2], outputs.shape[0]) or not np.isfinite(predictions).all():
        raise ValueError(
            f"lds: given predictions {predictions.shape} and outputs {outputs.shape}; they must be [Q, M], all finite, "
            f"and [M, R, Q]"
        )
    return average_ranks(predictions)


def output_ranks(outputs: np.ndarray) -> np.ndarray:
    """Average ranks [Q, M] of minus the seed-averaged loss; outputs [M, R, Q]."""
    return average_ranks(-outputs.astype(np.float64).mean(axis=1).T)


def check_outputs(outputs: np.ndarray, subsets: int = 3) -> np.ndarray:
    """The outputs as an array [M, R, Q] of finite numbers with at least so many subsets, or ValueError."""
    outputs = np.asarray(outputs)
    if outputs.ndim != 3 or 0 in outputs.shape:
        raise ValueError(f"outputs have shape {outputs.shape}; give [M, R, Q]: subsets, seeds, queries, none empty")
    if len(outputs) < subsets:
        raise ValueError(f"{len(outputs)} subsets in the bank; at least {subsets} are needed: retrain more")
    if not np.isfinite(outputs).all():
        m, r, q = np.argwhere(~np.isfinite(outputs))[0]
        raise ValueError(f"the loss of subset {m}, seed {r}, query {q} is NaN or infinite; retrain that model")
    return outputs


def spearman_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of every row of `a` with the same row of `b`, float64 [Q] in [-1, 1].

    a, b [Q, M], M >= 2, finite, or ValueError. Ties share average ranks, so that this equals `scipy.stats.spearmanr`
    row by row, except that a constant row gives 0 instead of NaN.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] < 2:
        raise ValueError(f"spearman_rows: given shapes {a.shape} and {b.shape}; give two [Q, M] arrays, M >= 2")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("spearman_rows: the arrays hold NaN or infinite numbers; drop or repair those rows first")
    return correlate_ranks(average_ranks(a), average_ranks(b))


def average_ranks(values: np.ndarray, tolerance: np.ndarray | float = 0.0) -> np.ndarray:
    """Ranks 1..M, float64, along the last axis of values [..., M], ties sharing their average rank.

    tolerance [...] or a number: neighbours in sorted order that differ by at most this much count as tied, so that
    round-off in a long sum does not break a tie that exists on paper.
    """
    values = np.asarray(values, dtype=np.float64)
    size = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    step = np.diff(ordered, axis=-1) > np.asarray(tolerance, dtype=np.float64)[..., None]
    edge = np.ones(values.shape[:-1] + (1,), dtype=bool)
    place = np.arange(size)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, step], axis=-1), place, 0), axis=-1)
    last = np.where(np.concatenate([step, edge], axis=-1), place, size - 1)
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks


def correlate_ranks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of two rank arrays [..., M] along the last axis -> [...]; 0 if one is constant."""
    a, b = (_unit(ranks - ranks.mean(axis=-1, keepdims=True)) for ranks in (a, b))
    return np.clip((a * b).sum(axis=-1), -1.0, 1.0)


def deleted_unit_deviations(ranks: np.ndarray) -> np.ndarray:
    """Unit rank deviations of ranks [Q, M] after leaving out each column in turn, [Q, M, M].

    Entry [q, j, i] belongs to column i when column j is left out (0 for i = j). Without re-sorting: leaving out j
    lowers the rank of i by 1 if j ranked below i and by 1/2 if the two were tied.
    """
    below = ranks[:, :, None] < ranks[:, None, :]
    tied = ranks[:, :, None] == ranks[:, None, :]
    size = ranks.shape[1]
    deviation = ranks[:, None, :] - below - 0.5 * tied - size / 2  # the mean of M - 1 ranks is M / 2
    deviation[:, np.arange(size), np.arange(size)] = 0.0
    return _unit(deviation)


def _unit(deviation: np.ndarray) -> np.ndarray:
    """Scaled to length one along the last axis; zeros for constant ranks."""
    length = np.sqrt((deviation**2).sum(axis=-1, keepdims=True))
    return np.divide(deviation, length, out=np.zeros_like(deviation), where=length > 1e-9)
