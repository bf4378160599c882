"""Concept-TRAK: which training images teach a denoiser one token of a query's condition (2507.06547, ICLR 2026).

Both sides are losses ``|sg[e + s] - e|^2`` of the noise e(x_t; c) that the net sees, whose gradient -2 s^T de/dtheta
moves e along a shift s that is itself held fixed (sg):

- training image x_i, ``posterior``:  s = grad_{x_t} mean_d (x_0(x_t; c_i) - x_i)^2, through the net: it draws what the
  net sees in x_t towards x_i;
- query, ``guidance``:  s = e(x_t; c+) - e(x_t; c-), at c+: it draws the net along classifier-free guidance, ``form``
  says to which token: the token alone against none (``token_alone``), or the query's condition against the condition
  without the token (``full_minus_token``).

    score(q, i) = g_q^T (G^T G + delta)^-1 g_i,     g = mean over t of g_t / |g_t|

One convention of sign: every shift points where the net *should* go, and both g are gradients of the losses to be
lowered. Positive = training on the image makes the net follow the token more. (The authors' two scripts differ in the
sign of s; this is that of their training script, and of the derivation.)

States x_t are the image's own by DDIM inversion under the condition told (c_i, or c+); or the image in the model's
shared noise; or, for queries, the sampler's under c+ (``samples``). Ours: exact dual form; c+ for the query's path
also where the paper is silent; the unknown scales of s are 1 (they only matter without ``unit_norm``); inversion with
guidance 1 by default (theirs, of the training side: 7.5); deterministic sampling (theirs: eta 0.1).

``query_loss`` and ``train_loss`` may also be ``loss`` (TRAK) and ``norm`` (D-TRAK), which read neither token nor form:
with ``inversion`` and ``unit_norm`` these are the cells of the 2^4 design.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tda import denoisers
from tda.attribution.registry import method
from tda.denoisers import predicted
from tda.task import Examples, Task, n_examples
from tda.tools import denoised
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK
from tda.tools.options import Count, Flag, Positive, Whole, one_of, option

TOKENS = ("first", "second")
FORMS = ("token_alone", "full_minus_token")
TIMESTEPS = ("main", "uniform")
QUERY_LOSSES, TRAIN_LOSSES = ("guidance", "loss", "norm"), ("posterior", "loss", "norm")
KEPT = 256e6  # bytes of training gradients that are kept for the next query form; more are made anew


@dataclass(frozen=True, kw_only=True)
class Options:
    """The concept, the four factors, and the kernel's damping."""

    seed: Whole = option(0, "of the first of the sampler's initial noises")
    chunk: Count = option(CHUNK, "gradients formed together")
    token: one_of(TOKENS) = option("first", "of the condition, which is attributed")
    form: one_of(FORMS) = option("token_alone", "c+ and c-")
    query_loss: one_of(QUERY_LOSSES) = option("guidance", "of queries")
    train_loss: one_of(TRAIN_LOSSES) = option("posterior", "of training images")
    inversion: Flag = option(True, "states by DDIM inversion; else in the model's shared noise")
    unit_norm: Flag = option(True, "gradients of each timestep have norm 1")
    samples: Whole = option(0, "paths of the sampler for each query in place of its own image (0: its image)")
    timesteps: one_of(TIMESTEPS) = option("main", "of the model's main loss, or of its second one: the whole schedule")
    parameters: one_of(denoised.PARAMETERS) = option("film", "whose gradients, of the net or of its FiLM layers")
    noises: Whole = option(0, "draws of each timestep without inversion, at most the model's own (0: all)")
    steps: Count = option(50, "of inversion and sampler")
    guidance: Positive = option(1.0, "of inversion and sampler; 1 is the plain model")
    damping: Positive = option(0.1, "in units of the mean eigenvalue of the kernel")

    def of_training(self) -> Options:
        """Equal for all options with the same gradients of training images."""
        return replace(self, seed=0, token="first", form=FORMS[0], query_loss="loss", samples=0, damping=1.0)


