"""NDA: nonparametric data attribution of generated images (arXiv 2510.14269). It looks at images, never at the model.

Of the noised empirical distribution of training images x_i the score is known: with a = a_t of :mod:`tda.denoisers`

    grad log p_t(x_t) = -sum_i w_i (x_t - sqrt(a) x_i) / (1 - a),   w = softmax_i(-|x_t - sqrt(a) x_i|^2 / (2 (1 - a)))

A denoiser sees only so far: in place of whole images, the patch P_p around each of the query's positions p shares
itself out among the patches around all positions r of all training images, at the same temperature,

    w(p, i, r) = softmax over (i, r) of -|x_t[P_p] - sqrt(a) x_i[P_r]|^2 / (2 (1 - a))
    score(i)   = mean over p of sum over r of w(p, i, r)             in [0, 1]; the scores of a query add up to 1

with x_t = sqrt(a) x + sqrt(1 - a) e, one e a timestep for all queries. A large score is a proponent, and there are no
opponents. The *down-scaled* form compares cells of 2 x 2 pixels, each their sum / 2 (this keeps the noise standard
normal, so that the temperature stays); *two-scale* is a mean of both. Inner products are a convolution of the training
images with the query's patches as kernels.

Read from the equations and the released commands, as the paper's text was not at hand. Our reading: (1) Pixels beyond
the edge: the code fills them with a large value (10 or 1000), so that a patch that hangs over the edge finds only
patches that hang over in the same way; here the others are left out, which is the limit. (2) All positions r count; the
code adds the 100 largest weights of an image of 1024 positions. (3) Scores are averaged over timesteps, and over p.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tda import denoisers
from tda.attribution.registry import method
from tda.task import Examples, Task, chunks
from tda.tools.door import entered
from tda.tools.options import Count, Rule, Share, Whole, is_whole, one_of, option, read
from tda.tools.probe import named_errors

SCALES, WEIGHTINGS, WHOLE = ("single", "down", "two"), ("softmax", "distance"), "image"
PAIRS = 10_000  # pairs of positions compared at once with each training image of a chunk


def _timesteps(given: Any) -> bool:
    times = list(given) if isinstance(given, (list, tuple)) else [given]
    fits = bool(times) and all(is_whole(t) and 0 <= t < denoisers.STEPS for t in times)
    return fits and len(set(times)) == len(times)


def _odd(given: Any) -> bool:
    return (isinstance(given, str) and given == WHOLE) or (is_whole(given) and given > 0 and given % 2 == 1)


Times = Annotated[Any, Rule(f"a whole number from 0 to {denoisers.STEPS - 1}, or a list of different ones", _timesteps)]
Patch = Annotated[Any, Rule(f"an odd whole number, as a patch has a centre, or {WHOLE!r} for whole images", _odd)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, and how a comparison becomes a score."""

    seed: Whole = option(0, "of the noise")
    chunk: Count = option(64, "training images compared at once")
    timesteps: Times = option(100, "noise levels, averaged over; unused by distance")
    noises: Count = option(1, "draws of noise a timestep; unused by distance")
    scales: one_of(SCALES) = option("single", "pixels, cells of 2 x 2 pixels, or both")
    patch: Patch = option(7, "side in pixels")
    down_patch: Patch = option(5, "side in cells")
    share: Share = option(0.5, "of the single scale in the two")
    weighting: one_of(WEIGHTINGS) = option("softmax", "mass at the analytical temperature, or the plain distance")


@method("nda", family="representation", paper="NDA", needs=("pixels",), signed=False, cost="per query")
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """NDA scores, [Q, N]: the share of a query's patches that goes to each image, dimensionless.

    ``weighting="distance"``, the ablation without noise and temperature: minus the squared distance of a query's patch
    to the image's nearest, per entry of a patch, mean over patches; 0 is an exact copy. ``patch="image"``: the w_i
    above. ``task.encode["pixels"]`` gives images [n, C, H, W], or rows [n, C H W] of the shape ``task.model.shape``, in
    [-1, 1] unless distances are asked for. Raises ``ValueError`` for other images, and patches larger than they are.
    """
    images, asked = _images(task, train, queries, options)
    scores = torch.zeros(len(asked), len(images))
    for part, coarse in _scales(options):
        levels = list(_levels(asked, options))
        for noisy, signal, variance in levels:
            scores += part / len(levels) * _scores(noisy, signal * images, options, coarse, variance)
    return scores.numpy()


