"""TRAK, D-TRAK, DAS and Journey-TRAK for denoisers, in exact dual form.

With phi the gradient of an image's output f over shared draws of timesteps and noise (:mod:`tda.tools.denoised`):

    score(q, i) = phi_q^T (Phi^T Phi + delta)^-1 phi_i  [* weight_i]

- ``diffusion_trak``: f is the denoising loss (Park et al. 2023, as Zheng et al. 2024 run it: no residual term);
- ``d_trak``: f is the mean squared *output*, of both sides (Zheng et al. 2024);
- ``das``: f is the mean output, weight_i the size of the image's error (Lin et al. 2024);
- ``journey_trak``: training images as in ``diffusion_trak``; the query is what the sampler saw on its way, x_0(t),
  noised again at t, mean over t (Georgiev et al. 2023).

Positive: the image pulls the query's f the way the query itself would. Of the loss that means that it lowers the
query's loss; outputs of D-TRAK and DAS have no such direction, their sign is a convention. Ours: no projection, and
damping in units of the mean eigenvalue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tda import denoisers
from tda.attribution.registry import method
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools import denoised
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.options import Count, Flag, Positive, Whole, one_of, option

ERRORS = ("profile", "size", "none")
PATHS = ("inverted", "sampled")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which gradients, and the kernel's damping."""

    seed: Whole = option(0, "unused, nothing here is random: the noise is the model's own")
    chunk: Count = option(CHUNK, "gradients formed together")
    parameters: one_of(denoised.PARAMETERS) = option("all", "whose gradients, of the net or of its FiLM layers")
    noises: Whole = option(0, "draws of each timestep, at most the model's own (0: all)")
    unit_norm: Flag = option(False, "gradients of each timestep have norm 1")
    damping: Positive = option(0.1, "in units of the mean eigenvalue of the kernel")


