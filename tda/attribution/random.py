"""Random scores: the floor of every table."""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.task import Examples, Task, n_examples
from tda.tools.options import Whole


@method("random", family="baseline", paper="", signed=True)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0) -> np.ndarray:
    """Independent standard normal scores, [Q, N]; ``chunk`` is ignored."""
    return np.random.default_rng([seed, 41]).standard_normal((n_examples(queries), n_examples(train)))
