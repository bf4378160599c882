"""Take a query's best images away, train again, and see what becomes of its loss and of its picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tda import denoisers, models


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` highest of scores [..., N], best first, ties in the order of the corpus."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def overlap(lists: np.ndarray) -> np.ndarray:
    """Share of images that two lists have in common, [Q, Q], of lists [Q, k] without repetition."""
    return np.array([[len(np.intersect1d(a, b)) for b in lists] for a in lists]) / lists.shape[1]


def retrained(
    testbed, lists: Sequence[np.ndarray], seeds: Sequence[int], drawn: np.ndarray
) -> tuple[np.ndarray, Tensor]:
    """Models trained without the images of each list, masked within the batches of the full run of the same seed.

    Returns the main loss of every query, [L, R, Q], and the queries ``drawn`` [S] sampled again, from the initial noise
    and with the condition and guidance that made them, [L, R, S, D]. An empty list is the zero-removal control.
    """
    asked, masks = models.query_examples(testbed), []
    for removed in lists:
        masks.append(~np.isin(np.arange(len(testbed.documents)), removed))
    wanted = [(mask, seed) for mask in masks for seed in seeds]
    noise = denoisers.start([asked["noise_seed"][q] for q in drawn], asked["pixels"].shape[1])
    losses, pictures = [], []
    for model, params, _, _ in testbed.modality.train_models(testbed, wanted, "mask"):
        losses.append(testbed.modality.outputs(testbed.modality.loss_function(model), params, asked)[0])
        pictures.append(denoisers.sample(model, params, noise, asked["condition"][drawn]))
    shape = (len(lists), len(seeds))
    return np.stack(losses).reshape(*shape, -1), torch.stack(pictures).unflatten(0, shape)
