"""Representation similarity: cosine of the model's own hidden states."""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.task import Examples, Task
from tda.tools.options import Whole


def cosine(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Cosine of every pair of rows, [Q, N]."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, documents)]
    return unit[0] @ unit[1].T


@method("hidden_cosine", family="representation", paper="Hanawa et al. 2021", needs=("features",), signed=False)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0) -> np.ndarray:
    """Cosine of mean-pooled final hidden states, centred on the documents' mean (their common direction says
    nothing).
    """
    documents, asked = task.encode["features"](train), task.encode["features"](queries)
    centre = documents.mean(0)
    return cosine(asked - centre, documents - centre)
