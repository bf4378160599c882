"""Scores that do not depend on a model: against several banks at once, and against copies that differ in what no image
shows. And how far a denoiser looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tda import denoisers, lm
from tda.evaluation.intervals import Interval, jackknife, small_sample_shortfall, two_way_interval
from tda.evaluation.lds import check_outputs, output_ranks, prediction_ranks
from tda.studies.diffusion.counterfactual import retrained
from tda.task import Examples, Params

Parts = Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]


def parts(scores: Mapping[str, np.ndarray], subsets: np.ndarray, outputs: Mapping[str, np.ndarray]) -> Parts:
    """``(row, bank) -> (LDS [Q], its jackknife pseudo-values [Q, M])`` of rows [Q, N] on banks of the same subsets
    [M, N] and queries, losses [M, R, Q] each.
    """
    found = {}
    for bank, losses in outputs.items():
        losses = check_outputs(losses)
        ranks = {row: prediction_ranks(matrix, subsets, losses) for row, matrix in scores.items()}
        found |= {(row, bank): part for row, part in jackknife(ranks, output_ranks(losses)).items()}
    return found


def contrast(
    found: Parts, weights: Mapping[tuple[str, str], float], clusters: Sequence | None = None, level: float = 0.95
) -> Interval:
    """``sum of weight x LDS`` over (row, bank), paired in queries and subsets (:mod:`tda.evaluation.intervals`)."""
    values, pseudo = (sum(w * found[key][i] for key, w in weights.items()) for i in (0, 1))
    size = pseudo.shape[1]
    short = sum(w * float(small_sample_shortfall(found[key][0], size).mean()) for key, w in weights.items())
    return two_way_interval(values, pseudo, clusters, level, short)


def reach(model: denoisers.Denoiser, params: Params, noisy: Tensor, timestep: int, condition: Tensor) -> np.ndarray:
    """Of all that other pixels change in the image seen in x_t, the share that pixels at most d away change, d = 1, 2,
    ...: sum of squared derivatives over channels, mean over images x_t [B, D]; distance is the larger of rows and
    columns. Grows to 1.
    """
    channels, height, width = model.shape
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    apart = (places.unsqueeze(0) - places.unsqueeze(1)).abs().amax(2).flatten()

    def seen(x: Tensor, tokens: Tensor) -> Tensor:
        return denoisers.predicted(model, params, x[None], torch.tensor([timestep]), tokens[None])[1][0]

    shares = []
    for x, tokens in zip(noisy, condition, strict=True):
        slopes = torch.func.jacrev(seen)(x, tokens).reshape(channels, height * width, channels, height * width)
        by_distance = torch.bincount(apart, slopes.square().sum((0, 2)).flatten().double())[1:]
        shares.append(by_distance.cumsum(0) / by_distance.sum())
    return torch.stack(shares).mean(0).numpy()


def other_conditions(conditions: Tensor, known: Tensor, seed: int) -> Tensor:
    """For every condition [Q, 2] one of ``known`` [N, 2] that differs from it in each token that there is."""
    rng, choice = np.random.default_rng([seed, 92]), known.unique(dim=0)
    used = choice.amax(0) > 0
    drawn = []
    for tokens in conditions:
        differs = ((choice != tokens) | ~used).all(1)
        if not differs.any():
            raise ValueError(f"no condition differs from {tokens.tolist()} in every token: {choice.tolist()}.")
        drawn.append(choice[differs][int(rng.integers(int(differs.sum())))])
    return torch.stack(drawn)


def trained_with_copies(testbed, asked: Examples, other: Tensor, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Losses [S, Q] of all queries after training on the corpus ("none"), and on the corpus with a copy of every query
    under its own condition ("same") or under ``other`` [Q, 2] ("other"). Runs of a seed are paired: copies that are not
    in it are masked.
    """
    corpus, modality, count = testbed.train, testbed.modality, len(asked["pixels"])
    pixels = torch.cat([corpus["pixels"], asked["pixels"], asked["pixels"]])
    data = {"pixels": pixels, "condition": torch.cat([corpus["condition"], asked["condition"], other])}
    n, epochs = len(corpus["pixels"]), testbed.settings["training"]["epochs"]
    losses = {}
    for world, first in (("none", None), ("same", n), ("other", n + count)):
        mask = np.arange(len(pixels)) < n
        if first is not None:
            mask[first : first + count] = True
        each = []
        for seed in seeds:
            model = modality.new_model(testbed, seed)
            params = retrained(testbed, model, data, np.flatnonzero(~mask), seed, epochs)
            each.append(lm.losses(modality.loss_function(model), params, asked))
        losses[world] = np.stack(each)
    return losses
