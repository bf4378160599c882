"""TRAK against traker: scores on one projection, and the LDS of ensembles on projections of their own."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
from torch import Tensor

from tda import attribute, classifiers
from tda.attribution import trak
from tda.evaluation.anchors import RECIPE
from tda.evaluation.lds import lds
from tda.many import stack, train_many, unstack
from tda.studies.conformance.comparison import Comparison, far_end, quietly, up_to_scale
from tda.studies.conformance.ekfac import model_of
from tda.studies.conformance.settings import anchor
from tda.task import Examples, Task, n_examples
from tda.tools import projection

MEMBERS, DRAWS, DIMENSION = 5, 4, 128
KNOWN = {"projection": "rademacher", "damping": 0.0}  # the published kernel


def comparisons() -> list[Comparison]:
    return [
        Comparison("TRAK scores, one projection, MLP", "traker", _ours_once, _theirs_once, 1e-4, up_to_scale),
        Comparison(
            f"LDS of TRAK, {MEMBERS} models, MLP",
            "traker",
            partial(_lds, lambda *known, draw: trak.ensemble(*known, seed=draw, dimension=DIMENSION, **KNOWN)),
            partial(_lds, _theirs_drawn),
            0.05,
            far_end,
        ),
    ]


def _ours_once() -> np.ndarray:
    known = anchor("MLP")
    return attribute("trak", replace(known.task), known.train, known.queries, dimension=64, **KNOWN)


def _theirs_once() -> np.ndarray:
    known = anchor("MLP")
    return by_traker([known.task], known.train, known.queries, given(known.task, 64))


def _theirs_drawn(members: Sequence[Task], train: Examples, queries: Examples, draw: int) -> np.ndarray:
    return by_traker(members, train, queries, drawn(members[0], DIMENSION, 17 + draw))


def _lds(scores: Callable[..., np.ndarray]) -> np.ndarray:
    """LDS on random halves of ensembles with :data:`DRAWS` independent projections, [draws, Q]."""
    known = anchor("MLP")
    found = [scores(_members(), known.train, known.queries, draw=draw) for draw in range(DRAWS)]
    return np.stack([lds(one, known.subsets["half"], known.outputs["half"]) for one in found])


@cache
def _members() -> tuple[Task, ...]:
    """Models of the setting's recipe that differ in their initial weights."""
    known = anchor("MLP")
    starts = [classifiers.parameters(classifiers.mlp(1, 16, seed, "relu")) for seed in range(MEMBERS)]
    everyone = np.ones((MEMBERS, n_examples(known.train)), bool)
    ended = train_many(known.task.loss_fn, stack(starts), known.train, RECIPE, everyone, [0] * MEMBERS)
    return tuple(replace(known.task, params=params) for params in unstack(ended))


@quietly
def by_traker(tasks: Sequence[Task], train: Examples, queries: Examples, projector, batch: int = 0) -> np.ndarray:
    """traker's scores [Q, N] over models of one recipe (classifiers); ``projector``: :func:`given` or :func:`drawn`.

    ``batch``: examples at a time, 0 for all. Their unit is arbitrary: traker divides by a mean over its kernel.
    """
    from trak import TRAKer

    n, asked = n_examples(train), n_examples(queries)
    with tempfile.TemporaryDirectory() as folder:
        oracle = TRAKer(
            model=model_of(tasks[0]),
            task="image_classification",
            train_set_size=n,
            save_dir=folder,
            device="cpu",
            projector=projector,
            proj_dim=None,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        for member, task in enumerate(tasks):
            oracle.load_checkpoint(task.params, model_id=member)
            for part in _parts(train, batch):
                oracle.featurize(batch=part, num_samples=len(part[0]))
        oracle.finalize_features()
        for member, task in enumerate(tasks):
            oracle.start_scoring_checkpoint("q", checkpoint=task.params, model_id=member, num_targets=asked)
            for part in _parts(queries, batch):
                oracle.score(batch=part, num_samples=len(part[0]))
        return np.array(oracle.finalize_scores("q")).T.copy()


def _parts(examples: Examples, batch: int) -> list[tuple[Tensor, Tensor]]:
    size = batch or n_examples(examples)
    return list(zip(examples["inputs"].split(size), examples["labels"].split(size), strict=True))


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
