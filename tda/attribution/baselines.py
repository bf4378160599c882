"""Baselines that look at no model: the floor of every table, and a rule that few single-checkpoint methods beat."""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.task import Examples, Task, n_examples
from tda.tools.options import Whole


@method("random", family="baseline", paper="", signed=True)
def random(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0) -> np.ndarray:
    """Independent standard normal scores, [Q, N]."""
    return np.random.default_rng([seed, 41]).standard_normal((n_examples(queries), n_examples(train)))


@method("metadata", family="baseline", paper="", needs=("group",), signed=False)
def metadata(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0) -> np.ndarray:
    """1 if document and query carry the same metadata label (author, class), else 0, [Q, N]."""
    labels, query_labels = np.array(task.encode["group"](train)), np.array(task.encode["group"](queries))
    return (query_labels[:, None] == labels[None, :]).astype(np.float32)
