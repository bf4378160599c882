"""BM25 (Robertson and Zaragoza 2009), by the library `bm25s`."""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.task import Examples, Task
from tda.tools.options import NotNegative, Share, Whole
from tda.words import words


def words_of(documents: list[str]) -> list[list[str]]:
    """:func:`tda.words.words` of every document. Raises ``ValueError`` if not one of them has a word."""
    found = [words(text) for text in documents]
    if not any(found):
        raise ValueError(
            f"none of the {len(documents)} documents has a word (letters or digits), such as {documents[0][:40]!r}; "
            f"a lexical method has nothing to compare. Use a method that reads the model."
        )
    return found


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
    words. A query that shares no word with any document scores 0 everywhere; documents without a single word are a
    ``ValueError``. Words are those of :func:`tda.words.words`.
    """
    import bm25s

    index = bm25s.BM25(k1=k1, b=b)
    index.index(words_of(task.encode["text"](train)), show_progress=False)
    known = index.vocab_dict
    asked = [[w for w in words(text) if w in known] for text in task.encode["text"](queries)]
    empty = np.zeros(len(task.encode["text"](train)), np.float32)
    return np.stack([index.get_scores(tokens) if tokens else empty for tokens in asked])
