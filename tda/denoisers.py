"""Small denoising diffusion models of images, seen as tasks: the noise schedule, the loss, and sampling.

An image is a row of D pixels in [-1, 1], channel after channel. With betas that rise linearly from 1e-4 to 0.02 over
the timesteps t = 0..999 and a_t = prod_{s <= t} (1 - beta_s) (Ho et al. 2020), the forward process is

    q(x_t | x_0):   x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,   e standard normal.

A model predicts ``e`` (``prediction: noise``) or ``x_0`` (``prediction: image``) from x_t, t and a condition: two
tokens, numbered from 1; 0 is the token left out, as it is now and then during training. A batch holds ``pixels``
[B, D] float and ``condition`` [B, 2] int64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from tda.denoiser_nets import PREDICTIONS, STEPS, Denoiser, FilmConv, FilmMLP  # noqa: F401 (all that a denoiser is)
from tda.task import Examples, Params, tensors

OWN_DRAWS = ("timesteps", "noise")  # columns by which examples bring draws of their own


def kept() -> Tensor:
    """a_t [1000] float64: the share of the image's variance that is left at timestep t."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0)


def strengths(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t), float32 [..., 1] of timesteps [...]."""
    left = kept()[timesteps].unsqueeze(-1)
    return left.sqrt().float(), (1 - left).sqrt().float()


def noised(images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """x_t [..., D] of images x_0 [..., D] and noise [..., D] at timesteps [...]."""
    signal, spread = strengths(timesteps)
    return signal * images + spread * noise


def draws(timesteps: np.ndarray, each: int, pixels: int, seed: int) -> tuple[Tensor, Tensor]:
    """``each`` draws of noise for every timestep: timesteps [K] int64 and noise [K, pixels], K = each x timesteps."""
    repeated = torch.from_numpy(np.repeat(np.asarray(timesteps, np.int64), each))
    noise = np.random.default_rng([seed, 51]).standard_normal((len(repeated), pixels), np.float32)
    return repeated, torch.from_numpy(noise)


def own(shared: tuple[Tensor, Tensor], count: int) -> Examples:
    """Draws [K], [K, D] as columns of ``count`` examples, which then take precedence over those of their loss."""
    timesteps, noise = shared
    return {"timesteps": timesteps.expand(count, -1), "noise": noise.expand(count, -1, -1)}


def outputs_function(model: Denoiser, timesteps: Tensor, noise: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """``f(params, batch) -> (outputs, targets)``, both [B, K, D]: what is predicted, and what is true, in every draw.

    ``timesteps`` [K] and ``noise`` [K, D] are shared by all examples, unless a batch has columns ``timesteps`` [B, K]
    and ``noise`` [B, K, D] of its own. The squared error of the two is the loss.
    """
    check_timesteps(timesteps)
    if noise.shape != (len(timesteps), model.times.new_empty(model.shape).numel()):
        raise ValueError(f"noise {tuple(noise.shape)} for {len(timesteps)} timesteps of images {model.shape}: [K, D].")

    def outputs(params: Params, batch: Examples) -> tuple[Tensor, Tensor]:
        mine = OWN_DRAWS[0] in batch
        t, e = (batch[name] for name in OWN_DRAWS) if mine else (timesteps, noise)
        images, condition = batch["pixels"].unsqueeze(-2), batch["condition"].unsqueeze(-2)
        noisy = noised(images, t, e)
        t, condition = t.expand(noisy.shape[:-1]), condition.expand(*noisy.shape[:-1], 2)
        target = e if model.prediction == "noise" else images
        return functional_call(model, params, (noisy, t, condition)), target.expand(noisy.shape)

    return outputs


def denoising_loss(model: Denoiser, timesteps: Tensor, noise: Tensor, dropout: float = 0.0) -> Callable[..., Tensor]:
    """The loss of :class:`tda.task.Task` for a denoiser: the squared error per pixel, mean over the draws.

    Deterministic: every example meets the same draws (:func:`outputs_function`), in every model. ``"token"`` gives the
    loss of each draw, [B, K]. Training does not use them: it draws a timestep and noise of its own for every example
    in every epoch, and leaves each token out with probability ``dropout`` (:func:`redrawn`).
    """
    outputs = outputs_function(model, timesteps, noise)

    def loss_fn(params: Params, batch: Examples, reduction: str = "mean") -> Tensor:
        if reduction not in ("mean", "sum", "example", "token"):
            raise ValueError(f"reduction={reduction!r}; one of 'mean', 'sum', 'example', 'token'.")
        found, targets = outputs(params, batch)
        each = (found - targets).square().mean(-1)
        if reduction == "token":
            return each
        example = each.mean(-1)
        return example if reduction == "example" else getattr(example, reduction)()

    loss_fn.check = lambda examples, what: check_examples(model, examples, what)
    loss_fn.redrawn = lambda data, seed, epoch: redrawn(data, seed, epoch, dropout)
    return loss_fn


def redrawn(data: Examples, seed: int, epoch: int, dropout: float) -> Examples:
    """Examples as one epoch of training shows them: each with one timestep, noise, and tokens left out now and then.

    What an example meets depends on seed, epoch and its place in the data, not on which others are trained on.
    """
    rng, (n, pixels) = np.random.default_rng([seed, 14, epoch]), data["pixels"].shape
    timesteps, left_out = rng.integers(STEPS, size=(n, 1)), rng.random((n, 2)) < dropout
    noise = torch.from_numpy(rng.standard_normal((n, 1, pixels), np.float32))
    condition = data["condition"].masked_fill(torch.from_numpy(left_out), 0)
    return data | {"condition": condition, "timesteps": torch.from_numpy(timesteps), "noise": noise}


def check_timesteps(timesteps: Tensor) -> None:
    """Refuse timesteps outside the schedule."""
    wrong = timesteps[(timesteps < 0) | (timesteps >= STEPS)]
    if timesteps.dtype != torch.int64 or len(wrong.flatten()):
        given = f"timestep {wrong.flatten()[0].item()}" if len(wrong.flatten()) else f"timesteps of {timesteps.dtype}"
        raise ValueError(f"{given}; the schedule has the whole numbers 0 to {STEPS - 1}.")


def check_examples(model: Denoiser, examples: Examples, what: str) -> None:
    """Refuse images of another size or range, tokens that the model does not know, and draws of another form."""
    columns, pixels = tensors(examples), int(np.prod(model.shape))
    shapes = {name: f"{str(value.dtype)[6:]} {tuple(value.shape)}" for name, value in columns.items()}
    n = len(next(iter(columns.values()), ()))
    known = {"pixels", "condition"}, {"pixels", "condition", *OWN_DRAWS}
    fits = set(columns) in known and columns["pixels"].shape == (n, pixels) and columns["condition"].shape == (n, 2)
    fits = fits and columns["pixels"].is_floating_point() and columns["condition"].dtype == torch.int64
    if fits and len(columns) > 2:
        fits = columns["noise"].shape == (*columns["timesteps"].shape, pixels) and columns["timesteps"].dim() == 2
    if not fits:
        raise ValueError(
            f"{what}: its tensors are {shapes}; this denoiser reads 'pixels' [N, {pixels}] float and 'condition' "
            f"[N, 2] int64, and may read 'timesteps' [N, K] with 'noise' [N, K, {pixels}]. Rename, resize or remove "
            f"columns."
        )
    if (size := float(columns["pixels"].abs().max())) > 1 + 1e-4:
        raise ValueError(
            f"{what}: pixels reach {size:.4g}; they lie in [-1, 1]. Scale them (from 0..255: x / 127.5 - 1)."
        )
    for place, count in enumerate(model.tokens):
        tokens = columns["condition"][:, place]
        if ((tokens < 0) | (tokens > count)).any():
            row = int(torch.nonzero((tokens < 0) | (tokens > count))[0])
            known = f"1 to {count}, and 0 for none" if count else "0, for none, alone"
            raise ValueError(
                f"{what}: row {row} has the value {int(tokens[row])} for token {place}; the model knows {known}."
            )
    if len(columns) > 2:
        check_timesteps(columns["timesteps"])


def predicted(
    model: Denoiser, params: Params, noisy: Tensor, timesteps: Tensor, condition: Tensor, guidance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Noise and image, [..., D] each, that the model sees in x_t [..., D] at timesteps [...], condition [..., 2].

    ``guidance`` g (classifier-free: Ho and Salimans 2022): the output without a condition plus g times the difference
    that the condition makes; 1 is the plain model.
    """
    output = functional_call(model, params, (noisy, timesteps, condition))
    if guidance != 1:
        without = functional_call(model, params, (noisy, timesteps, torch.zeros_like(condition)))
        output = without + guidance * (output - without)
    signal, spread = strengths(timesteps)
    if model.prediction == "noise":
        return output, (noisy - spread * output) / signal
    return (noisy - signal * output) / spread, output


