"""TRAK against traker, gradient dot and TracIn against captum, LDS against dattri, on one small digits network.

The setting is that of the anchors measured before: 200 training digits, 20 queries, a 64-16-10 network in full-batch
SGD, 60 models of random halves. Needs the optional packages ``traker``, ``captum`` and ``dattri``.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import torch
from classifiers import digits, mlp, run_of, task_of, train
from scipy.stats import spearmanr, t
from torch.utils.data import TensorDataset

from tda.attribution import attribute, projection, trak
from tda.evaluation.lds import lds

ORACLES = {"traker": "trak", "captum": "captum", "dattri": "dattri"}  # package -> module
N, QUERIES, SUBSETS, MEMBERS, DRAWS = 200, 20, 60, 5, 4


def missing() -> list[str]:
    """Packages of :data:`ORACLES` that are not installed."""
    return [package for package, module in ORACLES.items() if find_spec(module) is None]


def rows() -> list[dict]:
    """One dict a comparison: quantity, oracle, oracle_version, max_rel_diff, rank_correlation, tolerance, pass.

    ``max_rel_diff`` is the largest difference in units of the largest score; for scores whose scale the oracle does not
    fix (traker divides by a mean), after the best common factor. For two LDS of different random projections it is the
    far end of the 95 % interval of their difference.
    """
    task, data, asked = setting()
    return [
        _row("TRAK, one projection", "traker", *_same_projection(), 1e-4),
        _row("gradient dot", "captum", attribute("gradient_dot", task, data, asked), _tracin(task, last=True), 1e-5),
        _row("TracIn, 3 checkpoints", "captum", attribute("tracincp", task, data, asked), _tracin(task), 1e-5),
        _row("LDS of 20 queries", "dattri", *_lds_of_both(), 1e-6),
        _ensembles(),
    ]


@lru_cache(maxsize=1)
def setting():
    """``(task, train, queries)``; the run of the task has three checkpoints."""
    data, asked = digits(N, QUERIES)
    params, seen = train(mlp(0), data, checkpoints=(100, 200, 300))
    return task_of(mlp(0), params, run_of(seen, [10.0, 8.0, 5.0])), data, asked


@lru_cache(maxsize=1)
def truth() -> tuple[np.ndarray, np.ndarray]:
    """``(subsets bool [M, N], losses [M, 1, Q])`` of models trained on random halves."""
    task, data, asked = setting()
    rng = np.random.default_rng(1)
    subsets = np.stack([rng.permutation(N) < N // 2 for _ in range(SUBSETS)])
    losses = [task.loss_fn(train(mlp(0), data, keep=keep)[0], asked, "example").numpy() for keep in subsets]
    return subsets, np.stack(losses)[:, None, :]


def by_traker(tasks, projector) -> np.ndarray:
    """Scores [Q, N] of traker over the models of ``tasks``."""
    from trak import TRAKer

    _, data, asked = setting()
    model = mlp(0)
    with tempfile.TemporaryDirectory() as folder:
        oracle = TRAKer(
            model=model, task="image_classification", train_set_size=N, save_dir=folder, device="cpu",
            projector=projector, proj_dim=None, use_half_precision=False, logging_level=logging.ERROR,
        )  # fmt: skip
        for member, task in enumerate(tasks):
            oracle.load_checkpoint(task.params, model_id=member)
            oracle.featurize(batch=(data["inputs"], data["labels"]), num_samples=N)
        oracle.finalize_features()
        for member, task in enumerate(tasks):
            oracle.start_scoring_checkpoint("q", checkpoint=task.params, model_id=member, num_targets=QUERIES)
            oracle.score(batch=(asked["inputs"], asked["labels"]), num_samples=QUERIES)
        return np.array(oracle.finalize_scores("q")).T.copy()


def _same_projection() -> tuple[np.ndarray, np.ndarray]:
    """Both on one matrix: traker is handed ours, so that nothing but its own scale differs."""
    from trak.projectors import AbstractProjector
    from trak.utils import vectorize

    task, data, asked = setting()
    width = sum(p.numel() for p in task.params.values())

    class Ours(AbstractProjector):
        def __init__(self):
            super().__init__(width, 64, 0, "rademacher", "cpu")

        def project(self, grads, model_id):
            flat = vectorize(grads, device="cpu") if isinstance(grads, dict) else grads
            return projection.projector("rademacher", width, 64, 0)(flat)

    options = {"projection": "rademacher", "dimension": 64, "damping": 0.0}
    ours = attribute("trak", task, data, asked, **options)
    theirs = by_traker([task], Ours())
    return ours, theirs * (ours * theirs).sum() / np.square(theirs).sum()


def _ensembles() -> dict:
    """LDS of five-model TRAK at dimension 128, undamped, over draws of the projection: ours against traker's."""
    from trak.projectors import BasicProjector

    task, data, asked = setting()
    subsets, losses = truth()
    members = [replace(task, params=train(mlp(seed), data)[0]) for seed in range(MEMBERS)]
    width = sum(p.numel() for p in task.params.values())
    options = {"projection": "rademacher", "dimension": 128, "damping": 0.0}
    ours = [trak.ensemble(members, data, asked, seed=draw, **options) for draw in range(DRAWS)]
    theirs = [by_traker(members, BasicProjector(width, 128, 17 + draw, "rademacher", "cpu")) for draw in range(DRAWS)]
    values = [np.array([lds(one, subsets, losses).mean() for one in both]) for both in (ours, theirs)]
    gap, error = values[0].mean() - values[1].mean(), np.sqrt(sum(v.var(ddof=1) for v in values) / DRAWS)
    far = abs(gap) + t.ppf(0.975, 2 * DRAWS - 2) * error
    found = _row(
        f"TRAK-{MEMBERS}, LDS {values[0].mean():.3f} and {values[1].mean():.3f}", "traker", ours[0], theirs[0], 0.1
    )
    return found | {"max_rel_diff": float(far), "pass": bool(far <= 0.1)}


def _tracin(task, last: bool = False) -> np.ndarray:
    """TracIn of captum over the task's checkpoints, or (rate 1) over the last alone, [Q, N]."""
    from captum.influence import TracInCP

    _, data, asked = setting()
    model, chosen = mlp(0), task.run.checkpoints[-1:] if last else task.run.checkpoints

    def load(model, checkpoint):
        model.load_state_dict(checkpoint.params)
        return 1.0 if last else checkpoint.lr_sum

    oracle = TracInCP(
        model, TensorDataset(data["inputs"], data["labels"]), list(chosen), load,
        loss_fn=torch.nn.CrossEntropyLoss(reduction="none"), batch_size=50,
    )  # fmt: skip
    return oracle.influence((asked["inputs"], asked["labels"])).detach().numpy()


def _lds_of_both() -> tuple[np.ndarray, np.ndarray]:
    from dattri.metric import lds as oracle

    task, data, asked = setting()
    subsets, losses = truth()
    scores = attribute("gradient_dot", task, data, asked)
    members = torch.tensor(np.stack([np.flatnonzero(keep) for keep in subsets]))
    theirs, _ = oracle(torch.tensor(scores.T), (torch.tensor(-losses[:, 0]), members))
    return lds(scores, subsets, losses), theirs.numpy()


def _row(quantity: str, oracle: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> dict:
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return {
        "quantity": quantity,
        "oracle": oracle,
        "oracle_version": version(oracle),
        "max_rel_diff": difference,
        "rank_correlation": float(spearmanr(ours.ravel(), theirs.ravel()).statistic),
        "tolerance": tolerance,
        "pass": difference <= tolerance,
    }
