"""Representation similarity: cosines of the model's own hidden states, or of a small sentence encoder's."""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.encoding.encoders import MINILM as PACKAGE  # noqa: F401
from tda.encoding.encoders import sentence_encoder
from tda.task import Examples, Task
from tda.tools.options import Count, Whole, one_of

Encoder = one_of(("features", "pixels"))


def cosine(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Cosine of every pair of rows, [Q, N]."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, documents)]
    return unit[0] @ unit[1].T


@method("hidden_cosine", family="representation", paper="Hanawa et al. 2021", needs=("features",), signed=False)
def hidden_cosine(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0, encoder: Encoder = "features"
) -> np.ndarray:
    """Cosine of mean-pooled final hidden states, centred on the documents' mean (their common direction), [Q, N].

    ``encoder="pixels"`` compares images themselves, where the task has them.
    """
    if encoder not in task.encode:
        raise ValueError(f"task {task.name!r} encodes {sorted(task.encode)}, not {encoder!r}. Use encoder='features'.")
    states, query_states = task.encode[encoder](train), task.encode[encoder](queries)
    centre = states.mean(0)
    return cosine(query_states - centre, states - centre)


@method("minilm", family="representation", paper="Wang et al. 2020", needs=("text",), signed=False)
def minilm(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = 64) -> np.ndarray:
    """Cosine of mean-pooled MiniLM-L6-v2 embeddings, [Q, N]. ``ValueError`` if the optional package is absent."""
    embed = sentence_encoder("method 'minilm'")
    return cosine(*(embed(task.encode["text"](examples), chunk) for examples in (queries, train)))
