"""Influence against kronfluence and curvlinops: with EK-FAC, and with whole matrices. Equal absolute damping, empirical
Fisher, and everything that the libraries compute in float64.
"""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tda import attribute
from tda.lm import IGNORE
from tda.studies.conformance.comparison import Comparison, quietly
from tda.studies.conformance.settings import KINDS, setting
from tda.task import Examples, Task, n_examples, tensors
from tda.tools.gradients import matrix

DAMPING, MATRIX_DAMPING = 1e-3, 1e-2  # of EK-FAC, and of a whole matrix
NAMES = {"ggn": "Gauss-Newton", "hessian": "Hessian"}


def comparisons() -> list[Comparison]:
    """EK-FAC by kronfluence on every setting and by curvlinops on the classifiers, then the solves."""
    classifiers = [kind for kind in KINDS if kind != "GPT-NeoX"]
    return [
        *[_of_ekfac(kind, "kronfluence", ekfac_by_kronfluence) for kind in KINDS],
        Comparison(
            "EK-FAC, mask of all tokens, GPT-NeoX",
            "kronfluence",
            lambda: ekfac(*setting("GPT-NeoX")),
            lambda: ekfac_by_kronfluence(*setting("GPT-NeoX"), last_token=True),
            tolerance=0.05,  # another convention: of the order of one token in a document of 10 to 20
        ),
        *[_of_ekfac(kind, "curvlinops", ekfac_by_curvlinops) for kind in classifiers],
        _of_solve("ggn", "exact", "MLP"),
        _of_solve("ggn", "cg", "MLP"),
        _of_solve("ggn", "exact", "CNN"),
        _of_solve("hessian", "exact", "MLP"),
        _of_solve("hessian", "cg", "logistic"),
    ]


def _of_ekfac(kind: str, oracle: str, theirs: Callable[..., np.ndarray]) -> Comparison:
    name = f"EK-FAC scores, {kind}"
    return Comparison(name, oracle, lambda: ekfac(*setting(kind)), lambda: theirs(*setting(kind)))


def _of_solve(curvature: str, solver: str, kind: str) -> Comparison:
    return Comparison(
        f"{NAMES[curvature]} scores, {solver} solve, {kind}",
        "curvlinops",
        lambda: solved(curvature, solver, kind),
        lambda: solved_by_curvlinops(curvature, kind),
    )


def ekfac(task: Task, train: Examples, queries: Examples, damping: float = DAMPING, chunk: int = 32) -> np.ndarray:
    """The package's EK-FAC influence in the setting that the oracles share, [Q, N]."""
    options = {"curvature": "ekfac", "fisher": "empirical", "unit": "absolute", "damping": damping, "chunk": chunk}
    return attribute("influence", task, train, queries, **options)


@quietly
def ekfac_by_kronfluence(
    task: Task,
    train: Examples,
    queries: Examples,
    damping: float = DAMPING,
    dtype: torch.dtype = torch.float64,
    batch: int = 50,
    last_token: bool = False,
) -> np.ndarray:
    """kronfluence's scores [Q, N] of a classifier or a language model; ``dtype`` of its factors and scores.

    last_token: count the last token of a document among the inputs of a layer, as the attention mask of a tokenizer
    does. No target comes after it, so it has no gradient; ours, and the default here, leaves it out.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task as KronfluenceTask

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

        def get_attention_mask(self, batch):
            if not words:
                return None
            if last_token:
                return (batch["labels"] != IGNORE).long()
            target = F.pad(batch["labels"][:, 1:] != IGNORE, (0, 1))
            return target.flip(1).cummax(1).values.flip(1).long()

    factors = ("activation_covariance", "gradient_covariance", "per_sample_gradient", "lambda")
    fitting = FactorArguments(use_empirical_fisher=True, **{f"{name}_dtype": dtype for name in factors})
    parts = ("per_sample_gradient", "precondition", "score")
    scoring = ScoreArguments(damping_factor=damping, **{f"{name}_dtype": dtype for name in parts})
    thawed = not gc.get_freeze_count()
    if thawed:  # it collects garbage ten times; what other packages hold is not to be searched at its expense
        gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_model(model_of(task), Ours())
        analyzer = Analyzer("ours", prepared, Ours(), cpu=True, disable_tqdm=True, output_dir=folder)
        analyzer.fit_all_factors("f", _listed(train), per_device_batch_size=batch, factor_args=fitting)
        data = _listed(queries), _listed(train)
        analyzer.compute_pairwise_scores("s", "f", *data, batch, per_device_train_batch_size=batch, score_args=scoring)
        scores = analyzer.load_pairwise_scores("s")["all_modules"].numpy()
    if thawed:
        gc.unfreeze()
    return scores


def ekfac_by_curvlinops(task: Task, train: Examples, queries: Examples, damping: float = DAMPING) -> np.ndarray:
    """Scores [Q, N] with curvlinops' inverse EK-FAC between our gradients, for a classifier."""
    from curvlinops import EKFACLinearOperator, FisherType, KFACInverseLinearOperator

    options = {"fisher_type": FisherType.EMPIRICAL, "separate_weight_and_bias": False, "check_deterministic": False}
    operator = EKFACLinearOperator(*_for_curvlinops(task, train), **options)
    inverse = KFACInverseLinearOperator(operator, damping=damping, use_exact_damping=True)
    return _between(lambda v: inverse @ v, task, train, queries)


def solved(curvature: str, solver: str, kind: str) -> np.ndarray:
    """The package's scores; the negative eigenvalues of a Hessian are kept, as a dense solve keeps them."""
    options = {"curvature": curvature, "solver": solver, "unit": "absolute", "indefinite": "keep"}
    return attribute("influence", *setting(kind), damping=MATRIX_DAMPING, iterations=1000, **options)


def solved_by_curvlinops(curvature: str, kind: str) -> np.ndarray:
    """Scores [Q, N] with curvlinops' matrix, written down and solved densely, between our gradients."""
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    task, train, queries = setting(kind)
    operator = {"ggn": GGNLinearOperator, "hessian": HessianLinearOperator}[curvature]
    eye = torch.eye(sum(p.numel() for p in task.params.values()), dtype=torch.float64)
    written = operator(*_for_curvlinops(task, train), check_deterministic=False) @ eye
    return _between(lambda v: torch.linalg.solve(written + MATRIX_DAMPING * eye, v), task, train, queries)


def model_of(task: Task) -> torch.nn.Module:
    """A copy of the task's model at its parameters."""
    model = copy.deepcopy(task.model)
    model.load_state_dict(task.params, strict=False)
    return model


def _listed(examples: Examples) -> list[dict[str, Tensor]]:
    return [{k: v[i] for k, v in tensors(examples).items()} for i in range(n_examples(examples))]


def _for_curvlinops(task: Task, train: Examples) -> tuple:
    """The arguments of an operator over a classifier: (model, loss, parameters, data)."""
    model = model_of(task)
    return model, torch.nn.CrossEntropyLoss(), list(model.parameters()), [(train["inputs"], train["labels"])]


def _between(solve: Callable[[Tensor], Tensor], task: Task, train: Examples, queries: Examples) -> np.ndarray:
    """Scores [Q, N] from ``solve(v [P, Q]) -> [P, Q]``."""
    return (matrix(task, train) @ solve(matrix(task, queries).T.contiguous())).T.numpy()
