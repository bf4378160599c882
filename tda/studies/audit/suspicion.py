"""From scores [Q, N] of every query and document to one number a document, and who is caught by it.

    z(q, i) = (s(q, i) - mean_j s(q, j)) / sd_j s(q, j)         0 where all documents of a query are equal
    pooled  = max_q z(q, i)  or  mean_q z(q, i)

The maximum asks whether a document stands out for *some* query (an auditor's *suspicion*), the mean whether it serves
all of them. STRIDE's paper does not say how it pools; both are our reading.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

POOLS = {"maximum": np.max, "mean": np.mean}


def standardised(scores: np.ndarray) -> np.ndarray:
    """z above, [Q, N], in float64."""
    scores = np.asarray(scores, dtype=np.float64)
    centred, spread = scores - scores.mean(1, keepdims=True), scores.std(1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)


def pooled(scores: np.ndarray, by: str = "maximum") -> np.ndarray:
    """[N] from [Q, N]: the largest z of a document, or its mean. ValueError for another pool, and for no query."""
    if by not in POOLS or not len(scores):
        raise ValueError(
            f"pooled by {by!r} over {len(scores)} queries; pool by {' or '.join(POOLS)}, over at least one"
        )
    return POOLS[by](standardised(scores), axis=0)


def in_bucket(values: np.ndarray, share: float) -> np.ndarray:
    """[N] in [0, 1]: the chance of every document to be among the max(1, round(share N)) of the largest values, if ties
    are broken at random.
    """
    size = max(1, round(share * len(values)))
    above, through = (rankdata(-np.asarray(values), method=how) for how in ("min", "max"))
    return np.clip((size - (above - 1)) / (through - above + 1), 0, 1)


def shares_above(values: np.ndarray, of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Share of the documents ``among`` [N] bool that each document at the positions ``of`` is above, ties counted half;
    their mean is the area under the ROC curve.
    """
    others, own = np.sort(values[among]), values[of]
    below, through = (np.searchsorted(others, own, side=side) for side in ("left", "right"))
    return (below + through) / 2 / len(others)


def per_item(values: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The larger value of an item's copies, items in increasing order: an item is caught if one of them is."""
    return np.array([values[item == this].max() for this in np.unique(item)])
