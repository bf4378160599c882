"""Lexical methods: they compare the words (:func:`tda.words.words`) of documents and queries; no stemming, no stop
words.
"""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.task import Examples, Task
from tda.tools.options import NotNegative, Share, Whole
from tda.words import words


def words_of(documents: list[str]) -> list[list[str]]:
    """The words of every document. Raises ``ValueError`` if not one of them has a word."""
    tokens = [words(text) for text in documents]
    if not any(tokens):
        raise ValueError(
            f"none of the {len(documents)} documents has a word (letters or digits), such as {documents[0][:40]!r}; "
            f"a lexical method has nothing to compare. Use a method that reads the model."
        )
    return tokens


@method("bm25", family="lexical", paper="Robertson & Zaragoza 2009", needs=("text",), signed=False)
def bm25(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0,
    k1: NotNegative = 1.5, b: Share = 0.75,
) -> np.ndarray:  # fmt: skip
    """BM25 of every document for the words of the query, [Q, N], by `bm25s`; 0 for a query without a known word."""
    import bm25s

    index = bm25s.BM25(k1=k1, b=b)
    documents = words_of(task.encode["text"](train))
    index.index(documents, show_progress=False)
    query_words = [[w for w in words(text) if w in index.vocab_dict] for text in task.encode["text"](queries)]
    empty = np.zeros(len(documents), np.float32)
    return np.stack([index.get_scores(tokens) if tokens else empty for tokens in query_words])


@method("tfidf", family="lexical", paper="", needs=("text",), signed=False)
def tfidf(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0) -> np.ndarray:
    """Cosine of sublinear TF-IDF vectors (idf from the documents), [Q, N], in [0, 1], by scikit-learn."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer=list, sublinear_tf=True)
    documents = vectors.fit_transform(words_of(task.encode["text"](train)))
    query_vectors = vectors.transform([words(text) for text in task.encode["text"](queries)])
    return (query_vectors @ documents.T).toarray()