def start(seeds: list[int], pixels: int) -> Tensor:
    """Initial noise [B, D], one image a seed: what is stored of a sample is its seed."""
    each = [np.random.default_rng([seed, 52]).standard_normal(pixels, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(each))


def grid(steps: int) -> list[int]:
    """Timesteps of a sampler from noisy to clean, evenly spaced, the last of them 0."""
    if not 1 <= steps <= STEPS:
        raise ValueError(f"{steps} sampling steps; 1 to {STEPS} are possible.")
    return [STEPS // steps * i for i in reversed(range(steps))]


def ddim(
    model: Denoiser, params: Params, noise: Tensor, condition: Tensor, steps: int = 50, guidance: float = 2.0
) -> list[tuple[int, Tensor, Tensor]]:
    """The path of deterministic sampling (DDIM: Song et al. 2021) from noise [B, D]: (t, x_t, image seen in x_t) of
    every step; the last image is the sample. Images are clipped to [-1, 1] on the way, and the noise follows them.
    """
    path, x, times = [], noise, grid(steps)
    with torch.no_grad():
        for place, t in enumerate(times):
            at = torch.full(x.shape[:-1], t)
            _, image = predicted(model, params, x, at, condition, guidance)
            image = image.clamp(-1, 1)
            path.append((t, x, image))
            signal, spread = strengths(at)
            if place + 1 < len(times):
                x = noised(image, torch.full_like(at, times[place + 1]), (x - signal * image) / spread)
    return path


def sample(model: Denoiser, params: Params, noise: Tensor, condition: Tensor, **options) -> Tensor:
    """Images [B, D] in [-1, 1] from noise [B, D]; ``options`` of :func:`ddim`."""
    return ddim(model, params, noise, condition, **options)[-1][2]


def features(model: Denoiser, params: Params, draws: tuple[Tensor, Tensor], examples: Examples) -> np.ndarray:
    """What the last layer sees of every image, mean over draws (and places, of a convolutional net), [N, width]."""
    seen, outputs = [], outputs_function(model, *draws)
    hook = model.leave.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            for images, condition in zip(*(examples[k].split(64) for k in ("pixels", "condition")), strict=True):
                outputs(params, {"pixels": images, "condition": condition})
                places = seen.pop().flatten(2).mean(2) if isinstance(model, FilmConv) else seen.pop()
                seen.insert(0, places.reshape(len(images), len(draws[0]), -1).mean(1))
    finally:
        hook.remove()
    return torch.cat(seen[::-1]).numpy()
