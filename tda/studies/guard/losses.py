"""The base losses of unlearning, each with a weight for every pair that is to be forgotten.

    L(theta) = 1/n sum_i w_i f_i(theta)  +  r(theta; retained pairs)

n pairs to be forgotten, weights w_i of mean 1. Let l_i be the mean negative log-likelihood of the answer's tokens and
log pi_i = -(number of tokens) l_i that of the whole answer; ref is the model before unlearning.

    GA        f_i = -l_i                                              r = 0            (gradient ascent)
    GradDiff  f_i = -l_i                                              r = mean of l    (gradient difference)
    KL        f_i = -l_i                                              r = mean over answer tokens of KL(ref || theta)
    NPO       f_i = -2/beta log sigma(-beta (log pi_i - log pi_ref,i))  r = 0
    refusal   f_i = l of the refusal as answer to question i          r = mean of l

Sources: the benchmark code of TOFU (GA, GradDiff, KL, refusal; Maini et al. 2024) and Zhang et al. 2024 (NPO, in its
form for whole sequences, beta 0.1). That GUARD weights f_i and leaves r alone is our reading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tda.output_loss import IGNORE
from tda.task import Examples, Params

BETA = 0.1  # of NPO


def sums_and_counts(loss_fn: Callable, params: Params, batch: Examples) -> tuple[Tensor, Tensor]:
    """-log pi_i [n] of the answers, and how many tokens each has [n]."""
    return loss_fn(params, batch, "token").sum(1), (batch["labels"][:, 1:] != IGNORE).sum(1)


def ascent(sums: Tensor, counts: Tensor, reference: Tensor) -> Tensor:
    return -sums / counts


def refusal(sums: Tensor, counts: Tensor, reference: Tensor) -> Tensor:
    return sums / counts


def npo(sums: Tensor, counts: Tensor, reference: Tensor) -> Tensor:
    """log pi_i - log pi_ref,i = reference - sums, as both are negative log-likelihoods."""
    return -2 / BETA * F.logsigmoid(-BETA * (reference - sums))


def divergence(logits: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """Mean over answer tokens of KL(reference || model), in nats; logits [B, T, V] of both, labels [B, T]."""
    logp, logq = logits[:, :-1].log_softmax(-1), reference[:, :-1].log_softmax(-1)
    target = labels[:, 1:] != IGNORE
    return ((logq.exp() * (logq - logp)).sum(-1) * target).sum() / target.sum()


@dataclass(frozen=True)
class Base:
    """``forget(sums, counts, reference sums) -> f [n]``; ``retain``: what r is; ``says``: which answer f is about."""

    forget: Callable[[Tensor, Tensor, Tensor], Tensor]
    retain: str = ""  # "", likelihood or divergence
    says: str = "answer"


BASES = {
    "GA": Base(ascent),
    "GradDiff": Base(ascent, "likelihood"),
    "KL": Base(ascent, "divergence"),
    "NPO": Base(npo),
    "refusal": Base(refusal, "likelihood", "refusal"),
}


def named(name: str) -> Base:
    """The base loss of this name; ``ValueError`` with the names there are for any other."""
    if name not in BASES:
        raise ValueError(f"base loss {name!r} is unknown; there are {', '.join(BASES)}.")
    return BASES[name]


def objective(name: str, loss_fn: Callable, logits_of: Callable, reference: Params, forget: Examples) -> Callable:
    """``f(params, weights [n], retained batch) -> L``, for use under ``vmap`` over models. ``forget``: the pairs with
    the answers that the base loss is about; ``reference``: the parameters before unlearning.
    """
    base = named(name)
    with torch.no_grad():
        before, counts = sums_and_counts(loss_fn, reference, forget)

    def value(params: Params, weights: Tensor, retained: Examples) -> Tensor:
        sums, _ = sums_and_counts(loss_fn, params, forget)
        total = (weights * base.forget(sums, counts, before)).mean()
        if base.retain == "likelihood":
            total = total + loss_fn(params, retained, "mean")
        if base.retain == "divergence":
            with torch.no_grad():
                known = logits_of(reference, retained["input_ids"])
            total = total + divergence(logits_of(params, retained["input_ids"]), known, retained["labels"])
        return total

    return value
