"""Gradients of what a denoiser says along noisy states of an image, and scores by their exact kernel.

States x_t are noised images, the DDIM inversion of an image, or the sampler's own path (:class:`States`). Every loss of
this family is, up to a constant, a function of the net's output f in each state,

    L = mean over states and pixels of (a f^2 + b f),   a number, b constant in the parameters:

- ``loss``       a = 1, b = -2 target                 the denoising loss;
- ``norm``       a = 1, b = 0                         the squared norm of D-TRAK;
- ``mean``       a = 0, b = 1                         the mean output of DAS;
- a shift s      a = 0, b = -2 s                      the loss |sg[f + s] - f|^2, which moves f along s (Concept-TRAK).

With X_t, X_q the gradients of training images and queries and K = X X^T their inner products, the scores are

    K_qt (K_tt + delta)^-1 = X_q (X_t^T X_t + delta)^-1 X_t^T,   delta = damping * tr(K_tt) / N,

without the projection that larger models need (the identity of Woodbury).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from tda import denoisers
from tda.denoisers import Denoiser, noised, predicted, strengths
from tda.task import Examples, Params, Task, chunks, n_examples, take
from tda.tools.gradients import batch_of, blocks
from tda.tools.memory_limit import require

PARAMETERS = ("all", "film")
COLUMNS = 8192  # of gradients, whose inner products are summed in float32; sums of these in float64


@dataclass(frozen=True)
class States:
    """S states at each of T timesteps: ``noisy`` x_t [B, T, S, D], ``images`` x_0 (T and S may be 1), ``timesteps``
    [T], ``condition`` [B, 2] that the net is told.
    """

    noisy: Tensor
    images: Tensor
    timesteps: Tensor
    condition: Tensor

    def places(self) -> tuple[Tensor, Tensor]:
        """Timesteps [B, T, S] and conditions [B, T, S, 2]."""
        shape = self.noisy.shape[:-1]
        return self.timesteps[:, None].expand(shape), self.condition[:, None, None].expand(*shape, 2)

    def target(self, prediction: str) -> Tensor:
        """What a perfect net says, [B, T, S, D]: x_0, or the noise that leads from it to x_t."""
        if prediction == "image":
            return self.images.expand_as(self.noisy)
        signal, spread = strengths(self.places()[0])
        return (self.noisy - signal * self.images) / spread


def denoiser_of(task: Task, who: str, *examples: Examples) -> Denoiser:
    """The task's net. Raises ``ValueError`` where it is no denoiser with shared draws, or examples bring their own."""
    model = task.model
    if not isinstance(model, Denoiser) or getattr(model, "main", None) is None:
        raise ValueError(
            f"{who} asks a denoiser in states of its own choice, and the model of task {task.name!r} is a "
            f"{type(model).__name__}{' without draws' if isinstance(model, Denoiser) else ''}. Give a "
            f"tda.denoisers.Denoiser whose attribute 'main' holds timesteps and noise, or use gradient_dot."
        )
    if any(name in columns for columns in examples for name in denoisers.OWN_DRAWS):
        raise ValueError(f"{who} chooses timesteps and noise itself; remove the columns {denoisers.OWN_DRAWS}.")
    return model


