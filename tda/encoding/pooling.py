"""How a subset is scored as a whole, and the loss that asks whether subsets are ranked as fine-tuning ranks them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tda.task import chunks

AT_ONCE = 16  # queries pooled together: AT_ONCE x M x N numbers


def attention(scores: Tensor, members: Tensor) -> Tensor:
    """f [Q, M]: ``sum_i alpha_i s_i`` over the members of each subset, ``alpha = softmax_i |s_i|`` among them.

    ``scores`` [Q, N], ``members`` bool [M, N]. AirRep (Sun et al. 2025), where s_i is the inner product of a query's
    embedding with that of document i. Larger f: training on the subset lowers the query's loss more.
    """
    weight = scores.abs().unsqueeze(1).masked_fill(~members, -torch.inf).softmax(-1)
    return (weight * scores.unsqueeze(1)).sum(-1)


def mean(scores: Tensor, members: Tensor) -> Tensor:
    """f [Q, M]: the mean score of the members of each subset."""
    share = members / members.sum(1, keepdim=True)
    return scores @ share.T.to(scores.dtype)


POOLINGS = {"attention": attention, "mean": mean}


def pooled(scores: np.ndarray, subsets: np.ndarray, scale: float | None = None) -> np.ndarray:
    """:func:`attention` for the score matrix of any method: [Q, N] and bool [M, N] -> float64 [Q, M].

    ``scale``: the standard deviation that a query's scores are given first, since a softmax depends on their scale;
    ``None`` leaves them as they are. Raises ``ValueError`` for shapes that do not fit, an empty subset or a scale that
    is not positive.
    """
    scores, subsets = np.asarray(scores, np.float64), np.asarray(subsets)
    if scores.ndim != 2 or subsets.shape[1:] != scores.shape[1:] or subsets.dtype != bool or not subsets.any(-1).all():
        raise ValueError(
            f"pooled: scores {scores.shape}, subsets {subsets.dtype} {subsets.shape}; they must be [Q, N] and bool "
            f"[M, N], no subset empty."
        )
    if scale is not None:
        if not scale > 0:
            raise ValueError(f"pooled: scale={scale}; it must be positive, or None.")
        scores = scores * (scale / np.maximum(scores.std(1, keepdims=True), 1e-300))
    given, members = torch.from_numpy(scores), torch.from_numpy(subsets)
    return torch.cat([attention(given[part], members) for part in chunks(len(given), AT_ONCE)]).numpy()


def ranking_loss(
    predicted: Tensor, labels: Tensor, t_min: float = 0.1, t_max: float = 5.0, clip: float = float("inf")
) -> Tensor:
    """Weighted pairwise ranking loss of f [V, M] for the labels r [V, M] of V targets and M subsets (a scalar):

        - sum over pairs with r_i > r_j of w_ij log sigmoid(f_i - f_j) / sum of w_ij,
        w_ij = 0 if r_i - r_j < t_min, else min(r_i - r_j, t_max)

    as in the paper with 0.1 and 5; the released code has no ``t_min``, ``t_max`` 10 and labels clipped to +-10
    (``clip``). The division by the sum of weights is ours. Raises ``ValueError`` if not one pair has a weight.
    """
    labels = labels.clamp(-clip, clip)
    gap = labels.unsqueeze(2) - labels.unsqueeze(1)
    weight = torch.where((gap > 0) & (gap >= t_min), gap.clamp(max=t_max), 0.0)
    if not weight.any():
        raise ValueError(f"no two subsets differ by t_min={t_min} in a label. Lower t_min, or label more subsets.")
    return (weight * F.softplus(predicted.unsqueeze(1) - predicted.unsqueeze(2))).sum() / weight.sum()
