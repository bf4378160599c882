"""Our numbers beside other libraries', on the same model and data.

Each comparison returns a row ``{quantity, oracle, oracle_version, max_rel_diff, rank_correlation, tolerance, pass}``:
``max_rel_diff`` is the largest difference over the largest magnitude of the oracle's numbers. The oracles are optional
(``tests/requirements-oracles.txt``, installed with ``--no-deps``) and imported where they are used.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor
from torch.func import functional_call

from tda import attribute
from tda.attribution.gradients import matrix
from tda.lm import IGNORE
from tda.task import Examples, Params, Task, n_examples, take, tensors


def missing(*modules: str) -> str:
    """Why a comparison cannot run (the oracles that are not installed), or an empty string."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {absent}; pip install --no-deps -r tests/requirements-oracles.txt" if absent else ""


def rows() -> list[dict]:
    """Every comparison of this module whose oracle is installed, on digits: logistic, MLP, CNN."""
    found = []
    small, mlp = digits(()), digits()
    for setting in (small, mlp, images(*mlp[1:])):
        found += [ekfac_kronfluence(*setting)] if not missing("kronfluence") else []
        found += [ekfac_curvlinops(*setting)] if not missing("curvlinops") else []
    for curvature, solver in (("ggn", "exact"), ("ggn", "cg"), ("hessian", "exact")):
        found += [solve_curvlinops(*mlp, curvature, solver)] if not missing("curvlinops") else []
    found += [fault_dattri(*small)] if not missing("dattri") else []
    return found


