"""TracInCP (Pruthi et al. 2020): gradient dot products summed along training."""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.curvature.products import dot_products
from tda.task import Examples, Task
from tda.tools.gradients import CHUNK
from tda.tools.options import Count, Whole


@method("tracincp", family="gradient", paper="Pruthi et al. 2020", needs=("params", "checkpoints"), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK) -> np.ndarray:
    """``scores[q, i] = sum_c eta_c <grad l_q(theta_c), grad l_i(theta_c)>`` over the recorded checkpoints c, [Q, N].

    ``eta_c`` is the sum of the learning rates of the steps that checkpoint c closes, so that the sum approximates the
    integral along training whatever the schedule (a cosine ends at rate zero: the last rate alone would erase the last
    checkpoint). Memory: (Q + chunk) x P x 4 bytes, less for a classifier of linear layers
    (:mod:`tda.curvature.products`).
    """
    return sum(
        checkpoint.lr_sum * dot_products(task, train, queries, chunk, checkpoint.params).numpy()
        for checkpoint in task.run.checkpoints
    )
