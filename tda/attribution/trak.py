"""Influence in randomly projected gradients of the whole model: TRAK and TrackStar.

TRAK (Park et al. 2023): with f the model output (its log-odds, see :func:`tda.tools.projection.margins`),
phi_i = S grad f_i its projected gradient, Phi [N, d] their matrix and Q_i = 1 - p_i:

    score(q, i) = phi_q^T (Phi^T Phi + delta)^-1 phi_i * Q_i

one Newton step of logistic regression on the features phi. An ensemble averages its two factors apart, as in the
authors' code: ``mean_m kernel_m(q, i) * mean_m Q_m,i``, every member with a projection of its own.

Ours: ``damping``, without which d must stay below N; for a language model f and Q are means over target tokens; and
``output="loss"`` uses the loss itself, with Q = 1.

TrackStar (Chang et al. 2025): cosine in the optimiser's and the Hessian's metric,

    G(z) = R^(-1/2) S (grad l_z / sqrt(V)),      score(q, i) = <G(q), G(i)> / (|G(q)| |G(i)|)
    R    = mixing * R_eval + (1 - mixing) * R_train + delta

with V [P] AdamW's second moments at the end of training, R_train and R_eval [d, d] the mean outer products of the
projected gradients of documents and queries. Mixing R_eval in weakens directions that all queries share (a template),
and a query's scores depend on which others are asked. Ours (the paper is known to us by secondary notes): one block for
the whole model, delta in units of the mean of the eigenvalues that can differ from zero, AdamW for Adafactor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tda.attribution.registry import method
from tda.output_loss import require_classes
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools.door import entered
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.options import Count, Flag, NotNegative, Share, Whole, one_of, option, read
from tda.tools.projection import KINDS, OUTPUTS, damped_inverse, features, log_odds
from tda.tools.summed import trajectory

ROWS = 32  # features turned to float64 at once
MEMBER = 100_000  # added to the seed of the projection for every further member of an ensemble


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is projected, how, and the kernel's damping."""

    seed: Whole = option(0, "draws the projection")
    chunk: Count = option(CHUNK, "examples whose gradients are formed together")
    output: one_of(OUTPUTS) = option("margin", "f, the log-odds or the loss itself")
    projection: one_of(KINDS) = option("sparse", "kind of S")
    dimension: Count = option(4096, "d")
    damping: NotNegative = option(0.1, "in units of the mean eigenvalue; 0, as published, is refused for d >= N")


