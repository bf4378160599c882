"""Exact unrolling: the derivative of a query's final loss with respect to the weight of every training example.

SGD with momentum mu and (coupled) weight decay wd visits the batches B_0, ..., B_{T-1} with learning rates eta_t. Give
the loss of example i the weight w_i (1 in the recorded run) and keep the divisor of every batch:

    v_{t+1}     = mu v_t + (1/|B_t|) sum_{i in B_t} w_i grad l_i(theta_t) + wd theta_t
    theta_{t+1} = theta_t - eta_t v_{t+1}

The final loss l_q(theta_T) is a function of w. Its gradient comes from one pass backwards through the recorded run
(Hara et al. 2019; MAGIC, Ilyas and Engstrom 2025). With p and u the derivatives of l_q(theta_T) by theta and by v,
u = 0 at the end and p = grad l_q(theta_T):

    a   = u - eta_t p                                   the derivative by v_{t+1}, both ways taken together
    score_i += -<a, grad l_i(theta_t)> / |B_t|          for i in B_t
    p  <- p + H_t a + wd a,    u <- mu a                H_t the Hessian of the batch's mean loss at theta_t

so ``score_i = - d l_q(theta_T) / d w_i`` in nats: positive = a little more of i lowers the query's loss (a proponent).
Nothing is approximated; the initialisation and the order of the data are those of the recorded run. It is the slope at
w = 1: removing an example is the whole way to w = 0, and the loss need not be linear along it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from tda.attribution.budget import require
from tda.attribution.gradients import batch_of, unflatten
from tda.task import Examples, Params, chunks, n_examples, take, tensors

STORES = ("all", "sqrt")
CHUNK = 256  # examples of a batch that are differentiated at once


@dataclass(frozen=True)
class Recording:
    """What SGD did: all that a run can be repeated from.

    ``initial``: the parameters it started from; ``steps``: for every step the examples of its batch (their rows in the
    training data) and the divisor of their summed loss, as :func:`tda.training.steps_of` returns them; ``rates`` [T].
    """

    initial: Params
    steps: Sequence[tuple[np.ndarray, float]]
    rates: np.ndarray
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self):
        if not len(self.steps) or len(self.rates) != len(self.steps):
            raise ValueError(
                f"the record holds {len(self.rates)} learning rates for {len(self.steps)} steps; one each is needed, "
                f"and at least one. They belong to different runs: train again."
            )
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(
                f"momentum={self.momentum}, weight_decay={self.weight_decay}; 0 <= momentum < 1 and weight_decay >= 0."
            )


def replayed(loss_fn: Callable[..., Tensor], data: Examples, recording: Recording) -> Params:
    """The final parameters of the recording, by running it again."""
    state = _Replay(loss_fn, data, recording).run(None, range(len(recording.steps)))
    return unflatten(state[0], recording.initial)


def unrolled(
    loss_fn: Callable[..., Tensor],
    data: Examples,
    queries: Examples,
    recording: Recording,
    *,
    store: str = "all",
    cuts: Sequence[int] = (),
    chunk: int = CHUNK,
    queries_at_once: int = 8,
) -> Tensor:
    """``- d l_q(theta_T) / d w_i``, [S, Q, N], through the steps of each of S = len(cuts) + 1 stretches of the run.

    Parameters: ``loss_fn`` as in :class:`tda.task.Task`; ``data`` the N training examples that ``recording.steps``
    index; ``cuts`` the steps at which a new stretch begins (none: one stretch, the whole run). The sum over the
    stretches is the score; a stretch holds what its own batches taught. Precision is that of the initial parameters.
    Memory for P parameters and T steps: ``store="all"`` T P numbers (every theta_t is kept); ``"sqrt"`` about
    2.8 sqrt(T) P (every k-th state is kept, the steps between are run again: one more training run in time), and
    Q P for the adjoints. Raises ``ValueError`` if that does not fit, for other options and for a run that diverges.
    """
    cuts = [int(cut) for cut in cuts]
    if store not in STORES:
        raise ValueError(f"unroll: store={store!r}; one of {STORES}.")
    if sorted(set(cuts)) != cuts or any(not 0 < cut < len(recording.steps) for cut in cuts):
        raise ValueError(f"unroll: cuts={cuts}; increasing steps between 1 and {len(recording.steps) - 1}.")
    replay = _Replay(loss_fn, data, recording)
    total, asked = len(recording.steps), n_examples(queries)
    stride = total if store == "all" else math.ceil(math.sqrt(2 * total))  # states are (theta, v), steps only theta
    _forecast(replay, store, stride, total, asked)
    pieces = [range(start, min(start + stride, total)) for start in range(0, total, stride)]
    before, state = [], None
    for piece in pieces:
        before.append(state)
        state = replay.run(state, piece)
    p = vmap(grad(replay.own_loss), in_dims=(None, 0))(state[0], batch_of(queries))
    u, scores = torch.zeros_like(p), p.new_zeros(len(cuts) + 1, asked, n_examples(data))
    for piece in reversed(pieces):
        kept: list[Tensor] = []
        replay.run(before.pop(), piece, kept)
        for t in reversed(piece):
            members, divisor = recording.steps[t]
            a = u - float(recording.rates[t]) * p
            curved, slopes = replay.second_order(kept.pop(), a, members, chunk, queries_at_once)
            part = int(np.searchsorted(cuts, t, side="right"))
            scores[part].index_add_(1, torch.as_tensor(members), -slopes / divisor)
            p = p + curved / divisor + recording.weight_decay * a
            u = recording.momentum * a
    return scores.detach()


class _Replay:
    """One recorded run on flat parameter vectors: its steps forwards, and what the way back needs of each."""

    def __init__(self, loss_fn: Callable[..., Tensor], data: Examples, recording: Recording):
        self.recording, self.data, self.like = recording, tensors(data), recording.initial
        self.loss_fn = lambda vector, batch, reduction: loss_fn(unflatten(vector, self.like), batch, reduction)
        self.gradient = grad(lambda vector, batch: self.loss_fn(vector, batch, "sum"))
        n, highest = n_examples(data), max((int(m.max()) for m, _ in recording.steps if len(m)), default=-1)
        if highest >= n:
            raise ValueError(
                f"the recorded run visited example {highest}, but {n} training examples were given. Give the examples "
                f"the model was trained on, in their order."
            )

    def own_loss(self, vector: Tensor, example: Examples) -> Tensor:
        return self.loss_fn(vector, {k: v.unsqueeze(0) for k, v in example.items()}, "sum")

    def run(self, state, steps: range, kept: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(theta, v) after ``steps`` from the state before them (``None``: the start); ``kept`` collects the theta_t."""
        if state is None:
            theta = torch.cat([value.detach().flatten() for value in self.like.values()])
            state = theta, torch.zeros_like(theta)
        theta, v = state
        for t in steps:
            members, divisor = self.recording.steps[t]
            if kept is not None:
                kept.append(theta)
            v = self.recording.momentum * v + self.recording.weight_decay * theta
            if len(members):
                v = v + self.gradient(theta, batch_of(take(self.data, members))) / divisor
            theta = theta - float(self.recording.rates[t]) * v
        if not theta.isfinite().all():
            raise ValueError(
                f"the recorded run is not finite after step {steps.stop}: it diverged. Lower its learning rate."
            )
        return theta, v

    def second_order(
        self, theta: Tensor, a: Tensor, members, chunk: int, queries_at_once: int
    ) -> tuple[Tensor, Tensor]:
        """``sum_i H_i a`` [Q, P] and ``<a, grad l_i>`` [Q, b] over the examples of a batch, for every row of ``a``.

        Both come from one pass: forward mode along a gives the slopes, and the gradient of their sum is the
        Hessian-vector product.
        """

        def along(at: Tensor, direction: Tensor, batch: Examples):
            _, slopes = jvp(lambda vector: self.loss_fn(vector, batch, "example"), (at,), (direction,))
            return slopes.sum(), slopes

        both = vmap(grad(along, has_aux=True), in_dims=(None, 0, None), chunk_size=queries_at_once)
        curved, slopes = torch.zeros_like(a), []
        for part in chunks(len(members), chunk):
            product, slope = both(theta, a, batch_of(take(self.data, members[part])))
            curved, slopes = curved + product, [*slopes, slope]
        return curved, torch.cat(slopes, 1) if slopes else a.new_zeros(len(a), 0)


def _forecast(replay: _Replay, store: str, stride: int, total: int, asked: int) -> None:
    width = sum(value.numel() for value in replay.like.values())
    number = next(iter(replay.like.values())).element_size()
    states = min(stride, total) + 2 * math.ceil(total / stride)
    advice = (
        "Use store='sqrt', which keeps the square root of it and runs the steps between again."
        if store == "all"
        else "Ask fewer queries at a time, or unroll a shorter run or a smaller model."
    )
    require(
        (states + 4 * asked) * width * number,
        f"unroll with store={store!r} ({total} steps, {width} parameters, {asked} queries)",
        advice,
    )
