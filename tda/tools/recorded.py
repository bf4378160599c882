"""A recorded SGD run: what it did, and running it again step by step.

SGD as in ``torch.optim``, with momentum mu, (coupled) weight decay wd, learning rates eta_t and batches B_t:

    v_{t+1}     = mu v_t + (1/|B_t|) sum_{i in B_t} grad l_i(theta_t) + wd theta_t
    theta_{t+1} = theta_t - eta_t v_{t+1}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from tda.task import Examples, Params, Task, TrainingRun, n_examples, take, tensors
from tda.tools.gradients import batch_of, unflatten

DRIFT = 0.01  # how far a repeated run may end from the recorded one, as a share of the way it went
State = tuple[Tensor, Tensor]  # theta and v, flat


@dataclass(frozen=True)
class Recording:
    """All that a run can be repeated from: ``initial`` parameters; of every step the rows of its batch in the training
    data and the divisor of their summed loss (:func:`tda.recipe.steps_of`); ``rates`` [T].
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


def sgd_run(task: Task, name: str) -> TrainingRun:
    """The training record of a task, if it says SGD without clipping; the method ``name`` refuses any other."""
    run = task.run
    if run is None or run.recipe is None:
        raise ValueError(
            f"{name}: the task {task.name!r} does not say how it was trained (run.recipe). Load it from a testbed, or "
            f"give it the run of tda.training.train_recorded."
        )
    if run.recipe.optimizer != "sgd":
        raise ValueError(
            f"{name}: the model was trained by {run.recipe.optimizer!r}; the derivative is written for SGD. Use a "
            f"testbed trained by 'sgd' (people_sgd, digits_mlp), or a method that does not look at training."
        )
    if run.recipe.clip is not None:
        raise ValueError(
            f"{name}: the gradients of the run were clipped at {run.recipe.clip}, which the derivative does not know. "
            f"Train with training.clip empty."
        )
    return run


def recording_of(task: Task, train: Examples) -> Recording:
    """The :class:`Recording` of a task's run, for the method unroll; refuses a record that is not complete."""
    run = sgd_run(task, "unroll")
    if run.initial is None or not run.steps:
        raise ValueError(
            f"unroll: the record of {task.name!r} lacks its start or the batches of its steps. Train again."
        )
    if run.order.shape[1] != n_examples(train):
        raise ValueError(
            f"unroll: the run visited {run.order.shape[1]} training examples, {n_examples(train)} were given. Only the "
            f"examples of the run can be attributed; give all of them, in their order."
        )
    return Recording(run.initial.params, run.steps, run.learning_rates, run.recipe.momentum, run.recipe.weight_decay)


def replayed(loss_fn: Callable[..., Tensor], data: Examples, recording: Recording) -> Params:
    """The final parameters of the recording, by running it again."""
    state = Replay(loss_fn, data, recording).run(None, range(len(recording.steps)))
    return unflatten(state[0], recording.initial)


class Replay:
    """The steps of a recorded run on flat parameter vectors. ``loss`` is the task's loss as a function of one."""

    def __init__(self, loss_fn: Callable[..., Tensor], data: Examples, recording: Recording):
        n, highest = n_examples(data), max((int(m.max()) for m, _ in recording.steps if len(m)), default=-1)
        if highest >= n:
            raise ValueError(
                f"the recorded run visited example {highest}, but {n} training examples were given. Give the examples "
                f"the model was trained on, in their order."
            )
        self.recording, self.data, self.like = recording, tensors(data), recording.initial
        self.loss = lambda vector, batch, reduction: loss_fn(unflatten(vector, self.like), batch, reduction)
        self.gradient = grad(lambda vector, batch: self.loss(vector, batch, "sum"))
        self.start = _flat(self.like, self.like)

    def run(self, state: State | None, steps: range, kept: list[Tensor] | None = None) -> State:
        """The state after ``steps``, from the one before them (``None``: the start); ``kept`` collects the theta_t."""
        theta, v = (self.start, torch.zeros_like(self.start)) if state is None else state
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

    def compare(self, end: Tensor, final: Params) -> None:
        """Refuse an ``end`` that is not ``final``, up to the rounding that a run of another batching can gather."""
        wanted = _flat(final, self.like)
        drift = float((end - wanted).norm() / (wanted - self.start).norm())
        if not drift <= DRIFT:
            raise ValueError(
                f"the run, repeated, ends {drift:.2g} of its way from the model (up to {DRIFT} is rounding): the model "
                f"is of another run, or it is not finite. Attribute the model that the record describes."
            )


def _flat(tree: Params, like: Params) -> Tensor:
    return torch.cat([tree[k].detach().flatten() for k in like])
