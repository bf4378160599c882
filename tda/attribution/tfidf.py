"""TF-IDF cosine similarity, by scikit-learn."""

from __future__ import annotations

import numpy as np

from tda.attribution.bm25 import words_of
from tda.attribution.registry import method
from tda.task import Examples, Task
from tda.tools.options import Whole
from tda.words import words


@method("tfidf", family="lexical", paper="", needs=("text",), signed=False)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0) -> np.ndarray:
    """Cosine of sublinear TF-IDF vectors over words (idf from the documents), [Q, N], in [0, 1].

    Words, and what happens without any, are those of :mod:`tda.attribution.bm25`.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer=list, sublinear_tf=True)
    documents = vectors.fit_transform(words_of(task.encode["text"](train)))
    asked = vectors.transform([words(text) for text in task.encode["text"](queries)])
    return (asked @ documents.T).toarray()
