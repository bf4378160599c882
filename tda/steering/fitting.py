"""Training of steering operators: fidelity, stability, linearity.

For subset A_k with complement R_k, and means over documents of means over target positions:

    fidelity   F_k = mean over A_k of  -log softmax(o + delta_k)[y]
    stability  S_k = mean over R_k of  KL(softmax(o) || softmax(o + delta_k))
    linearity  L   = mean over probes x of  || M~ (M~^T M~ + gamma)^-1 M~^T y_x - y_x ||^2,    M~ = M R (random sketch)

    minimise   sum_k (fidelity F_k + stability S_k) + linearity L

over the codes and the read-out together. The three losses are published; all else is ours:

- F_k is, up to the frozen loss, ``-<G_k, a_k>`` plus the same KL on A_k, where G_k = mean of B (e_y - p)^T. The first
  part is exact here; only the KLs are sampled, so that the noise of sampling vanishes with the code.
- To second order KL = 1/2 Var_p[delta] <= 1/2 E_p[delta^2], and the minimum of the bound is known class by class: a_kc
  = fidelity / (fidelity + stability) (E[p_c B B^T] + DAMPING)^-1 G_kc, E over all documents. Training starts there, and
  goes on by stochastic gradient steps in the metric of the same matrix, more strongly damped; the read-out by Adam.
- The read-out starts as a random projection with uncorrelated outputs of variance one. R_k is the whole complement of
  A_k (the paper: a random part of it); L is of centred y and M; activations are standardised.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tda.steering.operators import Operators, Snapshot, divergence, gain
from tda.task import chunks
from tda.tools.memory_limit import require

POSITIONS, PROBES = 8, 8  # sampled a subset for each KL, and for all subsets together for the linearity loss
DAMPING, STEP_DAMPING = 1e-3, 5e-2  # in units of a class's probability
READOUT_RATE = 0.01  # of the read-out's root mean square, a step
DOCUMENTS = 64  # whose slopes are held at once
SKETCH, GAMMA = 0.5, 1e-3  # q as a share of min(n, K); gamma in units of the mean diagonal of M~^T M~


class Weights(NamedTuple):
    """Weights of the three losses; 0 drops a loss. The linearity loss is in nats^2 and next to nothing at weight 1."""

    fidelity: float
    stability: float
    linearity: float


class Sampler:
    """Random target positions of the members of every subset, or of its complement."""

    def __init__(self, measure: np.ndarray, start: Tensor, generator: np.random.Generator) -> None:
        self.order = np.argsort(~measure, axis=1, kind="stable")  # members first
        self.inside = measure.sum(1)[:, None]
        self.start, self.generator = start.numpy(), generator

    def __call__(self, of_complement: bool) -> Tensor:
        """[K, POSITIONS]: a document of each subset (or complement) at random, then one of its positions."""
        first = self.inside if of_complement else 0
        among = self.order.shape[1] - self.inside if of_complement else self.inside
        u, v = self.generator.random((2, len(self.order), POSITIONS))
        documents = np.take_along_axis(self.order, first + (u * among).astype(int), 1)
        begin, end = self.start[documents], self.start[documents + 1]
        return torch.from_numpy(begin + (v * (end - begin)).astype(int))


def _check(measure: np.ndarray, rank: int, width: int, weights: Weights, rate: float) -> None:
    if not weights.fidelity + weights.stability:
        raise ValueError("stride: fidelity=0 and stability=0 leave the codes nothing to train on; keep one.")
    if measure.dtype != bool or measure.ndim != 2:
        raise ValueError(f"stride: measure is {measure.dtype} {measure.shape}; give bool [subsets, documents].")
    for what, bad in (("hold no document", ~measure.any(1)), ("hold every document", measure.all(1))):
        if bad.any():
            raise ValueError(
                f"stride: subsets {np.flatnonzero(bad)[:5].tolist()} of {len(measure)} {what}; each needs members and "
                f"a complement. Change degree or the number of subsets."
            )
    if not 1 <= rank <= width:
        raise ValueError(f"stride: rank={rank}, but the layer has {width} activations; choose 1 to {width}.")
    if not 0 < rate <= 1:
        raise ValueError(f"stride: rate={rate}; choose one above 0, at most 1.")


def train(
    shot: Snapshot,
    measure: np.ndarray,
    layer: int,
    rank: int,
    weights: Weights,
    steps: int = 30,
    rate: float = 0.05,
    seed: int = 0,
) -> Operators:
    """Operators for the subsets ``measure`` bool [K, n] of the documents of ``shot``. Memory: K x D x C x 4 bytes."""
    (K, n), width, classes = measure.shape, shot.states.shape[1], shot.probabilities.shape[1]
    _check(measure, rank, width, weights, rate)
    require(4.0 * K * width * classes, f"stride with {K} subsets and {classes} outputs", "Lower subsets.")
    total = shot.weights / n
    mean = total @ shot.states
    spread = (total @ (shot.states - mean).square()).sqrt()
    scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread, 0.0) * width**-0.5
    X = (shot.states - mean) * scale
    slopes = subset_slopes(X, shot, measure)
    psi = _uncorrelated(X, total, rank, seed)
    blocks = class_blocks(X @ psi, shot.probabilities, total)
    eye, pull = torch.eye(rank, dtype=X.dtype), weights.fidelity + weights.stability
    first = (psi.T @ slopes.flatten(1)).view(rank, K, classes).permute(2, 0, 1)
    codes = torch.linalg.solve(pull * (blocks + DAMPING * eye), weights.fidelity * first).permute(2, 1, 0).contiguous()
    if steps:
        metric = torch.linalg.inv(pull * (blocks + STEP_DAMPING * eye))
        sample = Sampler(measure, shot.start, np.random.default_rng([seed, 83]))
        # sketches and probes draw from their own numbers, so that dropping the linearity loss changes nothing else
        descend = Descent(X, shot, measure, slopes, weights, sample, np.random.default_rng([seed, 84]))
        psi, codes = descend(psi, codes, metric, steps, rate)
    return Operators(measure, layer, mean, scale, psi, codes)


class Descent:
    """Stochastic gradient steps on the three losses, codes and read-out together."""

    def __init__(self, X, shot: Snapshot, measure, slopes, weights: Weights, sample: Sampler, generator) -> None:
        self.X, self.shot, self.slopes, self.weights = X, shot, slopes, weights
        self.sample, self.generator = sample, generator
        self.M = torch.from_numpy(measure).to(X.dtype)

    def objective(self, psi: Tensor, codes: Tensor) -> Tensor:
        """A sample of the objective (without the frozen loss), summed over subsets; unbiased for the first two."""
        w, p = self.weights, self.shot.probabilities
        pulls = (psi.T @ self.slopes.flatten(1)).view(-1, *self.slopes.shape[1:])
        loss = -w.fidelity * (pulls * codes.transpose(0, 1)).sum()
        for weight, of_complement in ((w.fidelity, False), (w.stability, True)):
            if weight:
                at = self.sample(of_complement)
                delta = torch.bmm(self.X[at] @ psi, codes)
                loss = loss + weight * divergence(p[at], delta).mean(1).sum()
        if w.linearity:
            at = torch.from_numpy(self.generator.integers(len(p), size=PROBES))
            delta = torch.einsum("xr,krc->kxc", self.X[at] @ psi, codes)
            y = gain(p[at].expand(len(codes), -1, -1), self.shot.labels[at].expand(len(codes), -1), delta)
            loss = loss + w.linearity * linearity(y, sketch(self.M, self.generator))
        return loss

    def __call__(self, psi: Tensor, codes: Tensor, metric: Tensor, steps: int, rate: float) -> tuple[Tensor, Tensor]:
        """``(psi, codes)`` after ``steps``; the rate falls to 0. ``metric`` [C, r, r] multiplies gradients of codes."""
        psi, codes = psi.clone().requires_grad_(), codes.clone().requires_grad_()
        adam = torch.optim.Adam([psi], lr=READOUT_RATE * float(psi.detach().square().mean().sqrt()))
        falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        for step in range(steps):
            psi.grad, slope = torch.autograd.grad(self.objective(psi, codes), [psi, codes])
            adam.step()
            falling.step()
            with torch.no_grad():
                codes -= rate * (1 - step / steps) * torch.einsum("crs,ksc->krc", metric, slope)
        return psi.detach(), codes.detach()


def sketch(M: Tensor, generator: np.random.Generator) -> Tensor:
    """M~ = M R, centred, [K, q], with R [n, q] standard normal."""
    q = max(1, int(SKETCH * min(M.shape)))
    mixed = M @ torch.from_numpy(generator.standard_normal((M.shape[1], q))).to(M.dtype)
    return mixed - mixed.mean(0)


def linearity(y: Tensor, mixed: Tensor) -> Tensor:
    """Squared distance of centred effects y [K, x] from a ridge on ``mixed`` [K, q], summed over K, mean over x."""
    y, second = y - y.mean(0), mixed.T @ mixed
    gamma = GAMMA * second.diagonal().mean()
    explained = mixed @ torch.linalg.solve(second + gamma * torch.eye(len(second), dtype=y.dtype), mixed.T @ y)
    return (explained - y).square().sum(0).mean()


def subset_slopes(X: Tensor, shot: Snapshot, measure: np.ndarray) -> Tensor:
    """Minus the gradient of every subset's loss in a code whose read-out is X itself, at zero: the mean over its
    documents of the mean of x (e_y - p)^T over their targets, [D, K, C].
    """
    share = torch.from_numpy(measure / measure.sum(1, keepdims=True)).to(X.dtype)
    by_subset = torch.zeros(X.shape[1], len(share), shot.probabilities.shape[1], dtype=X.dtype)
    for part in chunks(measure.shape[1], DOCUMENTS):
        slopes = torch.stack([_document_slope(X, shot, i) for i in range(part.start, part.stop)], 1)
        for total, of_documents in zip(by_subset, slopes, strict=True):
            total.addmm_(share[:, part], of_documents)
    return by_subset


def _document_slope(X: Tensor, shot: Snapshot, i: int) -> Tensor:
    positions = slice(int(shot.start[i]), int(shot.start[i + 1]))
    residual = -shot.probabilities[positions]
    residual[range(len(residual)), shot.labels[positions]] += 1
    return X[positions].T @ residual / len(residual)


def class_blocks(B: Tensor, p: Tensor, weights: Tensor) -> Tensor:
    """E[p_c B B^T] for every class, [C, r, r]: second derivative of the bound 1/2 E_p[delta^2] in the class's codes."""
    products = (B[:, :, None] * B[:, None, :] * weights[:, None, None]).flatten(1)
    return (p.T @ products).view(-1, B.shape[1], B.shape[1])


def _uncorrelated(X: Tensor, weights: Tensor, rank: int, seed: int) -> Tensor:
    """A random projection [D, r] whose outputs have covariance one over the positions (zero in empty directions)."""
    psi = torch.from_numpy(np.random.default_rng([seed, 82]).standard_normal((X.shape[1], rank))).to(X.dtype)
    B = X @ psi
    values, vectors = torch.linalg.eigh((B * weights[:, None]).T @ B)
    return psi @ (vectors * torch.where(values > 1e-7 * values.max(), values.rsqrt(), 0.0)) @ vectors.T