@method("concept_trak", family="curvature", paper="Concept-TRAK", needs=("params", "outputs"), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """Concept-TRAK scores, [Q, N]; no unit. Memory: (N + Q) x P x 4 bytes, P of the chosen parameters.

    Raises ``ValueError`` for a model that is no denoiser, a query without the token, a sampler of too few steps.
    """
    k_tt, k_qt = kernels(task, train, queries, replace(options, damping=1.0))
    return denoised.kernel_scores(k_qt, k_tt, options.damping, "concept_trak").numpy()


@remembered(8)
def kernels(task: Task, train: Examples, queries: Examples, options: Options) -> tuple[Tensor, Tensor]:
    """Inner products of gradients: documents with each other [N, N], queries with documents [Q, N], float64."""
    denoised.denoiser_of(task, "concept_trak", train, queries)
    asked = query_gradients(task, queries, options)
    width = asked.shape[1]
    made = train_gradients if 4 * width * n_examples(train) <= KEPT else train_gradients.__wrapped__
    documents = made(task, train, options.of_training())
    return denoised.inner(documents, documents), denoised.inner(asked, documents)


@remembered(1)
def train_gradients(task: Task, train: Examples, options: Options) -> Tensor:
    """g of training images, [N, P]."""

    def make(batch):
        states = own_states(task, batch, options)
        if options.train_loss != "posterior":
            return states, denoised.linear_term(options.train_loss, task.model, states)
        return states, denoised.shift_term(task.model, states, posterior_shift(task, states))

    return denoised.gradients(task, train, make, options.parameters, options.unit_norm, options.chunk)


def query_gradients(task: Task, queries: Examples, options: Options) -> Tensor:
    """g of queries, [Q, P]."""

    def make(batch):
        whole = batch["condition"]
        with_token, without = conditions(whole, options) if options.query_loss == "guidance" else (whole, whole)
        batch = batch | {"condition": with_token}
        states = paths(task, batch, options) if options.samples else own_states(task, batch, options)
        if options.query_loss != "guidance":
            return states, denoised.linear_term(options.query_loss, task.model, states)
        return states, denoised.shift_term(task.model, states, guidance_shift(task, states, without))

    place = TOKENS.index(options.token)
    missing = torch.nonzero(queries["condition"][:, place] == 0).flatten().tolist()
    if options.query_loss == "guidance" and missing:
        raise ValueError(
            f"concept_trak: queries {missing[:5]} have no {options.token} token (it is 0), which is to be attributed. "
            f"Leave them out, or choose the other token."
        )
    return denoised.gradients(task, queries, make, options.parameters, options.unit_norm, options.chunk)


def conditions(whole: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """c+ and c-, [B, 2] each, of a condition."""
    place, nothing = TOKENS.index(options.token), torch.zeros_like(whole)
    if options.form == "full_minus_token":
        return whole, torch.where(torch.arange(2) == place, nothing, whole)
    return torch.where(torch.arange(2) == place, whole, nothing), nothing


def draws(task: Task, options: Options) -> tuple[Tensor, Tensor]:
    """Timesteps [T] and shared noise [T, S, D]."""
    if options.timesteps == "main":
        return denoised.shared(task.model, options.noises, "concept_trak")
    if not hasattr(task.model, "uniform"):
        raise ValueError(
            f"concept_trak: timesteps='uniform', and the model of task {task.name!r} has none; use 'main'."
        )
    return denoised.shared(task.model, options.noises, "concept_trak", task.model.uniform)


def own_states(task: Task, batch: Examples, options: Options) -> denoised.States:
    """Those of the images themselves."""
    times, noise = draws(task, options)
    if options.inversion:
        return denoised.inverted(task.model, task.params, batch, times, options.steps, options.guidance)
    return denoised.forward(batch, (times, noise))


def paths(task: Task, batch: Examples, options: Options) -> denoised.States:
    """Those of the sampler, from the same initial noises for every query; x_0 is the sample."""
    times, _ = draws(task, options)
    n, pixels = batch["pixels"].shape
    noise = denoisers.start([options.seed + i for i in range(options.samples)], pixels).expand(n, -1, -1)
    how = times, options.steps, options.guidance
    return denoised.sampled(task.model, task.params, noise, batch["condition"], *how)[0]


def posterior_shift(task: Task, states: denoised.States) -> Tensor:
    """``grad_{x_t} mean_d (x_0(x_t; c) - x_0)^2``, [B, T, S, D]: along it the noise seen makes x_0(x_t) the image's."""
    with torch.enable_grad():
        noisy = states.noisy.detach().clone().requires_grad_()
        at, told = states.places()
        _, image = predicted(task.model, task.params, noisy, at, told)
        return torch.autograd.grad((image - states.images).square().mean(-1).sum(), noisy)[0]


def guidance_shift(task: Task, states: denoised.States, without: Tensor) -> Tensor:
    """``e(x_t; c+) - e(x_t; c-)``, [B, T, S, D]."""
    at, told = states.places()
    with torch.no_grad():
        noise, _ = predicted(task.model, task.params, states.noisy, at, told)
        other, _ = predicted(task.model, task.params, states.noisy, at, without[:, None, None].expand_as(told))
    return noise - other
