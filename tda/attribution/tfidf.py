"""TF-IDF cosine similarity, by scikit-learn."""

from __future__ import annotations

import numpy as np

from tda.attribution.bm25 import words
from tda.attribution.options import Whole
from tda.attribution.registry import method
from tda.task import Examples, Task


@method("tfidf", family="lexical", paper="", needs=("text",), signed=False)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0) -> np.ndarray:
    """Cosine of sublinear TF-IDF vectors over words (idf from the documents), [Q, N], in [0, 1]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer=words, sublinear_tf=True)
    documents = vectors.fit_transform(task.encode["text"](train))
    return (vectors.transform(task.encode["text"](queries)) @ documents.T).toarray()
