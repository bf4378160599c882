"""Gradient dot product and gradient cosine: first-order influence of one step on a document."""

from __future__ import annotations

import numpy as np
import torch

from tda.attribution.registry import method
from tda.curvature.products import dot_products
from tda.task import Examples, Task
from tda.tools.gradients import CHUNK, blocks, matrix
from tda.tools.options import Count, Whole


@method("gradient_dot", family="gradient", paper="Pruthi et al. 2020", needs=("params",), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK) -> np.ndarray:
    """``scores[q, i] = <grad l_q(theta), grad l_i(theta)>`` at the trained parameters, [Q, N].

    One gradient step of size eta on document i lowers the loss of q by eta * scores[q, i], to first order.
    Memory: (Q + chunk) x P x 4 bytes, less for a classifier of linear layers (:mod:`tda.curvature.products`). No
    randomness.
    """
    return dot_products(task, train, queries, chunk).numpy()


@method("gradient_cosine", family="gradient", paper="Pruthi et al. 2020", needs=("params",), signed=True)
def attribute_cosine(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK
) -> np.ndarray:
    """The gradient dot product of unit gradients, in [-1, 1], [Q, N]: long documents and outliers lose their
    advantage.
    """
    asked = torch.nn.functional.normalize(matrix(task, queries, chunk), dim=1)
    parts = [asked @ torch.nn.functional.normalize(block, dim=1).T for _, block in blocks(task, train, chunk)]
    return torch.cat(parts, dim=1).numpy()