def weights(task: Task, train: Examples, query: Examples, **options) -> Tensor:
    """w(p, i, r) of one query, one draw of noise and one scale, [rows, columns, N, rows, columns] float32: which patch
    of the query points to which patch of which image. Sums to 1 over the last three axes.
    """
    chosen = read("nda", Options, options)
    with entered(task, (), train=train, queries=query) as (train, query):
        images, asked = _images(task, train, query, chosen)
        scales, levels = _scales(chosen), list(_levels(asked, chosen))
        if len(asked) * len(scales) * len(levels) > 1 or chosen.weighting == "distance":
            raise ValueError("nda: a map is of softmax weights, of one query, timestep, draw of noise, and scale.")
        (noisy, signal, variance), coarse = levels[0], scales[0][1]
        found = []
        for rows, columns, *cut in _groups(noisy, signal * images, chosen, coarse):
            squared = torch.cat(list(_distances(*cut, chosen.chunk)), 1)[0].transpose(0, 1)
            mass = (-squared / (2 * variance)).flatten(1).softmax(1).reshape(squared.shape)
            found.append((rows, columns, mass))
        size = [max(group[axis].stop for group in found) for axis in (0, 1)]
        whole = torch.zeros(*size, len(images), *size)
        for rows, columns, mass in found:
            here = whole[rows, columns, :, rows, columns]
            here.copy_(mass.reshape(here.shape))
        return whole


def _scales(options: Options) -> list[tuple[float, bool]]:
    """(its part of the score, whether cells of 2 x 2 pixels are compared) of every scale."""
    both = [(options.share, False), (1 - options.share, True)]
    return {"single": [(1.0, False)], "down": [(1.0, True)], "two": both}[options.scales]


def _levels(asked: Tensor, options: Options) -> Iterator[tuple[Tensor, Any, Any]]:
    """(noisy queries, factor of the training images, variance of the noise) of every draw."""
    if options.weighting == "distance":
        yield asked, 1.0, None
        return
    times = options.timesteps if isinstance(options.timesteps, (list, tuple)) else [options.timesteps]
    flat = asked.flatten(1)
    for t, noise in zip(*denoisers.draws(times, options.noises, flat.shape[1], options.seed), strict=True):
        signal, spread = denoisers.strengths(t)
        yield denoisers.noised(flat, t, noise).reshape(asked.shape), signal, spread.square()


