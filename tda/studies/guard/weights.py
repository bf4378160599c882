"""How hard each pair is pushed: weights of mean 1 from its alignment with what is to be kept.

The proxy of GUARD (arXiv 2506.10946) is the inner product of a forgotten pair's gradient with the mean gradient of the
retained pairs, and a temperature tau says how fast a weight falls with it. The formula is not known to us; *our
reading* is

    a_i = <grad l_i, 1/m sum_j grad l_j>,      w_i = n exp(-a_i / tau) / sum_k exp(-a_k / tau)

with tau in units of the standard deviation of a, so that alignments by other methods, in other units, can stand in its
place. tau to infinity gives the uniform loss.

One temperature does not make the weights of all alignments equally uneven: a long tail puts nearly all weight on few
pairs. Where methods are compared, alignments are replaced by the normal scores of their ranks, which are the same
numbers for all of them. How uneven weights are says their *effective share*, 1 / mean(w^2): 1 for equal weights, 1/n
for all weight on one of n pairs.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm, rankdata

import tda
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools.gradients import batch_of, flatten, swept


def check_rows(forget: np.ndarray, retain: np.ndarray) -> None:
    """``ValueError`` unless both sets hold pairs, and no pair is in both."""
    if not len(forget) or not len(retain):
        empty = "forget" if not len(forget) else "retain"
        raise ValueError(
            f"the {empty} set is empty ({len(forget)} and {len(retain)} pairs); give at least one pair each."
        )
    if len(both := np.intersect1d(forget, retain)):
        raise ValueError(
            f"pairs {both[:5].tolist()} are to be forgotten and retained; take them out of one of the sets."
        )


def check_weights(weights: np.ndarray, count: int) -> None:
    """``ValueError`` unless there is one weight for each of ``count`` pairs, none negative, and their mean is 1."""
    weights = np.asarray(weights)
    if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"weights of shape {weights.shape} for {count} pairs; give one finite weight >= 0 a pair.")
    if not np.isclose(weights.mean(), 1, atol=1e-4):
        raise ValueError(f"the weights have mean {weights.mean():.4g}, not 1: the budget differs. Divide them by it.")


def alignment(task: Task, forget: Examples, retain: Examples, chunk: int = 128) -> np.ndarray:
    """a_i [n] as above, from one gradient of each forgotten pair and one of the mean loss of the retained ones."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in task.params.items()}
    for part in chunks(n_examples(retain), chunk):
        (task.loss_fn(leaves, batch_of(take(retain, part)), "sum") / n_examples(retain)).backward()
    kept = flatten({name: value.grad.unsqueeze(0) for name, value in leaves.items()})[0]
    return swept(task, forget, lambda block: block @ kept, chunk).numpy()


def alignment_by(method: str, task: Task, forget: Examples, retain: Examples, **options) -> np.ndarray:
    """The same from a registered method: its scores of the retained pairs for each forgotten one, averaged, [n]."""
    return tda.attribute(method, task, retain, forget, **options).mean(1)


def guard_weights(alignments: np.ndarray, temperature: float, unit: float | None = None) -> np.ndarray:
    """w [n] as above; ``unit``: what tau is counted in (the standard deviation of the alignments by default).
    ``ValueError`` for tau <= 0 and for alignments that are not finite.
    """
    a = np.asarray(alignments, dtype=np.float64)
    if not temperature > 0:
        raise ValueError(f"tau = {temperature}; a temperature is above 0, and inf gives uniform weights.")
    if a.ndim != 1 or not len(a) or not np.isfinite(a).all():
        raise ValueError(f"alignments of shape {a.shape}; give one finite number for each pair.")
    spread = a.std() if unit is None else unit
    scaled = -(a - a.min()) / (temperature * spread) if spread else np.zeros_like(a)
    return len(a) * np.exp(scaled) / np.exp(scaled).sum()


def normal_scores(alignments: np.ndarray) -> np.ndarray:
    """Phi^-1((rank - 1/2) / n) of every alignment, [n], Phi the standard normal distribution. Ties count in the order
    given, so that any two alignments of n pairs have the same scores, and their weights are the same numbers.
    """
    return norm.ppf((rankdata(alignments, method="ordinal") - 0.5) / len(alignments))


def effective_share(weights: np.ndarray) -> float:
    """1 / mean(w^2) of weights of mean 1: what share of the pairs would bear the same weights if these were equal."""
    return float(1 / np.mean(np.square(weights)))


def shuffled(weights: np.ndarray, seed: int) -> np.ndarray:
    """The same weights, dealt out at random among the pairs."""
    return np.random.default_rng([seed, 51]).permutation(weights)