def shared(model: Denoiser, noises: int, who: str, draws: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The model's own draws (``main``, or ``draws``): timesteps [T] and noise [T, S, D], the first ``noises`` (0: all)
    of each timestep.
    """
    timesteps, noise = model.main if draws is None else draws
    times, counts = timesteps.unique_consecutive(return_counts=True)
    if len(set(counts.tolist())) > 1 or len(times.unique()) < len(times):
        raise ValueError(f"{who}: draws are a block of equal size for each timestep; make them with denoisers.draws.")
    if noises > counts[0]:
        raise ValueError(f"{who}: noises={noises}; the model has {counts[0]} for a timestep. Choose at most as many.")
    return times, noise.unflatten(0, (len(times), -1))[:, : noises or None]


def forward(batch: Examples, draws: tuple[Tensor, Tensor]) -> States:
    """Images [B, D] in shared noise."""
    times, noise = draws
    images = batch["pixels"][:, None, None]
    at = times[:, None].expand(len(images), *noise.shape[:-1])
    return States(noised(images, at, noise), images, times, batch["condition"])


def inverted(
    model: Denoiser, params: Params, batch: Examples, times: Tensor, steps: int, guidance: float = 1.0
) -> States:
    """DDIM run backwards from the images [B, D] (S = 1): at each step the noise seen now is the noise put on next.

    Taken at the step of the grid nearest to each of ``times``, without t = 0.
    """
    kept, x, seen = _nearest(times, steps), batch["pixels"], {}
    with torch.no_grad():
        grid = [t for t in denoisers.grid(steps)[::-1] if t <= max(kept)]
        for t, following in zip(grid, [*grid[1:], None], strict=True):
            seen[t] = x
            if following is not None:
                at = torch.full(x.shape[:-1], t)
                noise, image = predicted(model, params, x, at, batch["condition"], guidance)
                x = noised(image, torch.full_like(at, following), noise)
    noisy = torch.stack([seen[t] for t in kept], 1).unsqueeze(2)
    return States(noisy, batch["pixels"][:, None, None], torch.tensor(kept), batch["condition"])


def sampled(
    model: Denoiser, params: Params, noise: Tensor, condition: Tensor, times: Tensor, steps: int, guidance: float = 1.0
) -> tuple[States, Tensor]:
    """The sampler's paths from ``noise`` [B, S, D] under ``condition`` [B, 2], at the steps of :func:`inverted`: x_t
    with the samples as x_0, and the images [B, T, S, D] that were seen in x_t.
    """
    kept = _nearest(times, steps)
    told = condition[:, None].expand(*noise.shape[:2], 2)
    path = {t: step for t, *step in denoisers.ddim(model, params, noise, told, steps, guidance)}
    noisy, seen = (torch.stack([path[t][part] for t in kept], 1) for part in (0, 1))
    return States(noisy, path[0][1].unsqueeze(1), torch.tensor(kept), condition), seen


def _nearest(times: Tensor, steps: int) -> list[int]:
    """Steps t > 0 of the sampler's grid, one for each of ``times``: the nearest, of two the less noisy."""
    grid = [t for t in denoisers.grid(steps)[::-1] if t > 0]
    kept = [min(grid, key=lambda step: abs(step - t)) for t in times.tolist()] if grid else []
    if len(set(kept)) < len(times):
        raise ValueError(f"{steps} sampling steps are too few to tell {len(times)} timesteps apart; take more.")
    return kept


def linear_term(kind: str, model: Denoiser, states: States) -> tuple[float, Tensor]:
    """a and b of ``loss``, ``norm`` or ``mean``."""
    if kind == "loss":
        return 1.0, -2 * states.target(model.prediction)
    return (1.0, torch.zeros_like(states.noisy)) if kind == "norm" else (0.0, torch.ones_like(states.noisy))


def shift_term(model: Denoiser, states: States, shift: Tensor) -> tuple[float, Tensor]:
    """a and b that move the *noise* seen along ``shift``, whatever the net predicts."""
    if model.prediction == "image":
        signal, spread = strengths(states.places()[0])
        shift = -signal / spread * shift
    return 0.0, -2 * shift


def gradients(
    task: Task, examples: Examples, make: Callable[[Examples], tuple[States, tuple[float, Tensor]]], parameters: str,
    unit: bool, chunk: int,
) -> Tensor:  # fmt: skip
    """Gradients [n, P] of L in the parameters (``film``: of the layers that scale and shift), mean over timesteps;
    ``unit`` gives each timestep's gradient norm 1 before. ``make(batch)`` gives states, a and b.

    Memory: n x P x 4 bytes and 2 chunk x P x 4. Raises ``ValueError`` where that is too much, or not finite.
    """
    model, own = task.model, {k: v for k, v in task.params.items() if parameters == "all" or k.startswith("film.")}
    n, width = n_examples(examples), sum(v.numel() for v in own.values())
    require(4 * width * (n + 2 * chunk), f"gradients of {n} images in {width} parameters", "Use parameters='film'.")
    rows = torch.empty(n, width)
    for part in chunks(n, chunk):
        states, (a, b) = make(batch_of(take(examples, part)))
        at, told = states.places()
        columns = {"noisy": states.noisy, "timesteps": at, "condition": told, "b": b}
        count, times = at.shape[:2]
        columns = {k: v.flatten(0, 1) if unit else v.flatten(1, 2) for k, v in columns.items()}

        def loss_fn(params, batch, reduction, a=a):
            given = (batch["noisy"], batch["timesteps"], batch["condition"])
            output = functional_call(model, task.params | params, given)
            return ((a * output + batch["b"]) * output).mean((-1, -2)).sum()

        source, found = replace(task, loss_fn=loss_fn, params=own), rows[part]
        found.zero_()
        for piece, block in blocks(source, columns, chunk):
            if unit:
                share = torch.nn.functional.normalize(block, dim=1) / times
                found.index_add_(0, torch.from_numpy(piece) // times, share)
            else:
                found[piece] = block
        if not found.isfinite().all():
            raise ValueError(f"gradients of {task.name!r} are not finite. Check the model's losses on the images.")
    return rows


def inner(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of rows, float64."""
    pairs = zip(one.split(COLUMNS, 1), other.split(COLUMNS, 1), strict=True)
    return sum((a @ b.T).double() for a, b in pairs)


def kernel_scores(k_qt: Tensor, k_tt: Tensor, damping: float, who: str) -> Tensor:
    """``K_qt (K_tt + delta)^-1`` [Q, N] float64, delta = damping times the mean eigenvalue of ``k_tt``."""
    if not k_tt.trace() > 0:
        raise ValueError(f"{who}: every gradient is zero. Attribute an earlier checkpoint.")
    delta = damping * float(k_tt.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(k_tt + delta * torch.eye(len(k_tt), dtype=k_tt.dtype))
    if failed:
        raise ValueError(f"{who}: damping={damping} is below the rounding of the kernel. Raise it.")
    return torch.cholesky_solve(k_qt.T, factor).T