@method("diffusion_trak", family="curvature", paper="Park et al. 2023", needs=("params", "outputs"), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """TRAK of the denoising loss, [Q, N]; no unit. Memory: (N + Q) x P x 4 bytes.

    Raises ``ValueError`` for a model that is no denoiser, more noises than it has, and damping lost in rounding.
    """
    return _scores("diffusion_trak", "loss", task, train, queries, options)


@method("d_trak", family="curvature", paper="Zheng et al. 2024", needs=("params", "outputs"), signed=True)
def attribute_norm(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """D-TRAK: TRAK of the mean squared output, [Q, N]; the sign is a convention. As :func:`attribute`."""
    return _scores("d_trak", "norm", task, train, queries, options)


@dataclass(frozen=True, kw_only=True)
class DasOptions(Options):
    """Those of TRAK, and what a document's error does."""

    error: one_of(ERRORS) = option(
        "profile", "weight: root errors over their norm over timesteps, as released; or size"
    )
    leverage: Flag = option(False, "divide by 1 - h_i, h_i the document's score for itself")
    square: Flag = option(False, "square the score, which loses its sign")


@method("das", family="curvature", paper="Lin et al. 2024", needs=("params", "outputs"), signed=True)
def attribute_mean(task: Task, train: Examples, queries: Examples, options: DasOptions) -> np.ndarray:
    """DAS, [Q, N]: TRAK of the mean output times ``r_i / (1 - h_i)``; no unit.

    With e_it the root of document i's loss at timestep t, r_i is ``mean_t e_it / |e_i|`` (``profile``, as in the
    authors' code: 1/sqrt(T) for a flat profile, whatever its height) or ``(mean_t e_it^2)^(1/2)`` (``size``, ours).
    h_i = [K (K + delta)^-1]_ii is ours, too: the released leverage mixes queries and documents.
    """
    k_tt, k_qt = kernels("das", "mean", task, train, queries, _undamped(options))
    scores = denoised.kernel_scores(k_qt, k_tt, options.damping, "das")
    if options.leverage:
        scores = scores / (1 - denoised.kernel_scores(k_tt, k_tt, options.damping, "das").diagonal())
    if options.error != "none":
        scores = scores * errors(task, train, options)
    return (scores.square() if options.square else scores).numpy()


def errors(task: Task, train: Examples, options: DasOptions) -> Tensor:
    """r_i of every document, [N] float64."""
    times, noise = denoised.shared(task.model, options.noises, "das")
    loss_fn, parts = (
        denoisers.denoising_loss(task.model, times.repeat_interleave(noise.shape[1]), noise.flatten(0, 1)),
        [],
    )
    with torch.no_grad():
        for part in chunks(n_examples(train), options.chunk):
            parts.append(loss_fn(task.params, batch_of(take(train, part)), "token"))
    squares = torch.cat(parts).unflatten(1, (len(times), -1)).mean(2).double()
    if options.error == "size":
        return squares.mean(1).sqrt()
    return torch.nn.functional.normalize(squares.sqrt(), dim=1).mean(1)


@dataclass(frozen=True, kw_only=True)
class JourneyOptions(Options):
    """Those of TRAK, and the query's path."""

    path: one_of(PATHS) = option("inverted", "DDIM run back from the image, or run from its stored initial noise")
    steps: Count = option(50, "of the sampler")
    guidance: Positive = option(1.0, "of the sampler; 1 is the plain model")


@method("journey_trak", family="curvature", paper="Georgiev et al. 2023", needs=("params", "outputs"), signed=True)
def attribute_journey(task: Task, train: Examples, queries: Examples, options: JourneyOptions) -> np.ndarray:
    """Journey-TRAK, [Q, N]: mean over timesteps of TRAK for what the sampler saw at each; no unit.

    Every timestep of the model's draws takes the image seen at the nearest step of the query's path. ``sampled`` needs
    a column ``noise_seed`` and follows what *this* model makes of that noise, which is the query itself only if this
    model made it. Ours: ``inverted``, for images that no model made.
    """
    return _scores("journey_trak", "loss", task, train, queries, options)


def _scores(who: str, kind: str, task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    k_tt, k_qt = kernels(who, kind, task, train, queries, _undamped(options))
    return denoised.kernel_scores(k_qt, k_tt, options.damping, who).numpy()


def _undamped(options: Options) -> Options:
    """Equal for all options with the same gradients."""
    own = {"error": "none", "leverage": False, "square": False} if isinstance(options, DasOptions) else {}
    return replace(options, seed=0, damping=1.0, **own)


@remembered(8)
def kernels(
    who: str, kind: str, task: Task, train: Examples, queries: Examples, options: Options
) -> tuple[Tensor, Tensor]:
    """Inner products of gradients: documents with each other [N, N], queries with documents [Q, N], float64."""
    draws = denoised.shared(denoised.denoiser_of(task, who, train, queries), options.noises, who)

    def make(batch):
        states = denoised.forward(batch, draws)
        return states, denoised.linear_term(kind, task.model, states)

    def make_query(batch):
        states = journey(task, batch, draws, options) if isinstance(options, JourneyOptions) else None
        return make(batch) if states is None else (states, denoised.linear_term(kind, task.model, states))

    how = options.parameters, options.unit_norm, options.chunk
    if isinstance(options, JourneyOptions) and options.path == "sampled":
        queries = queries | {"noise_seed": torch.tensor(_seeds(queries))}
    documents = denoised.gradients(task, train, make, *how)
    asked = denoised.gradients(task, queries, make_query, *how)
    return denoised.inner(documents, documents), denoised.inner(asked, documents)


def journey(task: Task, batch: Examples, draws: tuple[Tensor, Tensor], options: JourneyOptions) -> denoised.States:
    """What the sampler saw on each query's path, noised again at the timesteps of ``draws``."""
    model, params, (times, noise) = task.model, task.params, draws
    how = times, options.steps, options.guidance
    if options.path == "sampled":
        start = denoisers.start(batch["noise_seed"].tolist(), batch["pixels"].shape[1]).unsqueeze(1)
        _, seen = denoised.sampled(model, params, start, batch["condition"], *how)
    else:
        on = denoised.inverted(model, params, batch, *how)
        with torch.no_grad():
            at, told = on.places()
            seen = denoisers.predicted(model, params, on.noisy, at, told, options.guidance)[1].clamp(-1, 1)
    at = times[:, None].expand(len(seen), *noise.shape[:-1])
    return denoised.States(denoisers.noised(seen, at, noise), seen, times, batch["condition"])


def _seeds(queries: Examples) -> list[int]:
    seeds = queries.get("noise_seed")
    seeds = seeds.tolist() if isinstance(seeds, Tensor) else seeds
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError(
            f"journey_trak: path='sampled' starts from the noise of a column 'noise_seed' of whole numbers; that "
            f"of the queries is {seeds[:3] if seeds else 'missing'}. Add it, or use path='inverted'."
        )
    return seeds
