"""EK-FAC scores against kronfluence and curvlinops: empirical Fisher, equal absolute damping, factors in float64."""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tda import attribute
from tda.output_loss import IGNORE
from tda.studies.conformance.comparison import Comparison, quietly
from tda.studies.conformance.settings import KINDS, setting
from tda.task import Examples, Task, n_examples, tensors
from tda.tools.gradients import matrix

DAMPING = 1e-3


def comparisons() -> list[Comparison]:
    """kronfluence on every setting; curvlinops on the classifiers."""
    asked = [(kind, "kronfluence", by_kronfluence) for kind in KINDS]
    asked += [(kind, "curvlinops", by_curvlinops) for kind in KINDS if kind != "GPT-NeoX"]
    return [
        Comparison(f"EK-FAC scores, {kind}", oracle, partial(_on, ours, kind), partial(_on, theirs, kind))
        for kind, oracle, theirs in asked
    ]


def _on(scores: Callable[..., np.ndarray], kind: str) -> np.ndarray:
    return scores(*setting(kind))


def ours(task: Task, train: Examples, queries: Examples, damping: float = DAMPING, chunk: int = 32) -> np.ndarray:
    """The package's scores in the setting that the oracles share, [Q, N]."""
    known = {"curvature": "ekfac", "fisher": "empirical", "unit": "absolute"}
    return attribute("influence", task, train, queries, damping=damping, chunk=chunk, **known)


@quietly
def by_kronfluence(
    task: Task,
    train: Examples,
    queries: Examples,
    damping: float = DAMPING,
    dtype: torch.dtype = torch.float64,
    batch: int = 50,
) -> np.ndarray:
    """kronfluence's scores [Q, N] of a classifier or a language model; ``dtype`` of its factors and scores."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task as KronfluenceTask

    model = model_of(task)
    words = "input_ids" in train

    class Ours(KronfluenceTask):
        def compute_train_loss(self, batch, model, sample=False):
            if words:
                logits, targets = model(input_ids=batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
            else:
                logits, targets = model(batch["inputs"]).unsqueeze(1), batch["labels"].unsqueeze(1)
            nll = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
            return (nll.sum(1) / (targets != IGNORE).sum(1)).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_attention_mask(self, batch):  # positions up to the last target, as ours
            if not words:
                return None
            target = F.pad(batch["labels"][:, 1:] != IGNORE, (0, 1))
            return target.flip(1).cummax(1).values.flip(1).long()

    known = FactorArguments(
        use_empirical_fisher=True,
        activation_covariance_dtype=dtype,
        gradient_covariance_dtype=dtype,
        per_sample_gradient_dtype=dtype,
        lambda_dtype=dtype,
    )
    wanted = ScoreArguments(
        damping_factor=damping, per_sample_gradient_dtype=dtype, precondition_dtype=dtype, score_dtype=dtype
    )
    data, asked = (
        [{k: v[i] for k, v in tensors(part).items()} for i in range(n_examples(part))] for part in (train, queries)
    )
    frozen = gc.get_freeze_count()
    if not frozen:  # it collects garbage ten times; what other packages hold is not to be searched at its expense
        gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_model(model, Ours())
        analyzer = Analyzer("ours", prepared, Ours(), cpu=True, disable_tqdm=True, output_dir=folder)
        analyzer.fit_all_factors("f", data, per_device_batch_size=batch, factor_args=known)
        analyzer.compute_pairwise_scores(
            "s", "f", asked, data, batch, per_device_train_batch_size=batch, score_args=wanted
        )
        scores = analyzer.load_pairwise_scores("s")["all_modules"].numpy()
    if not frozen:
        gc.unfreeze()
    return scores


def by_curvlinops(task: Task, train: Examples, queries: Examples, damping: float = DAMPING) -> np.ndarray:
    """Scores [Q, N] with curvlinops' inverse EK-FAC between our gradients, for a classifier."""
    from curvlinops import EKFACLinearOperator, FisherType, KFACInverseLinearOperator

    known = {"fisher_type": FisherType.EMPIRICAL, "separate_weight_and_bias": False, "check_deterministic": False}
    inverse = KFACInverseLinearOperator(
        EKFACLinearOperator(*for_curvlinops(task, train), **known), damping=damping, use_exact_damping=True
    )
    return between(lambda v: inverse @ v, task, train, queries)


def model_of(task: Task) -> torch.nn.Module:
    """A copy of the task's model at its parameters."""
    model = copy.deepcopy(task.model)
    model.load_state_dict(task.params, strict=False)
    return model


def for_curvlinops(task: Task, train: Examples) -> tuple:
    """The arguments of a curvlinops operator over a classifier: (model, loss, parameters, data)."""
    model = model_of(task)
    return model, torch.nn.CrossEntropyLoss(), list(model.parameters()), [(train["inputs"], train["labels"])]


def between(solve: Callable[[Tensor], Tensor], task: Task, train: Examples, queries: Examples) -> np.ndarray:
    """Scores [Q, N] from ``solve(v [P, Q]) -> [P, Q]``."""
    return (matrix(task, train) @ solve(matrix(task, queries).T.contiguous())).T.numpy()
