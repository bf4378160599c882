"""From one model to the ceiling, rung by rung, and what leverage does to a document inside of its own fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

from tda.attribution import half_influence
from tda.attribution.half_influence import Options
from tda.curvature import named
from tda.curvature.second_derivatives import SmallGGN, pseudo_gradients
from tda.curvature.solvers import cg, last
from tda.evaluation.lds import lds
from tda.task import Examples, Params, Task, n_examples, take
from tda.tools import halves
from tda.tools.gradients import matrix


def rungs(
    task: Task, train: Examples, queries: Examples, options: Options, of_everything: Sequence[list[Params]],
    judge: tuple[np.ndarray, np.ndarray], tune: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Scores [Q, N] of every rung below the residual, each over as many models: those ``of_everything``, given by the
    moments of their runs, and the first of the halves of ``options``.

    ``judge``: subsets and outputs of the bank on whose ``tune`` queries ([Q] bool) one damping is chosen for each of
    the first four rungs; the fifth combines dampings on the models' own losses instead, and needs more than two.
    """
    few, given = len(of_everything), (task, train, queries)
    masks = halves.draw_covering(n_examples(train), options.models, options.seed, options.share)
    own, whole_masks = half_influence.own_models(task, masks, options)[:few], np.ones((few, masks.shape[1]), bool)
    whole = half_influence.contributions(*given, whole_masks, of_everything, options)
    plain = half_influence.contributions(*given, masks[:few], own, replace(options, balanced=False))
    parts = half_influence.contributions(*given, masks[:few], own, options)
    on_tune = judge[0], judge[1][..., tune]

    def at_best_damping(scores: np.ndarray) -> np.ndarray:
        reached = [float(lds(one[tune], *on_tune).mean()) for one in scores]
        return scores[int(np.argmax(reached))]

    found = {
        "one model": at_best_damping(whole[0]),
        f"{few} models of everything": at_best_damping(whole.mean(0)),
        f"{few} models of halves": at_best_damping(plain.mean(0)),
        "inside and outside balanced": at_best_damping(parts.mean(0)),
    }
    if few > 2:  # of two halves, one would have to tell the loss of the other, which has seen none of its documents
        log_losses = half_influence.own_losses(task, queries, masks, options)[:, :few]
        found["dampings combined"] = half_influence.combine(parts, masks[:few], log_losses)
    return found


def leverages_and_newton(
    task: Task, train: Examples, queries: Examples, mask: np.ndarray, damping: float, plain: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The leverage of every document at a model of the half ``mask``, and what one Newton step without it (inside of
    the half) or with it (outside) changes; ``plain`` [Q, N] is its influence with the same damping.

    With A_i [C, P] the pseudo-gradients of document i, n the size of the half, C its Gauss-Newton matrix: tr(M_i) [N],
    ``M_i = A_i (C + d)^-1 A_i^T / n``, and ``g_q^T (C -+ A_i^T A_i / n + d)^-1 g_i`` [Q, N] in the scale of
    influence, by Woodbury's identity on M_i.
    """
    half = take(train, mask)
    operator, size = SmallGGN(task, half), n_examples(half)
    chunk = n_examples(train)  # so that the blocks are the classes
    rows = torch.stack(list(pseudo_gradients(task, train, "exact", chunk=chunk)), 1)  # A, [N, C, P]
    solved = operator.solve(rows.flatten(0, 1), named.absolute_damping(operator, damping)).reshape(rows.shape)
    asked, own = matrix(task, queries), matrix(task, train)
    along_rows = torch.einsum("qp,ncp->qnc", asked, solved)
    residuals = torch.einsum("np,ncp->nc", own, solved)
    sign = torch.where(torch.from_numpy(mask), -1.0, 1.0)[:, None, None]
    leverage = torch.einsum("ncp,nep->nce", rows, solved)
    inner = size * torch.eye(leverage.shape[1]) + sign * leverage
    step = torch.linalg.solve(inner, residuals.unsqueeze(2)).squeeze(2)
    newton = plain - (along_rows * (sign.squeeze(2) * step)).sum(2).numpy()
    return leverage.diagonal(dim1=1, dim2=2).sum(1).numpy() / size, newton


def group_newton(task: Task, train: Examples, queries: Examples, subsets: np.ndarray, damping: float) -> np.ndarray:
    """What one Newton step on a whole subset changes, [Q, M], larger where the query's loss falls more: from the model
    of a half, ``g_q^T (C_S + d)^-1 g_S`` with C_S and the mean gradient g_S of the documents of the subset S. Conjugate
    gradients for all subsets side by side, on the pseudo-gradients of all documents.
    """
    count, members = n_examples(train), torch.from_numpy(subsets).float()
    classes = list(pseudo_gradients(task, train, "exact", chunk=count))
    rows, weights = torch.cat(classes), (members / members.sum(1, keepdim=True)).repeat(1, len(classes))
    shifts = damping * weights @ rows.square().mean(1)  # in units of the mean eigenvalue of C_S

    def product(v: torch.Tensor) -> torch.Tensor:
        return ((v @ rows.T) * weights) @ rows + shifts[:, None] * v

    slopes = weights[:, :count] @ matrix(task, train)
    steps = last(cg(SimpleNamespace(matvec=product), slopes, damping=0.0, iterations=1000)).solution()
    return (matrix(task, queries) @ steps.T).numpy()


def at_halves(task: Task, masks: np.ndarray, models: list[Params], score) -> np.ndarray:
    """The mean over halves of balanced scores ``score(task of the half)`` [Q, N]: any method, at models of halves."""
    parts = [
        half_influence.balance(score(replace(task, params=params)), mask)
        for mask, params in zip(masks, models, strict=True)
    ]
    return np.mean(parts, 0)
