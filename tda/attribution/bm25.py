"""BM25 (Robertson and Zaragoza 2009), by the library `bm25s`."""

from __future__ import annotations

import re

import numpy as np

from tda.attribution.options import NotNegative, Share, Whole
from tda.attribution.registry import method
from tda.task import Examples, Task


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return re.findall(r"[a-z0-9]+", text.lower())


@method("bm25", family="lexical", paper="Robertson & Zaragoza 2009", needs=("text",), signed=False)
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Whole = 0,
    k1: NotNegative = 1.5,
    b: Share = 0.75,
) -> np.ndarray:
    """BM25 of every document for the words of the query, [Q, N], with the usual k1 and b; no stemming, no stop
    words.
    """
    import bm25s

    index = bm25s.BM25(k1=k1, b=b)
    index.index([words(text) for text in task.encode["text"](train)], show_progress=False)
    known = index.vocab_dict
    asked = [[w for w in words(text) if w in known] for text in task.encode["text"](queries)]
    empty = np.zeros(len(task.encode["text"](train)), np.float32)
    return np.stack([index.get_scores(tokens) if tokens else empty for tokens in asked])
