"""Two faults of an EK-FAC that was released, reproduced: what a conformance suite is for."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call

from tda.curvature import factors, tracked
from tda.studies.conformance.comparison import Comparison, quietly
from tda.studies.conformance.curvature import DAMPING, model_of
from tda.studies.conformance.settings import setting
from tda.task import Examples, Task, n_examples
from tda.tools.gradients import matrix


def comparisons() -> list[Comparison]:
    """Agreement says that the two faults are all that is wrong there. On logistic regression: transposed eigenvectors
    depend on their arbitrary signs, which rounding flips in the deeper layers of a net. That is part of the fault.
    """
    return [
        Comparison(
            "EK-FAC with two faults, logistic",
            "dattri",
            lambda: faulty_ekfac(*setting("logistic")),
            lambda: by_dattri(*setting("logistic")),
        )
    ]


def faulty_ekfac(
    task: Task,
    train: Examples,
    queries: Examples,
    damping: float = DAMPING,
    transposed: bool = True,
    misaligned: bool = True,
) -> np.ndarray:
    """Scores [Q, N] of an EK-FAC with the two faults of dattri's release 0.3.0: eigenvectors applied the wrong way
    round (``transposed``), and a layer's gradient, its weights followed by its biases, cut into rows of in + 1 as if
    the biases sat at the ends of the rows (``misaligned``). With neither it is ours.

    The operator is still symmetric and positive, so nothing crashes and the scores look plausible.
    """
    queried, documents, layers = matrix(task, queries), matrix(task, train), tracked(task)
    scores = torch.zeros(len(queried), len(documents), dtype=queried.dtype)
    for name, (a, s) in factors(task, train, "empirical").items():
        u, w = (torch.linalg.eigh(factor, UPLO="U").eigenvectors.to(queried.dtype) for factor in (s, a))
        if transposed:
            u, w = u.T, w.T
        index, shape = layers[name].index, layers[name].shape
        values = (u.T @ documents[:, index].reshape(-1, *shape) @ w).square().mean(0)
        if misaligned:
            index = index.sort().values
        of_queries, of_documents = (u.T @ rows[:, index].reshape(-1, *shape) @ w for rows in (queried, documents))
        scores += (of_queries / (values + damping)).flatten(1) @ of_documents.flatten(1).T
    return scores.numpy()


@quietly
def by_dattri(task: Task, train: Examples, queries: Examples) -> np.ndarray:
    """The scores [Q, N] of dattri's EK-FAC, as installed."""
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    model = model_of(task)

    def loss(params, batch):
        return F.cross_entropy(functional_call(model, params, (batch[0],)), batch[1])

    def loader(examples: Examples) -> DataLoader:
        return DataLoader(TensorDataset(examples["inputs"], examples["labels"]), n_examples(examples))

    known = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = IFAttributorEKFAC(known, damping=DAMPING)
    attributor.cache(loader(train))
    return attributor.attribute(loader(train), loader(queries)).detach().T.numpy()
