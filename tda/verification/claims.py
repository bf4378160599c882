"""What is claimed: an attribution with its constant; and how an honest prover comes by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Lasso, lasso_path

from tda.verification.learners import Learner
from tda.verification.subsets import check_probability, check_subsets, draw


@dataclass(frozen=True)
class Attribution:
    """Scores [Q, N] and mean [Q], in units of the output: f_q(S) is predicted as mean_q + sum_i scores[q, i] (1[i in
    S] - p).

    ``scores[q, i]`` is what including example i adds to output q; ``mean`` is the expected output. Raises
    ``ValueError`` for shapes that do not fit and numbers that are not finite.
    """

    scores: np.ndarray
    mean: np.ndarray
    p: float

    def __post_init__(self) -> None:
        scores, mean = np.asarray(self.scores, np.float64), np.asarray(self.mean, np.float64)
        if scores.ndim != 2 or mean.shape != scores.shape[:1]:
            raise ValueError(f"scores {scores.shape} and mean {mean.shape}; they must be [Q, N] and [Q].")
        if not np.isfinite(scores).all() or not np.isfinite(mean).all():
            raise ValueError("an attribution holds NaN or infinite numbers; every score and mean must be finite.")
        check_probability(self.p)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "mean", mean)

    def predict(self, subsets: np.ndarray) -> np.ndarray:
        """[M, Q] float64."""
        subsets = check_subsets(subsets, self.scores.shape[1])
        return self.mean + (subsets - self.p) @ self.scores.T

    def error(self, best: Attribution) -> np.ndarray:
        """err [Q] = MSE - best MSE = (mean - mean*)^2 + p (1 - p) |scores - scores*|^2 against the ``best``
        predictor.
        """
        gap = np.square(self.scores - best.scores).sum(1)
        return np.square(self.mean - best.mean) + self.p * (1 - self.p) * gap


def least_squares(subsets: np.ndarray, outputs: np.ndarray, p: float, rng=None) -> Attribution:
    """Regression of ``outputs`` [M, Q] on inclusion, with a constant. Its error is about B_{>=2} N / (M - N) for M >
    N.
    """
    design = np.column_stack([np.ones(len(subsets)), subsets - p])
    found = np.linalg.lstsq(design, outputs, rcond=None)[0]
    return Attribution(found[1:].T, found[0], p)


def empirical_influence(subsets: np.ndarray, outputs: np.ndarray, p: float, rng=None) -> Attribution:
    """Mean output with example i minus mean output without it, of the same subsets for all i (0 if one side is empty).

    Not a regression: the noise of each score is the *whole* variance of f, so the error is about Var f N / M.
    """
    count = subsets.sum(0)[None]
    total, inside = outputs.sum(0)[:, None], outputs.T @ subsets
    both = (count > 0) & (count < len(subsets))
    without = (total - inside) / np.maximum(len(subsets) - count, 1)
    return Attribution(np.where(both, inside / np.maximum(count, 1) - without, 0.0), outputs.mean(0), p)


def lasso(subsets: np.ndarray, outputs: np.ndarray, p: float, rng: np.random.Generator) -> Attribution:
    """L1-penalised regression, as in datamodels; the penalty is chosen on a held-out quarter of the subsets."""
    design, held = subsets - p, rng.permutation(len(subsets)) < len(subsets) // 4
    scores, means = [], []
    for y in outputs.T:
        centre, shift = design[~held].mean(0), y[~held].mean()
        penalties, paths, _ = lasso_path(design[~held] - centre, y[~held] - shift, alphas=30, eps=1e-2)
        wrong = np.square((design[held] - centre) @ paths + shift - y[held][:, None]).mean(0)
        fitted = Lasso(alpha=penalties[wrong.argmin()], max_iter=5000).fit(design, y)
        scores.append(fitted.coef_)
        means.append(fitted.intercept_)
    return Attribution(np.array(scores), np.array(means), p)


FITS: dict[str, Callable[..., Attribution]] = {
    "least_squares": least_squares,
    "empirical_influence": empirical_influence,
    "lasso": lasso,
}


def fit(method: str, learner: Learner, budget: int, p: float, rng: np.random.Generator, seed: int = 0) -> Attribution:
    """An attribution from ``budget`` trainings of the learner on random subsets, all with this seed."""
    if method not in FITS:
        raise ValueError(f"method {method!r}; fitted are {sorted(FITS)}, anything in the registry by `registered`.")
    if budget < 4:
        raise ValueError(f"budget={budget}; a prover needs at least 4 trainings.")
    subsets = draw(rng, budget, learner.n, p)
    return FITS[method](subsets, learner(subsets, np.full(budget, seed)).values, p, rng)


def registered(
    method: str, learner: Learner, budget: int, p: float, rng: np.random.Generator, seed: int = 0, **options
) -> Attribution:
    """An attribution by any method of the registry (``tda.attribute``) on the learner's task, brought to the output's
    unit.

    The method gives the direction of the scores from one trained model; the constant and the scale are a regression of
    the outputs of ``budget`` trainings on the sum of the scores over each subset, two numbers an output.
    """
    from tda.attribution import attribute

    task, train, queries = learner.task(seed)
    raw = np.asarray(attribute(method, task, train, queries, **options), np.float64)
    subsets = draw(rng, budget, learner.n, p)
    outputs = learner(subsets, np.full(budget, seed)).values
    sums = (subsets - p) @ raw.T
    centred = sums - sums.mean(0)
    scale = (centred * outputs).sum(0) / np.maximum(np.square(centred).sum(0), np.finfo(float).tiny)
    return Attribution(raw * scale[:, None], outputs.mean(0) - scale * sums.mean(0), p)
