"""Influence with the empirical Fisher as the Hessian (:mod:`tda.curvature.empirical`): the linear limit of BGO.

The score is ``g_q^T P g_i`` with g the gradients of the losses and P the damped inverse of the Fisher, or of a part of
it. BGO's released code uses its diagonal.
"""

from __future__ import annotations

import numpy as np

from tda.attribution.registry import method
from tda.curvature.empirical import KINDS, linear_scores
from tda.task import Examples, Task
from tda.tools.gradients import CHUNK
from tda.tools.options import Count, Positive, Whole, one_of


@method("fisher_influence", family="curvature", paper="Koh and Liang 2017", needs=("params",), signed=True)
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    preconditioner: one_of(KINDS) = "full",
    damping: Positive = 0.1,
) -> np.ndarray:
    """Influence with the empirical Fisher as the Hessian, ``g_q^T P g_i``, [Q, N]; see the module's text for P.

    This is the small-step limit of BGO with the same preconditioner, without its sweeps: one gradient per document,
    shared by all queries. Memory: chunk x P x 4 bytes (diagonal), N x P x 4 bytes (full). No randomness.
    """
    return linear_scores(preconditioner, task, train, queries, damping, chunk)
