"""First-order influence of a step on a document: gradient dot products, at one model or summed along training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tda.attribution.registry import method
from tda.curvature.layers import dot_products
from tda.task import Examples, Task
from tda.tools.gradients import CHUNK, matrix, swept
from tda.tools.options import Count, Whole


@method("gradient_dot", family="gradient", paper="Pruthi et al. 2020", needs=("params",), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK) -> np.ndarray:
    """``<grad l_q(theta), grad l_i(theta)>`` at the trained parameters, [Q, N].

    A step of size eta on document i lowers the loss of q by eta times the score, to first order. Memory: (Q + chunk) x
    P x 4 bytes, less for a classifier of linear layers.
    """
    return dot_products(task, train, queries, chunk).numpy()


@method("gradient_cosine", family="gradient", paper="Pruthi et al. 2020", needs=("params",), signed=True)
def attribute_cosine(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK
) -> np.ndarray:
    """The dot product of unit gradients, in [-1, 1], [Q, N]: long documents and outliers lose their advantage."""
    unit_queries = torch.nn.functional.normalize(matrix(task, queries, chunk), dim=1)
    cosines = lambda block: torch.nn.functional.normalize(block, dim=1) @ unit_queries.T  # noqa: E731
    return swept(task, train, cosines, chunk).T.numpy()


@method("tracincp", family="gradient", paper="Pruthi et al. 2020", needs=("params", "checkpoints"), signed=True)
def attribute_along(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK
) -> np.ndarray:
    """``sum_c eta_c <grad l_q(theta_c), grad l_i(theta_c)>`` over the recorded checkpoints c, [Q, N].

    ``eta_c``: the sum of the rates of the steps that c closes (a schedule may end at rate zero).
    """
    return sum(
        checkpoint.lr_sum * dot_products(replace(task, params=checkpoint.params), train, queries, chunk).numpy()
        for checkpoint in task.run.checkpoints
    )
