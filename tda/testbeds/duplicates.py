"""Near-duplicates: texts that share runs of words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np

SHINGLE = 8  # words
OVERLAP = 0.1  # from this share of common shingles on, two passages are near-duplicates


def near_duplicates(texts: list[str], against: list[str] | None = None) -> list[tuple[int, int, float]]:
    """Pairs of texts that share runs of 8 words, as (i, j, overlap), through an index from shingle to texts.

    overlap(a, b) = |A & B| / min(|A|, |B|) in (0, 1], with A, B the sets of 8-word shingles (lower case, no
    punctuation); 1 for copies. Without `against`: pairs i < j inside `texts`; with it, j indexes `against`.
    """
    sets = [_shingles(t) for t in texts]
    others = sets if against is None else [_shingles(t) for t in against]
    index = defaultdict(list)
    for j, shingles in enumerate(others):
        for shingle in shingles:
            index[shingle].append(j)
    pairs, within = [], against is None
    for i, shingles in enumerate(sets):
        shared = Counter(j for shingle in shingles for j in index.get(shingle, ()) if j > i or not within)
        pairs += [(i, j, n / min(len(shingles), len(others[j]))) for j, n in sorted(shared.items())]
    return pairs


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[k : k + SHINGLE]) for k in range(max(1, len(words) - SHINGLE + 1))}


def clusters(n: int, pairs: list[tuple[int, int, float]]) -> list[str]:
    """Names of the connected components of size two or more, "" for the rest."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = np.array([pair[:2] for pair in pairs], int).reshape(-1, 2).T
    _, component = connected_components(coo_array((np.ones(len(i)), (i, j)), (n, n)), directed=False)
    several = np.flatnonzero(np.bincount(component) > 1)
    names = {c: f"near_{number}" for number, c in enumerate(several)}
    return [names.get(c, "") for c in component]
