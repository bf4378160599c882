"""TRAK against traker, on one projection and in ensembles with projections of their own; the LDS against dattri's."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from tda import attribute, classifiers
from tda.attribution import trak
from tda.evaluation.anchors import RECIPE
from tda.evaluation.lds import lds
from tda.many import stack, train_many, unstack
from tda.studies.conformance.comparison import Comparison, far_end, quietly, up_to_scale
from tda.studies.conformance.curvature import model_of
from tda.studies.conformance.settings import anchor, trained_mlp
from tda.task import Examples, Task, n_examples
from tda.tools import projection

MEMBERS, DRAWS, DIMENSION = 5, 4, 128
PUBLISHED = {"projection": "rademacher", "damping": 0.0}  # the published kernel


def comparisons() -> list[Comparison]:
    return [
        Comparison(
            "TRAK scores, one projection, MLP",
            "traker",
            lambda: attribute("trak", *trained_mlp(), dimension=64, **PUBLISHED),
            lambda: _alone_by_traker(*trained_mlp(), dimension=64),
            1e-4,
            up_to_scale,
        ),
        Comparison(
            f"LDS of TRAK, {MEMBERS} models, MLP",
            "traker",
            lambda: _of_draws(_ensemble),
            lambda: _of_draws(_ensemble_by_traker),
            0.05,
            far_end,
        ),
        Comparison(
            "LDS of 20 queries",
            "dattri",
            lambda: _lds(attribute("gradient_dot", *trained_mlp())),
            lambda: _lds_by_dattri(attribute("gradient_dot", *trained_mlp())),
            1e-6,
        ),
    ]


def _alone_by_traker(task: Task, train: Examples, queries: Examples, dimension: int) -> np.ndarray:
    return by_traker([task], train, queries, given(task, dimension))


def _ensemble(draw: int, tasks: Sequence[Task], train: Examples, queries: Examples) -> np.ndarray:
    return trak.ensemble(tasks, train, queries, seed=draw, dimension=DIMENSION, **PUBLISHED)


def _ensemble_by_traker(draw: int, tasks: Sequence[Task], train: Examples, queries: Examples) -> np.ndarray:
    return by_traker(tasks, train, queries, drawn(tasks[0], DIMENSION, 17 + draw))


def _of_draws(scores: Callable[..., np.ndarray]) -> np.ndarray:
    """LDS of ensembles with :data:`DRAWS` independent projections, [draws, Q]."""
    _, train, queries = trained_mlp()
    return np.stack([_lds(scores(draw, _members(), train, queries)) for draw in range(DRAWS)])


def _lds(scores: np.ndarray) -> np.ndarray:
    """On random halves, [Q]."""
    return lds(scores, anchor("MLP").subsets["half"], anchor("MLP").outputs["half"])


def _lds_by_dattri(scores: np.ndarray) -> np.ndarray:
    """dattri takes the indices of each subset's members, and outputs that are larger where the model is better."""
    from dattri.metric import lds as oracle

    members = torch.tensor(np.stack([np.flatnonzero(kept) for kept in anchor("MLP").subsets["half"]]))
    better = torch.tensor(-anchor("MLP").outputs["half"][:, 0])
    return oracle(torch.tensor(scores.T), (better, members))[0].numpy()


@cache
def _members() -> tuple[Task, ...]:
    """Models of the setting's recipe that differ in their initial weights."""
    task, train, _ = trained_mlp()
    starts = [classifiers.parameters(classifiers.mlp(1, 16, seed, "relu")) for seed in range(MEMBERS)]
    everyone = np.ones((MEMBERS, n_examples(train)), bool)
    ended = train_many(task.loss_fn, stack(starts), train, RECIPE, everyone, [0] * MEMBERS)
    return tuple(replace(task, params=params) for params in unstack(ended))


@quietly
def by_traker(tasks: Sequence[Task], train: Examples, queries: Examples, projector, batch: int = 0) -> np.ndarray:
    """traker's scores [Q, N] over models of one recipe (classifiers); ``projector``: :func:`given` or :func:`drawn`.

    ``batch``: examples at a time, 0 for all. Their unit is arbitrary: traker divides by a mean over its kernel.
    """
    from trak import TRAKer

    def batches(examples: Examples) -> list[tuple]:
        size = batch or n_examples(examples)
        return list(zip(examples["inputs"].split(size), examples["labels"].split(size), strict=True))

    with tempfile.TemporaryDirectory() as folder:
        oracle = TRAKer(
            model=model_of(tasks[0]),
            task="image_classification",
            train_set_size=n_examples(train),
            save_dir=folder,
            device="cpu",
            projector=projector,
            proj_dim=None,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        for member, task in enumerate(tasks):
            oracle.load_checkpoint(task.params, model_id=member)
            for part in batches(train):
                oracle.featurize(batch=part, num_samples=len(part[0]))
        oracle.finalize_features()
        for member, task in enumerate(tasks):
            count = n_examples(queries)
            oracle.start_scoring_checkpoint("q", checkpoint=task.params, model_id=member, num_targets=count)
            for part in batches(queries):
                oracle.score(batch=part, num_samples=len(part[0]))
        return np.array(oracle.finalize_scores("q")).T.copy()


def given(task: Task, dimension: int):
    """A projector for traker that is ours (the Rademacher projection of seed 0), so that nothing else can differ."""
    from trak.projectors import AbstractProjector
    from trak.utils import vectorize

    width = sum(p.numel() for p in task.params.values())
    project = projection.projector("rademacher", width, dimension, 0)

    class Ours(AbstractProjector):
        def __init__(self):
            super().__init__(width, dimension, 0, "rademacher", "cpu")

        def project(self, grads, model_id):
            return project(vectorize(grads, device="cpu") if isinstance(grads, dict) else grads)

    return Ours()


def drawn(task: Task, dimension: int, seed: int):
    """traker's own projector for the CPU."""
    from trak.projectors import BasicProjector

    return BasicProjector(sum(p.numel() for p in task.params.values()), dimension, seed, "rademacher", "cpu")