@method("trak", family="curvature", paper="Park et al. 2023", needs=("params", "outputs"), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """TRAK scores of one model, [Q, N]; no unit. Memory: (N + Q) x d x 4 bytes and chunk x P x 4.

    Raises ``ValueError`` for a singular kernel and for gradients that are not finite.
    """
    return ensemble([task], train, queries, **vars(options))


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions(Options):
    """Those of TRAK, and the members of its ensemble."""

    checkpoints: Whole = option(0, "of the run, evenly spaced (0: all)")


@method(
    "trak_trajectory", family="curvature", paper="Park et al. 2023", needs=("params", "outputs", "checkpoints"),
    signed=True,
)  # fmt: skip
def attribute_trajectory(task: Task, train: Examples, queries: Examples, options: TrajectoryOptions) -> np.ndarray:
    """TRAK with the checkpoints of one run, weighed alike, as its ensemble, [Q, N]: members that cost no training."""
    of_members = {name: value for name, value in vars(options).items() if name != "checkpoints"}
    members = [part for part, _ in trajectory(task, options.checkpoints)]
    return ensemble(members, train, queries, **of_members)


def ensemble(tasks: Sequence[Task], train: Examples, queries: Examples, **options) -> np.ndarray:
    """TRAK over several models of one recipe, [Q, N]: mean kernel times mean Q. Options as in :func:`attribute`."""
    if not len(tasks):
        raise ValueError("trak: an ensemble of no models; give at least one task.")
    chosen = read("trak", Options, options)
    kernels, weights = [], []
    for member, task in enumerate(tasks):  # members project independently, so that their projection errors average out
        own = replace(chosen, seed=chosen.seed + MEMBER * member)
        phi = _features(task, train, own)
        solved = damped_inverse(phi, own.damping, "trak")(_features(task, queries, own))
        kernels.append(torch.cat([solved @ part.double().T for part in phi.split(ROWS)], dim=1))
        weights.append(residuals(task, train, own.output, own.chunk))
    return (sum(kernels) / len(tasks) * (sum(weights) / len(tasks))).numpy()


def self_influence(task: Task, train: Examples, **options) -> np.ndarray:
    """Score of every document with itself, [N]: leverage phi_i^T (Phi^T Phi + delta)^-1 phi_i times Q_i, in [0, 1];
    high for mislabelled or odd ones. Options as in :func:`attribute`.
    """
    chosen = read("trak", Options, options)
    with entered(task, ("params",), train=train) as (train,):
        phi = _features(task, train, chosen)
        leverage = (damped_inverse(phi, chosen.damping, "trak")(phi) * phi).sum(1)
        return (leverage * residuals(task, train, chosen.output, chosen.chunk)).numpy()


def _features(task: Task, examples: Examples, options: Options) -> Tensor:
    if options.output == "margin" and task.outputs_fn is not None:
        require_classes(task, "trak: output='margin'", "Use output='loss'.")
    return features(task, examples, options.output, options.projection, options.dimension, options.seed, options.chunk)


def residuals(task: Task, train: Examples, output: str, chunk: int = CHUNK) -> Tensor:
    """Q, [N] float64: minus the derivative of the loss in the output, 1 - p (mean over tokens), or 1 for ``loss``."""
    if output == "loss":
        return torch.ones(n_examples(train), dtype=torch.float64)
    parts = []
    with torch.no_grad():
        for part in chunks(n_examples(train), chunk):
            odds, target = log_odds(task, task.params, batch_of(take(train, part)))
            parts.append((torch.sigmoid(-odds) * target).sum(-1) / target.sum(-1))
    return torch.cat(parts).double()


@method("trackstar", family="curvature", paper="Chang et al. 2025", needs=("params", "checkpoints"), signed=True)
def attribute_whitened(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK,
    projection: one_of(KINDS) = "sparse", dimension: Count = 4096, damping: NotNegative = 0.1, mixing: Share = 0.99,
    moments: Flag = True, unit_norm: Flag = True,
) -> np.ndarray:  # fmt: skip
    """TrackStar scores, [Q, N], in [-1, 1]; ``moments`` and ``unit_norm`` switch a step off.

    Memory: (N + Q) x d x 4 bytes, min(d, N + Q)^2 x 8 and chunk x P x 4. Raises ``ValueError`` for missing or foreign
    second moments, a singular R, gradients not finite.
    """
    options = ("loss", projection, dimension, seed, chunk, moments)
    rows = torch.cat([features(task, part, *options) for part in (train, queries)])
    documents, query_rows = whitened(rows, len(rows) - n_examples(queries), mixing, damping)
    if unit_norm:
        documents, query_rows = (torch.nn.functional.normalize(part, dim=1) for part in (documents, query_rows))
    return (query_rows @ documents.T).numpy()


def whitened(rows: Tensor, n: int, mixing: float, damping: float) -> tuple[Tensor, Tensor]:
    """``R^(-1/2)`` times the first ``n`` rows (documents) and times the others (queries) of ``rows`` [n + Q, d].

    Where d > n + Q the rows are first replaced by n + Q coordinates with the same inner products. Raises ``ValueError``
    where R is singular without damping.
    """
    count, d = rows.shape
    if d > count:
        values, vectors = torch.linalg.eigh((rows @ rows.T).double())
        rows = vectors * values.clamp(min=0).sqrt()
    documents, query_rows = rows.double().split([n, count - n])
    mixed = mixing * query_rows.T @ query_rows / len(query_rows) + (1 - mixing) * documents.T @ documents / n
    values, vectors = torch.linalg.eigh(mixed)
    if not values.mean() > 0:
        raise ValueError("trackstar: every projected gradient is zero. Attribute an earlier checkpoint.")
    members = n * (mixing < 1) + (count - n) * (mixing > 0)  # how many rows R is made of: the largest rank it can have
    if damping == 0 and (d >= members or values[0] <= 1e-10 * values[-1]):
        raise ValueError(
            f"trackstar: without damping the {d} x {d} mixture of {n} documents and {count - n} queries is singular "
            f"(rank {int((values > 1e-10 * values[-1]).sum())}). Lower dimension, or set damping, for example 0.1."
        )
    delta = damping * values.sum() / min(d, members)
    root = (vectors * (values + delta).rsqrt()) @ vectors.T
    return documents @ root, query_rows @ root
