"""The linear datamodelling score against dattri's."""

from __future__ import annotations

import numpy as np
import torch

from tda import attribute
from tda.evaluation.lds import lds
from tda.studies.conformance.comparison import Comparison
from tda.studies.conformance.settings import anchor


def comparisons() -> list[Comparison]:
    return [Comparison("LDS of 20 queries", "dattri", ours, by_dattri, 1e-6)]


def scores() -> np.ndarray:
    """What is measured by both: gradient dot products [Q, N]."""
    known = anchor("MLP")
    return attribute("gradient_dot", known.task, known.train, known.queries)


def ours() -> np.ndarray:
    known = anchor("MLP")
    return lds(scores(), known.subsets["half"], known.outputs["half"])


def by_dattri() -> np.ndarray:
    """dattri takes the indices of each subset's members, and outputs that are larger where the model is better."""
    from dattri.metric import lds as oracle

    known = anchor("MLP")
    members = torch.tensor(np.stack([np.flatnonzero(kept) for kept in known.subsets["half"]]))
    better = torch.tensor(-known.outputs["half"][:, 0])
    return oracle(torch.tensor(scores().T), (better, members))[0].numpy()
