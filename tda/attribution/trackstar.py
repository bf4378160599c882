"""TrackStar (Chang et al. 2025): cosine of projected gradients in the optimiser's and the Hessian's metric.

    G(z) = R^(-1/2) S (grad l_z / sqrt(V)),      score(q, i) = <G(q), G(i)> / (|G(q)| |G(i)|)
    R    = mixing * R_eval + (1 - mixing) * R_train + delta

V [P] are AdamW's second moments at the end of training, S a random projection to d numbers, R_train and R_eval [d, d]
the mean outer products of the projected gradients of documents and queries. Mixing R_eval in weakens directions that
all queries share (a template); it also makes a query's scores depend on which others are asked.

From the paper (secondary notes): the steps in this order, and mixing 0.99 for queries of one template. Ours: one block
for the whole model, delta (``damping`` times the mean of the eigenvalues that can differ from zero), and AdamW's
moments instead of Adafactor's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tda.attribution.registry import method
from tda.task import Examples, Task, n_examples
from tda.tools.gradients import CHUNK
from tda.tools.options import Count, Flag, NotNegative, Share, Whole, one_of
from tda.tools.projection import KINDS, features


@method("trackstar", family="curvature", paper="Chang et al. 2025", needs=("params", "checkpoints"), signed=True)
def attribute(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK,
    projection: one_of(KINDS) = "sparse", dimension: Count = 4096, damping: NotNegative = 0.1, mixing: Share = 0.99,
    moments: Flag = True, unit_norm: Flag = True,
) -> np.ndarray:  # fmt: skip
    """TrackStar scores, [Q, N], in [-1, 1] (with ``unit_norm``).

    ``moments`` and ``unit_norm`` switch a step off; ``seed`` draws the projection. Memory: (N + Q) x d x 4 bytes,
    min(d, N + Q)^2 x 8 and chunk x P x 4.
    Raises ``ValueError`` for missing or foreign second moments, a singular R, gradients not finite.
    """
    options = ("loss", projection, dimension, seed, chunk, moments)
    rows = torch.cat([features(task, part, *options) for part in (train, queries)])
    documents, query_rows = whitened(rows, len(rows) - n_examples(queries), mixing, damping)
    if unit_norm:
        documents, query_rows = (torch.nn.functional.normalize(part, dim=1) for part in (documents, query_rows))
    return (query_rows @ documents.T).numpy()


def whitened(rows: Tensor, n: int, mixing: float, damping: float) -> tuple[Tensor, Tensor]:
    """``R^(-1/2)`` times the first ``n`` rows (documents) and times the others (queries) of ``rows`` [n + Q, d].

    Where d > n + Q the rows are first replaced by n + Q coordinates with the same inner products. Raises ``ValueError``
    where R is singular without damping.
    """
    count, d = rows.shape
    if d > count:
        values, vectors = torch.linalg.eigh((rows @ rows.T).double())
        rows = vectors * values.clamp(min=0).sqrt()
    documents, query_rows = rows.double().split([n, count - n])
    mixed = mixing * query_rows.T @ query_rows / len(query_rows) + (1 - mixing) * documents.T @ documents / n
    values, vectors = torch.linalg.eigh(mixed)
    if not values.mean() > 0:
        raise ValueError("trackstar: every projected gradient is zero. Attribute an earlier checkpoint.")
    members = n * (mixing < 1) + (count - n) * (mixing > 0)  # how many rows R is made of: the largest rank it can have
    if damping == 0 and (d >= members or values[0] <= 1e-10 * values[-1]):
        raise ValueError(
            f"trackstar: without damping the {d} x {d} mixture of {n} documents and {count - n} queries is singular "
            f"(rank {int((values > 1e-10 * values[-1]).sum())}). Lower dimension, or set damping, for example 0.1."
        )
    delta = damping * values.sum() / min(d, members)
    root = (vectors * (values + delta).rsqrt()) @ vectors.T
    return documents @ root, query_rows @ root
