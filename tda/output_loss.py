"""Losses in the outputs of a network: how an example's loss l_i follows from its outputs, and how it bends there.

With outputs f [B, T, C] of ``Task.outputs_fn`` (T positions, or noise draws; C classes, or pixels), two are known:

- ``cross_entropy``: targets y [B, T] int64, -100 where there is none. l_i is the mean of ``-log softmax(f_t)[y_t]``
  over the n_i targets; its Hessian in the f_t of a target is ``(diag p_t - p_t p_t^T) / n_i``.
- ``squared_error``: targets y [B, T, C] float. l_i is the mean of ``(f - y)^2`` over all n = T C elements (no 1/2, as
  in ``torch.nn.functional.mse_loss``); its Hessian is ``2/n`` times the identity.

The Hessian is also given as a sum of u u^T over vectors u [B, T, C], by the kind of Fisher information:

- ``exact``: T C vectors, ``sqrt(p_tc / n_i) (p_t - e_c)``, or ``sqrt(2/n) e_tc``;
- ``sampled``: one vector, right in expectation: ``(p_t - e_y) / sqrt(n_i)`` with y drawn from p_t, or ``sqrt(2/n)``
  times standard normal noise (labels of different positions are independent and their scores have mean zero);
- ``empirical``: one vector, the gradient of l_i itself: ``(p_t - e_y) / n_i``, or ``2/n (f - y)``. It does not give the
  Hessian (Kunstner et al. 2019), and with n_i targets its size is about 1/n_i of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tda.task import Task

IGNORE = -100  # the target of a position that has none
FISHERS = ("exact", "sampled", "empirical")
PASSES = 1000  # most backward passes a batch that the exact kind may take


class OutputLoss:
    """One loss, of outputs [B, T, C] and targets as the module's text says. Each offers

    - ``misfit``: what is wrong with the shapes or types of what ``outputs_fn`` gives; empty if nothing is;
    - ``losses``: l_i, [B];
    - ``hessian``: ``v [B, T, C] -> H v``, the Hessian of the l_i in the outputs;
    - ``noise``: what the sampled kind draws for one example with outputs [positions, width];
    - ``directions``, ``sampled``, ``slope``: the vectors u of the exact, sampled and empirical kind.
    """

    def real(self, targets: Tensor) -> Tensor | None:
        """[B, T] bool, positions up to an example's last target; ``None`` where no position is padding."""
        return None

    def vectors(self, outputs: Tensor, targets: Tensor, fisher: str, noise: Tensor | None = None) -> Iterator[Tensor]:
        """The vectors u of one kind; ``noise`` [B, >=T, ...] of :meth:`noise` for ``sampled``."""
        _, positions, width = outputs.shape
        if fisher == "exact" and positions * width > PASSES:
            raise ValueError(
                f"fisher='exact' takes a backward pass for each of {positions} positions x {width} outputs; at most "
                f"{PASSES} are allowed. Use fisher='sampled'."
            )
        if fisher == "exact":
            yield from self.directions(outputs, targets)
        elif fisher == "sampled":
            yield self.sampled(outputs, targets, noise)
        elif fisher == "empirical":
            yield self.slope(outputs, targets)
        else:
            raise ValueError(f"fisher={fisher!r}; one of {FISHERS}.")


class CrossEntropy(OutputLoss):
    """Classifiers and language models."""

    def misfit(self, outputs: Tensor, targets: Tensor) -> str:
        if targets.dtype != torch.int64:
            return f"targets of {targets.dtype}; int64 are expected."
        if outputs.dim() != 3 or outputs.shape[:2] != targets.shape:
            shapes = f"logits {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
            return f"{shapes}; [B, T, C] and [B, T] are expected (a classifier has T = 1)."
        return ""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        target = targets != IGNORE
        nll = -outputs.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * target
        return nll.sum(1) / target.sum(1)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        p, share = outputs.softmax(-1), _share(outputs, targets).unsqueeze(-1)
        return lambda v: share * p * (v - (p * v).sum(-1, keepdim=True))

    def noise(self, rng: np.random.Generator, positions: int, width: int) -> np.ndarray:
        return rng.random(positions)

    def directions(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        p, share, (_, positions, classes) = outputs.softmax(-1), _share(outputs, targets), outputs.shape
        for position in range(positions):
            for c in range(classes):
                u = torch.zeros_like(p)
                away = p[:, position] - F.one_hot(torch.tensor(c), classes)
                u[:, position] = (share[:, position] * p[:, position, c]).sqrt().unsqueeze(1) * away
                yield u

    def sampled(self, outputs: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        p, (_, positions, classes) = outputs.softmax(-1), outputs.shape
        cumulated = p.double().cumsum(-1)
        drawn = noise[:, :positions].unsqueeze(-1) * cumulated[..., -1:]
        labels = (cumulated < drawn).sum(-1).clamp(max=classes - 1)
        return _share(outputs, targets).sqrt().unsqueeze(-1) * (p - F.one_hot(labels, classes))

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        away = outputs.softmax(-1) - F.one_hot(targets.clamp(min=0), outputs.shape[-1])
        return _share(outputs, targets).unsqueeze(-1) * away

    def real(self, targets: Tensor) -> Tensor | None:
        return (targets != IGNORE).flip(1).cummax(1).values.flip(1) if targets.shape[1] > 1 else None


class SquaredError(OutputLoss):
    """Denoisers and regressions: every element is a target, and no position is padding."""

    def misfit(self, outputs: Tensor, targets: Tensor) -> str:
        if outputs.dim() == 3 and (outputs.shape, outputs.dtype) == (targets.shape, targets.dtype):
            return ""
        return (
            f"outputs {outputs.dtype} {tuple(outputs.shape)} and targets {targets.dtype} {tuple(targets.shape)}; for a "
            f"squared error both are [B, T, C] of one type."
        )

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().flatten(1).mean(1)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda v: _bend(outputs) * v

    def noise(self, rng: np.random.Generator, positions: int, width: int) -> np.ndarray:
        return rng.standard_normal((positions, width))

    def directions(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        for place in range(outputs[0].numel()):
            u = torch.zeros_like(outputs)
            u.flatten(1)[:, place] = _bend(outputs) ** 0.5
            yield u

    def sampled(self, outputs: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        return _bend(outputs) ** 0.5 * noise.to(outputs.dtype)

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _bend(outputs) * (outputs - targets)


LOSSES = {"cross_entropy": CrossEntropy(), "squared_error": SquaredError()}


def of(task: Task) -> OutputLoss:
    """The output loss that a task names. Raises ``ValueError`` for one that is not known."""
    if task.output_loss not in LOSSES:
        raise ValueError(f"task {task.name!r}: output_loss={task.output_loss!r}; one of {list(LOSSES)}.")
    return LOSSES[task.output_loss]


def require_classes(task: Task, who: str, cure: str) -> None:
    """Refuse a task whose outputs are no logits of classes, for what reads probabilities off them."""
    if task.output_loss != "cross_entropy":
        raise ValueError(
            f"{who} reads class probabilities off the outputs, and the task {task.name!r} has "
            f"output_loss={task.output_loss!r}. {cure}"
        )


def _share(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 / n_i at a target and 0 elsewhere, [B, T]."""
    target = targets != IGNORE
    return target.to(outputs.dtype) / target.sum(1, keepdim=True)


def _bend(outputs: Tensor) -> float:
    """2 / n, the second derivative of a mean squared error in each of its n elements."""
    return 2.0 / outputs[0].numel()
