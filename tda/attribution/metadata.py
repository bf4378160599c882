"""The metadata rule: same person (author, class) or not. Few single-checkpoint methods beat it."""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.task import Examples, Task
from tda.tools.options import Whole


@method("metadata", family="baseline", paper="", needs=("group",), signed=False)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0) -> np.ndarray:
    """``scores[q, i] = 1`` if document i and query q carry the same metadata label, else 0, [Q, N]."""
    documents, asked = np.array(task.encode["group"](train)), np.array(task.encode["group"](queries))
    return (asked[:, None] == documents[None, :]).astype(np.float32)
