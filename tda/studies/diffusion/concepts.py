"""What Concept-TRAK is asked: queries in and out of distribution, the cells of its design, precision by factor.

A concept is one value of one token of the condition (a colour, a shape). A training image has it or not, by its own
condition: precision@10 of a query for a factor is the share of the ten best images with the query's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tda.attribution.concept_trak import Options, query_gradients, train_gradients
from tda.evaluation.retrieval import precision_at_k
from tda.task import Examples, Task
from tda.testbeds import images
from tda.tools import denoised

SETS = {"validation": "tune", "held_out": "inside", "unseen": "outside", "rare": "exemplar"}
MOST = 40  # queries of a set: two of each trained combination of sprites
DAMPINGS = (1.0, 0.1, 10.0, 0.01, 100.0, 0.001, 1000.0)  # the middle first: it wins where several are equally good


@dataclass(frozen=True)
class Kernel:
    """``K_tt = V diag(values) V^T`` of N training images, and ``asked = K_qt V`` [Q, N] of queries."""

    asked: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    def scores(self, damping: float) -> np.ndarray:
        """``K_qt (K_tt + damping mean(values))^-1``, [Q, N]."""
        return self.asked / (self.values + damping * self.values.mean()) @ self.vectors.T

    def best(self, judge: Callable[[np.ndarray], float]) -> tuple[float, np.ndarray]:
        """``(damping, scores)`` of the one of :data:`DAMPINGS` whose scores ``judge`` gives the largest number."""
        tried = [(damping, self.scores(damping)) for damping in DAMPINGS]
        return max(tried, key=lambda one: judge(one[1]))


def questions(testbed) -> Examples:
    """New images of the testbed with their conditions and the list ``set``: ``tune`` and ``inside`` (combinations that
    are trained on), and of sprites ``outside`` (the diagonal) and ``exemplar`` (the rare colour).
    """
    kinds = np.array(testbed.probes["kind"])
    places = [i for kind in SETS for i in np.flatnonzero(kinds == kind)[:MOST].tolist()]
    return images.encode(testbed.probes.select(places)) | {"set": [SETS[kinds[i]] for i in places]}


def having(train: Examples, queries: Examples) -> np.ndarray:
    """[2, Q, N] bool: for both tokens, training images with the query's value."""
    pairs = zip(queries["condition"].numpy().T, train["condition"].numpy().T, strict=True)
    return np.stack([asked[:, None] == told for asked, told in pairs])


def precision(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Precision@10 of every query, [Q]."""
    return precision_at_k(scores, relevant, min(10, scores.shape[1]))


def kernels(
    task: Task, train: Examples, queries: Examples, sides: Mapping[str, Mapping], pairs: Sequence[tuple[str, str]],
    **states,
) -> dict[tuple[str, str], Kernel]:  # fmt: skip
    """For every pair (training loss, name of a query side) its kernel, in states of one kind (``inversion``,
    ``unit_norm``). ``sides``: the options of a query by name. The scores are those of ``concept_trak``; what pairs
    share is computed once.
    """
    used = dict.fromkeys(side for _, side in pairs)
    asked = {side: query_gradients(task, queries, Options(**states, **sides[side])) for side in used}
    found = {}
    for train_loss in dict.fromkeys(loss for loss, _ in pairs):
        documents = train_gradients(task, train, Options(**states, train_loss=train_loss).of_training())
        values, vectors = torch.linalg.eigh(denoised.inner(documents, documents))
        for side in (side for loss, side in pairs if loss == train_loss):
            rotated = denoised.inner(asked[side], documents) @ vectors
            parts = (rotated, values.clamp(min=0), vectors)
            found[train_loss, side] = Kernel(*(part.numpy() for part in parts))
    return found


def averaged(scores: np.ndarray, members: np.ndarray, others: bool = False) -> np.ndarray:
    """Scores [C, N] of gradients averaged over the queries of each concept, ``members`` [C, Q] bool; ``others``: less
    the average over all other queries. Scores are linear in the query's gradient, so the scores are averaged. A concept
    that no query has gets zeros (with ``others``, minus the average of all).
    """
    weights = members / members.sum(1, keepdims=True).clip(1)
    if others:
        weights = weights - ~members / (~members).sum(1, keepdims=True).clip(1)
    return weights @ scores


def main_effects(values: np.ndarray, parts: int) -> np.ndarray:
    """Of a full design, ``values`` [2, ..., 2, ...] with ``parts`` axes (0 without, 1 with the part): what each part
    adds, mean over the settings of all others, [parts, ...].
    """
    added = (np.diff(values, axis=axis).squeeze(axis) for axis in range(parts))
    return np.stack([one.mean(tuple(range(parts - 1))) for one in added])