def compare(quantity: str, oracle: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> dict:
    """The row of one comparison; ``oracle`` is the name of its distribution."""
    ours, theirs = (np.asarray(x, dtype=np.float64).ravel() for x in (ours, theirs))
    gap = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return {
        "quantity": quantity,
        "oracle": oracle,
        "oracle_version": importlib.metadata.version(oracle),
        "max_rel_diff": gap,
        "rank_correlation": float(spearmanr(ours, theirs).statistic),
        "tolerance": tolerance,
        "pass": bool(gap <= tolerance),
    }


def digits(hidden: tuple[int, ...] = (16,), n: int = 200, queries: int = 20) -> tuple[Task, Examples, Examples]:
    """``(task, train, queries)``: an MLP on scikit-learn's digits in float64, 300 full-batch SGD steps of 0.1 with
    momentum 0.9 and weight decay 0.01. No hidden layer: logistic regression.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[: n + queries]
    both = {"inputs": torch.from_numpy(pixels[order] / 16.0), "labels": torch.from_numpy(labels[order]).long()}
    torch.manual_seed(0)
    sizes, layers = (64, *hidden, 10), []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1]).double()
    train = take(both, slice(0, n))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(train["inputs"]), train["labels"]).backward()
        optimizer.step()
    kind = "digits, MLP" if hidden else "digits, logistic"
    return classifier(model, kind), train, take(both, slice(n, n + queries))


def images(train: Examples, queries: Examples) -> tuple[Task, Examples, Examples]:
    """The same digits as 8 x 8 images, and an untrained CNN of two convolutions (one strided and padded)."""
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(1, 4, 3, stride=2, padding=1), torch.nn.Conv2d(4, 6, 3)
    rest = [torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(24, 10)]
    model = torch.nn.Sequential(first, torch.nn.ReLU(), second, *rest).double()
    return classifier(model, "digits, CNN"), *(
        x | {"inputs": x["inputs"].reshape(-1, 1, 8, 8)} for x in (train, queries)
    )


def classifier(model: torch.nn.Module, name: str) -> Task:
    """A task around a module that maps ``inputs`` to logits [B, C]."""

    def outputs_fn(params: Params, batch: Examples) -> tuple[Tensor, Tensor]:
        return functional_call(model, params, (batch["inputs"],)).unsqueeze(1), batch["labels"].unsqueeze(1)

    def loss_fn(params: Params, batch: Examples, reduction: str = "mean") -> Tensor:
        logits, targets = outputs_fn(params, batch)
        logp = F.log_softmax(logits[:, 0], -1)
        example = -logp.gather(-1, targets).squeeze(-1)
        return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()

    return Task(name, loss_fn, {k: v.detach() for k, v in model.named_parameters()}, model, outputs_fn=outputs_fn)


def ekfac_kronfluence(task: Task, train: Examples, queries: Examples, damping: float = 1e-3) -> dict:
    """EK-FAC scores (empirical Fisher, absolute damping) against kronfluence, float64 factors; classifiers and language
    models.
    """
    ours = attribute("influence", task, train, queries, fisher="empirical", damping=damping, unit="absolute")
    theirs = _kronfluence(task, train, queries, damping)
    return compare(f"EK-FAC scores, {task.name}", "kronfluence", ours, theirs, 1e-3)


def _kronfluence(task: Task, train: Examples, queries: Examples, damping: float) -> np.ndarray:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task as KronfluenceTask

    model = copy.deepcopy(task.model)
    model.load_state_dict(task.params, strict=False)
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
            target = F.pad(batch["labels"][:, 1:] != IGNORE, (0, 1))
            return target.flip(1).cummax(1).values.flip(1).long()

    double = torch.float64
    known = FactorArguments(
        use_empirical_fisher=True, activation_covariance_dtype=double, gradient_covariance_dtype=double,
        per_sample_gradient_dtype=double, lambda_dtype=double,
    )  # fmt: skip
    asked = ScoreArguments(damping_factor=damping, per_sample_gradient_dtype=double, precondition_dtype=double,
                           score_dtype=double)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "ours", prepare_model(model, Ours()), Ours(), cpu=True, disable_tqdm=True, output_dir=folder
        )
        rows = {
            name: [tensors(take(examples, [i])) for i in range(n_examples(examples))]
            for name, examples in (("train", train), ("queries", queries))
        }
        data = {name: [{k: v[0] for k, v in row.items()} for row in part] for name, part in rows.items()}
        analyzer.fit_all_factors("f", data["train"], per_device_batch_size=50, factor_args=known)
        analyzer.compute_pairwise_scores(
            "s", "f", data["queries"], data["train"], 50, per_device_train_batch_size=50, score_args=asked
        )
        return analyzer.load_pairwise_scores("s")["all_modules"].numpy()


def _curvlinops(task: Task, train: Examples):
    """(their model, parameters, data, loss) for a classifier."""
    model = copy.deepcopy(task.model)
    model.load_state_dict(task.params, strict=False)
    loss = torch.nn.CrossEntropyLoss()
    return model, loss, list(model.parameters()), [(train["inputs"], train["labels"])]


def _their_scores(solve: Callable[[Tensor], Tensor], task: Task, train: Examples, queries: Examples) -> np.ndarray:
    """Scores from ``solve(v [P, Q]) -> [P, Q]``."""
    return (matrix(task, train) @ solve(matrix(task, queries).T.contiguous())).T.numpy()


def ekfac_curvlinops(task: Task, train: Examples, queries: Examples, damping: float = 1e-3) -> dict:
    """EK-FAC scores (empirical Fisher, absolute damping) against curvlinops, for a classifier of linear layers."""
    from curvlinops import EKFACLinearOperator, FisherType, KFACInverseLinearOperator

    ours = attribute("influence", task, train, queries, fisher="empirical", damping=damping, unit="absolute")
    known = {"fisher_type": FisherType.EMPIRICAL, "separate_weight_and_bias": False, "check_deterministic": False}
    operator = EKFACLinearOperator(*_curvlinops(task, train), **known)
    inverse = KFACInverseLinearOperator(operator, damping=damping, use_exact_damping=True)
    theirs = _their_scores(lambda v: inverse @ v, task, train, queries)
    return compare(f"EK-FAC scores, {task.name}", "curvlinops-for-pytorch", ours, theirs, 1e-3)


def solve_curvlinops(
    task: Task, train: Examples, queries: Examples, curvature: str = "ggn", solver: str = "exact", damping: float = 1e-2
) -> dict:
    """Scores with the exact ``ggn`` or ``hessian`` (absolute damping; the Hessian's negative eigenvalues kept) against
    a dense solve of curvlinops' matrix.
    """
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    kind = {"ggn": GGNLinearOperator, "hessian": HessianLinearOperator}[curvature]
    operator = kind(*_curvlinops(task, train), check_deterministic=False)
    eye = torch.eye(sum(p.numel() for p in task.params.values()), dtype=next(iter(task.params.values())).dtype)
    theirs = _their_scores(lambda v: torch.linalg.solve(operator @ eye + damping * eye, v), task, train, queries)
    known = {"curvature": curvature, "solver": solver, "iterations": 1000, "unit": "absolute", "indefinite": "keep"}
    ours = attribute("influence", task, train, queries, damping=damping, **known)
    return compare(f"{curvature} scores, {solver} solve, {task.name}", "curvlinops-for-pytorch", ours, theirs, 1e-3)


def faulty_ekfac(
    task: Task,
    train: Examples,
    queries: Examples,
    damping: float = 1e-3,
    transposed: bool = True,
    misaligned: bool = True,
) -> np.ndarray:
    """Scores [Q, N] of an EK-FAC with the two faults of a released library: eigenvectors applied the wrong way round
    (``transposed``), and a layer's gradient, its weights followed by its biases, cut into rows of in + 1 as if the
    biases sat at the ends of the rows (``misaligned``). With neither it is ours.

    The operator is still symmetric and positive, so nothing crashes and the scores look plausible.
    """
    from tda.curvature import factors, tracked

    asked, documents, layers = matrix(task, queries), matrix(task, train), tracked(task)
    scores = torch.zeros(len(asked), len(documents), dtype=asked.dtype)
    for name, (a, s) in factors(task, train, "empirical").items():
        u, w = (torch.linalg.eigh(factor, UPLO="U").eigenvectors.to(asked.dtype) for factor in (s, a))
        if transposed:
            u, w = u.T, w.T
        index, shape = layers[name].index, layers[name].shape
        values = (u.T @ documents[:, index].reshape(-1, *shape) @ w).square().mean(0)
        if misaligned:
            index = index.sort().values
        one, other = (u.T @ rows[:, index].reshape(-1, *shape) @ w for rows in (asked, documents))
        scores += (one / (values + damping)).flatten(1) @ other.flatten(1).T
    return scores.numpy()


def fault_dattri(task: Task, train: Examples, queries: Examples, damping: float = 1e-3) -> dict:
    """Both faults at once against dattri's EK-FAC (release 0.3.0): agreement says that they are what is wrong there.

    For logistic regression. Transposed eigenvectors depend on their arbitrary signs, which rounding flips in the deeper
    layers of a net; that is part of the fault.
    """
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    model = copy.deepcopy(task.model)
    model.load_state_dict(task.params, strict=False)

    def loss(params, batch):
        return F.cross_entropy(functional_call(model, params, (batch[0],)), batch[1])

    def loader(examples: Examples) -> DataLoader:
        return DataLoader(TensorDataset(examples["inputs"], examples["labels"]), n_examples(examples))

    known = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = IFAttributorEKFAC(known, damping=damping)
    attributor.cache(loader(train))
    theirs = attributor.attribute(loader(train), loader(queries)).detach().T.numpy()
    ours = faulty_ekfac(task, train, queries, damping)
    return compare(f"EK-FAC with two faults, {task.name}", "dattri", ours, theirs, 1e-3)
