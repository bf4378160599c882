"""Retrieval metrics against known provenance, as exact expected values when scores tie.

A ranking with ties stands for all its orders, each equally likely (McSherry & Najork, "Computing information retrieval
performance measures efficiently in the presence of tied scores", ECIR 2008). So a constant score matrix gets what
random order would get, and the order in which documents are stored never counts. Larger score = ranked higher.

Every function takes scores [Q, N] and relevant [Q, N] bool and returns float64 [Q]. All values lie in [0, 1]. Errors:
ValueError for NaN or infinite scores, for shapes that do not match, for k outside 1..N, and for a query without a
relevant document, named by its index.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import numpy as np


def recall_at_k(scores: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Expected (relevant documents among the top k) / min(k, number of relevant documents)."""
    return _each(lambda size, hits: _hits(size, hits, k) / min(k, int(hits.sum())), scores, relevant, k)


def precision_at_k(scores: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Expected (relevant documents among the top k) / k."""
    return _each(lambda size, hits: _hits(size, hits, k) / k, scores, relevant, k)


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


def mrr(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Expected 1 / rank of the first relevant document.

    That document sits in the first tie group with a relevant member: a documents above it, t in the group, r relevant.
    With P(J = j) = C(t - j, r - 1) / C(t, r) for its place j in the group, the value is sum_j P(J = j) / (a + j).
    """

    def reciprocal_rank(size: np.ndarray, hits: np.ndarray) -> float:
        group = int(np.flatnonzero(hits)[0])
        above, t, r = int(size[:group].sum()), int(size[group]), int(hits[group])
        place = np.arange(1, t - r + 2)
        ratio = (t - place[:-1] - r + 1) / (t - place[:-1])  # P(j + 1) / P(j)
        chance = r / t * np.concatenate([[1.0], np.cumprod(ratio)])
        return float((chance / (above + place)).sum())

    return _each(reciprocal_rank, scores, relevant)


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Expected mean, over the relevant documents, of the precision at each one's rank.

    A tie group of t documents, r relevant, below a documents with h relevant, adds
    sum_{j=1..t} (r / t) * (h + 1 + (j - 1) (r - 1) / (t - 1)) / (a + j); the total is divided by the number relevant.
    """

    def of_query(size: np.ndarray, hits: np.ndarray) -> float:
        group = np.repeat(np.arange(len(size)), size)
        above, found = (np.cumsum(size) - size)[group], (np.cumsum(hits) - hits)[group]
        t, r = size[group], hits[group]
        place = np.arange(1, len(group) + 1)
        others = (place - above - 1) * (r - 1) / np.maximum(t - 1, 1)
        return float((r / t * (found + 1 + others) / place).sum() / hits.sum())

    return _each(of_query, scores, relevant)


def _hits(size: np.ndarray, hits: np.ndarray, k: int) -> float:
    """Expected relevant documents in the top k: the tie group at the cut counts in proportion."""
    above = np.cumsum(size) - size
    return float((np.clip(k - above, 0, size) / size * hits).sum())


def _each(measure: Callable, scores: np.ndarray, relevant: np.ndarray, k: int = 1) -> np.ndarray:
    """``measure(sizes of the tie groups, relevant documents in each)``, best score first, of every query."""
    scores, relevant = np.asarray(scores), np.asarray(relevant)
    if scores.ndim != 2 or not scores.shape[1] or relevant.shape != scores.shape or relevant.dtype != bool:
        raise ValueError(
            f"retrieval: given scores {scores.shape} and relevant {relevant.shape} of {relevant.dtype}; "
            "give [Q, N] and a boolean mask [Q, N]"
        )
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= scores.shape[1]:
        raise ValueError(f"retrieval: k = {k!r}; give a whole number from 1 to {scores.shape[1]}, the documents")
    values = np.empty(len(scores))
    for query, (row, mask) in enumerate(zip(scores, relevant, strict=True)):
        if not np.isfinite(row).all():
            raise ValueError(f"retrieval: query {query} has NaN or infinite scores; mend the method that made them")
        if not mask.any():
            raise ValueError(f"retrieval: query {query} has no relevant document; leave it out and report how many")
        _, group, size = np.unique(-row, return_inverse=True, return_counts=True)
        values[query] = measure(size, np.bincount(group, weights=mask, minlength=len(size)))
    return values
