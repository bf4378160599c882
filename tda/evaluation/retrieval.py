"""Retrieval metrics against known provenance, as exact expected values when scores tie.

A ranking with ties stands for all its orders, each equally likely (McSherry & Najork, "Computing information
retrieval performance measures efficiently in the presence of tied scores", ECIR 2008). So a constant score
matrix gets what random order would get, and the order in which documents are stored never counts. Larger
score = ranked higher.

Every function takes one query (scores [N], relevant bool [N] -> float) or many (scores [Q, N], relevant [Q,
N] or [N] -> float64 [Q]). All values lie in [0, 1]. A ValueError is raised for NaN or infinite scores, for
shapes that do not match, for k outside 1..N, and for a query without a relevant document (named by its
index, or by `query_ids`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral

import numpy as np


def recall_at_k(
    scores: np.ndarray, relevant: np.ndarray, k: int, query_ids: Sequence | None = None
) -> float | np.ndarray:
    """Expected (relevant documents among the top k) / min(k, number of relevant documents)."""
    k = _check_k(k, scores)
    return _each(lambda size, hits: _hits(size, hits, k) / min(k, int(hits.sum())), scores, relevant, query_ids)


def precision_at_k(
    scores: np.ndarray, relevant: np.ndarray, k: int, query_ids: Sequence | None = None
) -> float | np.ndarray:
    """Expected (relevant documents among the top k) / k."""
    k = _check_k(k, scores)
    return _each(lambda size, hits: _hits(size, hits, k) / k, scores, relevant, query_ids)


def lift_among(scores: np.ndarray, relevant: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
    """Precision at k within a part of the documents, minus the share of relevant ones in that part, per query [Q].

    ``among`` [Q, N] bool. 0 is chance, whatever the part: it asks whether a method still finds the author when the
    passages that share the query's words are taken away.
    """
    return np.array(
        [
            float(precision_at_k(s[part][None], r[part][None], k)[0]) - r[part].mean() if r[part].any() else 0.0
            for s, r, part in zip(scores, relevant, among, strict=True)
        ]
    )


def mrr(scores: np.ndarray, relevant: np.ndarray, query_ids: Sequence | None = None) -> float | np.ndarray:
    """Expected 1 / rank of the first relevant document.

    That document sits in the first tie group with a relevant member: a documents above it, t in the group, r
    relevant. With P(J = j) = C(t - j, r - 1) / C(t, r) for its place j in the group, the value is sum_j P(J
    = j) / (a + j).
    """
    return _each(_reciprocal_rank, scores, relevant, query_ids)


def average_precision(
    scores: np.ndarray, relevant: np.ndarray, query_ids: Sequence | None = None
) -> float | np.ndarray:
    """Expected mean, over the relevant documents, of the precision at each one's rank.

    A tie group of t documents, r relevant, below a documents with h relevant, adds
    sum_{j=1..t} (r / t) * (h + 1 + (j - 1) (r - 1) / (t - 1)) / (a + j); the total is divided by the number
    relevant.
    """
    return _each(_average_precision, scores, relevant, query_ids)


def _hits(size: np.ndarray, hits: np.ndarray, k: int) -> float:
    """Expected relevant documents in the top k: the tie group at the cut counts in proportion."""
    above = np.cumsum(size) - size
    return float((np.clip(k - above, 0, size) / size * hits).sum())


def _reciprocal_rank(size: np.ndarray, hits: np.ndarray) -> float:
    group = int(np.flatnonzero(hits)[0])
    above, t, r = int(size[:group].sum()), int(size[group]), int(hits[group])
    place = np.arange(1, t - r + 2)
    ratio = (t - place[:-1] - r + 1) / (t - place[:-1])  # P(j + 1) / P(j)
    chance = r / t * np.concatenate([[1.0], np.cumprod(ratio)])
    return float((chance / (above + place)).sum())


def _average_precision(size: np.ndarray, hits: np.ndarray) -> float:
    group = np.repeat(np.arange(len(size)), size)
    above, found = (np.cumsum(size) - size)[group], (np.cumsum(hits) - hits)[group]
    t, r = size[group], hits[group]
    place = np.arange(1, len(group) + 1)
    others = (place - above - 1) * (r - 1) / np.maximum(t - 1, 1)
    return float((r / t * (found + 1 + others) / place).sum() / hits.sum())


def _groups(scores: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the tie groups and relevant documents in each, best score first."""
    _, group, size = np.unique(-scores, return_inverse=True, return_counts=True)
    return size, np.bincount(group, weights=relevant, minlength=len(size))


def _each(
    measure: Callable, scores: np.ndarray, relevant: np.ndarray, query_ids: Sequence | None
) -> float | np.ndarray:
    scores, relevant = np.asarray(scores), np.asarray(relevant)
    if scores.ndim not in (1, 2) or scores.shape[-1] == 0 or relevant.shape not in (scores.shape, scores.shape[-1:]):
        raise ValueError(
            f"retrieval: given scores {scores.shape} and relevant {relevant.shape}; "
            "give [N] and [N], or [Q, N] and [Q, N]"
        )
    if relevant.dtype != bool:
        raise ValueError(f"retrieval: relevant has dtype {relevant.dtype}; give a boolean mask over the documents")
    rows = np.atleast_2d(scores)
    masks = np.broadcast_to(relevant, rows.shape)
    names = list(range(len(rows))) if query_ids is None else list(query_ids)
    if len(names) != len(rows):
        raise ValueError(f"retrieval: {len(names)} query_ids for {len(rows)} queries; give one per query")
    values = np.empty(len(rows))
    for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        if not np.isfinite(row).all():
            raise ValueError(
                f"retrieval: query {names[index]!r} has NaN or infinite scores; mend the method that made them"
            )
        if not mask.any():
            raise ValueError(
                f"retrieval: query {names[index]!r} has no relevant document; "
                "leave such queries out and report how many"
            )
        values[index] = measure(*_groups(row, mask))
    return values if scores.ndim == 2 else float(values[0])


def _check_k(k: int, scores: np.ndarray) -> int:
    size = np.asarray(scores).shape[-1] if np.asarray(scores).ndim else 0
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= size:
        raise ValueError(f"retrieval: k = {k!r} with {size} documents; give a whole number from 1 to {size}")
    return int(k)