def _scores(asked: Tensor, images: Tensor, options: Options, coarse: bool, variance: Tensor | None) -> Tensor:
    """[Q, N] of one scale and level: positions that hang over the edge alike are compared with one another."""
    total, positions = torch.zeros(len(asked), len(images)), 0
    for rows, columns, here, there, patch, step in _groups(asked, images, options, coarse):
        count = (rows.stop - rows.start) * (columns.stop - columns.start)
        for part in chunks(len(asked), max(1, PAIRS // count**2)):
            compared = _distances(here[part], there, patch, step, options.chunk)
            if variance is None:
                total[part] -= torch.cat([squared.amin(3) for squared in compared], 1).sum(2) / int(np.prod(patch))
            else:
                logits = torch.cat([(-squared / (2 * variance)).logsumexp(3) for squared in compared], 1)
                total[part] += logits.softmax(1).sum(2)
        positions += count
    return total / positions


def _distances(asked: Tensor, images: Tensor, patch: torch.Size, step: int, chunk: int) -> Iterator[Tensor]:
    """Squared distances of all patches of the queries and of a chunk of images, [Q, chunk, p, r], by convolution."""
    kernels = F.unfold(asked, patch[1:], dilation=step).transpose(1, 2).reshape(-1, *patch)
    norms, ones = kernels.square().flatten(1).sum(1, keepdim=True), torch.ones(1, *patch)
    for part in chunks(len(images), chunk):
        products = F.conv2d(images[part], kernels, dilation=step).flatten(2)
        squared = F.conv2d(images[part].square(), ones, dilation=step).flatten(2) + norms - 2 * products
        yield squared.clamp(min=0).unflatten(1, (len(asked), -1)).transpose(0, 1)


def _groups(asked: Tensor, images: Tensor, options: Options, coarse: bool) -> Iterator[tuple]:
    """Positions whose patches hang over the edge alike: (rows, columns, queries and images there, patch, step).

    A patch has ``patch`` = (C, h, w) entries, ``step`` pixels apart; the zeros beyond the edge cancel within a group.
    """
    side, step, size = (options.down_patch if coarse else options.patch), 1 + coarse, asked.shape[2:]
    sides = [pixels // step if side == WHOLE else side for pixels in size]
    over = 0 if side == WHOLE else (side * step - 1) // 2
    cells = [F.pad(x, [over] * 4) for x in (asked, images)]
    cells = [2 * F.avg_pool2d(x, 2, 1) for x in cells] if coarse else cells
    both = (_runs(pixels, wide, step, over) for pixels, wide in zip(size, sides, strict=True))
    for (rows, down), (columns, along) in itertools.product(*both):
        here, there = (x[..., down, along] for x in cells)
        yield rows, columns, here, there, torch.Size((images.shape[1], *sides)), step


def _runs(pixels: int, wide: int, step: int, over: int) -> list[tuple[slice, slice]]:
    """Along one axis: positions with the same overhang at both ends, and the part of the padded axis they need."""
    extent, runs = wide * step, []
    ends = [(max(0, over - p), max(0, p - over + extent - pixels)) for p in range(pixels + 2 * over - extent + 1)]
    for _, run in itertools.groupby(range(len(ends)), key=ends.__getitem__):
        places = list(run)
        first, after = places[0], places[-1] + 1
        runs.append((slice(first, after), slice(first, after + (wide - 1) * step)))
    return runs


def _images(task: Task, train: Examples, queries: Examples, options: Options) -> list[Tensor]:
    """Training images and queries, [n, C, H, W] float32, after all checks."""
    found = []
    for what, examples in (("train", train), ("queries", queries)):
        with named_errors(f"nda, {what}: encode['pixels'] of task {task.name!r}", examples):
            images = torch.as_tensor(task.encode["pixels"](examples), dtype=torch.float32)
        shape = tuple(getattr(task.model, "shape", ())) if images.dim() == 2 else tuple(images.shape[1:])
        if len(shape) != 3 or images[0].numel() != np.prod(shape):
            known = f"the model's images are {' x '.join(map(str, shape))}" if shape else "the model has no shape"
            raise ValueError(
                f"nda, {what}: pixels {list(images.shape)}; {known}. Give rows [n, C H W] of the model's images, or "
                f"images [n, C, H, W]."
            )
        if options.weighting == "softmax" and (most := float(images.abs().max())) > 1 + 1e-4:
            raise ValueError(f"nda, {what}: pixels reach {most:.4g}; noise is added to images in [-1, 1]. Scale them.")
        found.append(images.reshape(-1, *shape))
    if found[0].shape[1:] != found[1].shape[1:]:
        sizes = " and ".join(" x ".join(map(str, images.shape[1:])) for images in found)
        raise ValueError(f"nda: train and queries are images of {sizes}; give both one size.")
    least = min(found[0].shape[2:])
    for _, coarse in _scales(options):
        name, step = ("down_patch", 2) if coarse else ("patch", 1)
        side, on = getattr(options, name), f"images of {' x '.join(map(str, found[0].shape[2:]))} pixels"
        if side == WHOLE and any(pixels % step for pixels in found[0].shape[2:]):
            raise ValueError(f"nda: {name}={WHOLE!r} on {on}; odd sides are not made of cells of 2 x 2. Use a number.")
        if side != WHOLE and side * step > least:
            raise ValueError(f"nda: {name}={side} covers {side * step} pixels on {on}; it must fit, or be {WHOLE!r}.")
    return found
