"""Exact unrolling: the derivative of a query's final loss with respect to the weight of every training example.

Give the loss of example i in a recorded SGD run (:mod:`tda.tools.recorded`) the weight w_i, 1 in the run itself, and
keep the divisor of every batch. A pass backwards through the run (Hara et al. 2019; MAGIC, Ilyas and Engstrom 2025),
with p and u the derivatives of l_q(theta_T) by theta and by v, u = 0 at the end and p = grad l_q(theta_T),

    a   = u - eta_t p                                   the derivative by v_{t+1}, both ways taken together
    score_i += -<a, grad l_i(theta_t)> / |B_t|          for i in B_t
    p  <- p + H_t a + wd a,    u <- mu a                H_t the Hessian of the batch's mean loss at theta_t

gives ``score_i = - d l_q(theta_T) / d w_i`` in nats: positive = a little more of i lowers the query's loss (proponent).
It is the exact slope at w = 1, and the loss need not be linear on the way to w = 0 (removal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from tda.attribution.registry import method
from tda.task import Examples, Params, Task, chunks, n_examples, take
from tda.tools.gradients import batch_of
from tda.tools.memory_limit import require
from tda.tools.options import Count, Whole, one_of
from tda.tools.recorded import Recording, Replay, recording_of

STORES = ("all", "sqrt")
CHUNK = 256  # examples of a batch that are differentiated at once


@method("unroll", family="unrolling", paper="Hara et al. 2019", needs=("params", "checkpoints"), signed=True)
def attribute(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK,
    store: one_of(STORES) = "all", queries_at_once: Count = 8,
) -> np.ndarray:  # fmt: skip
    """Minus the derivative of each query's final loss by the weight of each training example, [Q, N], in nats.

    ``train`` must be the examples of the run; options as in :func:`unrolled`. Time: that of the training, and of two
    more trainings per query. Raises ``ValueError`` for a run that is no recorded SGD run, that clips gradients, or that
    does not end at the model when it is repeated.
    """
    options = {"store": store, "chunk": chunk, "queries_at_once": queries_at_once, "final": task.params}
    return unrolled(task.loss_fn, train, queries, recording_of(task, train), **options).sum(0).numpy()


def unrolled(
    loss_fn: Callable[..., Tensor], data: Examples, queries: Examples, recording: Recording, *, store: str = "all",
    cuts: Sequence[int] = (), chunk: int = CHUNK, queries_at_once: int = 8, final: Params | None = None,
) -> Tensor:  # fmt: skip
    """``- d l_q(theta_T) / d w_i``, [S, Q, N], through the steps of each of S = len(cuts) + 1 stretches of the run.

    ``data``: the N training examples that ``recording.steps`` index; ``cuts``: the steps at which a new stretch begins.
    The sum over the stretches is the score. ``final``: the parameters that the run is known to end at. ``chunk``
    examples of a batch and ``queries_at_once`` queries are differentiated together. Memory: 4 Q P and, for T steps,
    T P numbers (``store="all"``) or about 2.8 sqrt(T) P (``"sqrt"``: every k-th state, the steps between run again).
    Raises ``ValueError`` if that does not fit, for a run that diverges and for one that does not end at ``final``.
    """
    cuts, total, count = [int(cut) for cut in cuts], len(recording.steps), n_examples(queries)
    if store not in STORES:
        raise ValueError(f"unroll: store={store!r}; one of {STORES}.")
    if sorted(set(cuts)) != cuts or any(not 0 < cut < total for cut in cuts):
        raise ValueError(f"unroll: cuts={cuts}; increasing steps between 1 and {total - 1}.")
    replay = Replay(loss_fn, data, recording)
    stride = total if store == "all" else math.ceil(math.sqrt(2 * total))  # states are (theta, v), steps only theta
    _forecast(replay.start, store, stride, total, count)
    pieces = [range(start, min(start + stride, total)) for start in range(0, total, stride)]
    before, state, kept = [], None, []
    for piece in pieces:
        before.append(state)
        state = replay.run(state, piece, kept if piece is pieces[-1] else None)
    if final is not None:
        replay.compare(state[0], final)
    slope = grad(lambda at, query: replay.loss(at, {k: v.unsqueeze(0) for k, v in query.items()}, "sum"))
    p = vmap(slope, (None, 0))(state[0], batch_of(queries))
    u, scores = torch.zeros_like(p), p.new_zeros(len(cuts) + 1, count, n_examples(data))
    for piece in reversed(pieces):
        at_start = before.pop()
        if not kept:
            replay.run(at_start, piece, kept)
        for t in reversed(piece):
            members, divisor = recording.steps[t]
            a = u - float(recording.rates[t]) * p
            curved, slopes = _second_order(replay, kept.pop(), a, members, chunk, queries_at_once)
            part = int(np.searchsorted(cuts, t, side="right"))
            scores[part].index_add_(1, torch.as_tensor(members), -slopes / divisor)
            p = p + curved / divisor + recording.weight_decay * a
            u = recording.momentum * a
    return scores.detach()


def _second_order(
    replay: Replay, theta: Tensor, a: Tensor, members: np.ndarray, chunk: int, queries_at_once: int
) -> tuple[Tensor, Tensor]:
    """``sum_i H_i a`` [Q, P] and ``<a, grad l_i>`` [Q, b] over the examples of a batch, for every row of ``a``.

    One pass, forward over reverse mode: in torch 2.13 the gradient of a forward-mode product through ``layer_norm`` is
    silently wrong (a test shows it).
    """

    def along(at: Tensor, direction: Tensor, batch: Examples):
        def losses(vector: Tensor):
            each = replay.loss(vector, batch, "example")
            return each.sum(), each

        return jvp(grad(losses, has_aux=True), (at,), (direction,))[1]

    both = vmap(along, in_dims=(None, 0, None), chunk_size=queries_at_once)
    curved, slopes = torch.zeros_like(a), [a.new_zeros(len(a), 0)]
    for part in chunks(len(members), chunk):
        product, slope = both(theta, a, batch_of(take(replay.data, members[part])))
        curved, slopes = curved + product, [*slopes, slope]
    return curved, torch.cat(slopes, 1)


def _forecast(start: Tensor, store: str, stride: int, total: int, queries: int) -> None:
    numbers = min(stride, total) + 2 * math.ceil(total / stride) + 4 * queries
    advice = "Ask fewer queries at a time, or unroll a shorter run or a smaller model."
    if store == "all":
        advice = "Use store='sqrt', which keeps the square root of the steps and runs those between again."
    what = f"unroll with store={store!r} ({total} steps, {len(start)} parameters, {queries} queries)"
    require(numbers * len(start) * start.element_size(), what, advice)
