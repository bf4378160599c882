"""Small real data sets for a binary linear model, all shipped with scikit-learn: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn import datasets

NAMES = ("breast cancer", "wine", "iris", "diabetes", "digits 3-8", "digits 4-9", "digits 1-7")


@dataclass(frozen=True)
class Table:
    """Rows for training X [n, d], y [n] and held-out ones, and the raw features of both. Labels are 0 and 1."""

    X: np.ndarray
    y: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray
    raw: np.ndarray
    raw_held_out: np.ndarray


def load(name: str, share: float, seed: int) -> Table:
    """One of :data:`NAMES`: columns standardised on the training rows, constant ones dropped, a column of ones added.

    ``share`` of the rows, drawn at random, is for training. Labels: malignant or benign; the first wine against the
    others; the last two irises; disease progression above its median; the second digit of the pair. Raises ValueError.
    """
    if name not in NAMES:
        raise ValueError(f"table {name!r}; there are {', '.join(NAMES)}.")
    if not 0 < share < 1:
        raise ValueError(f"share {share} of the rows for training: give a number between 0 and 1.")
    raw, labels = _read(name)
    order = np.random.default_rng([seed, NAMES.index(name)]).permutation(len(labels))
    train, held = np.split(order, [round(share * len(labels))])
    centre, spread = raw[train].mean(0), raw[train].std(0)
    X = np.c_[(raw[:, spread > 0] - centre[spread > 0]) / spread[spread > 0], np.ones(len(raw))]
    return Table(X[train], labels[train], X[held], labels[held], raw[train], raw[held])


def _read(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name.startswith("digits"):
        pair = [int(name[-3]), int(name[-1])]
        raw, labels = datasets.load_digits(return_X_y=True)
        chosen = np.isin(labels, pair)
        return raw[chosen], (labels[chosen] == pair[1]).astype(float)
    loaders = {"breast cancer": datasets.load_breast_cancer, "wine": datasets.load_wine, "iris": datasets.load_iris}
    raw, labels = loaders.get(name, datasets.load_diabetes)(return_X_y=True)
    if name == "iris":
        raw, labels = raw[labels > 0], labels[labels > 0]
    return raw, (labels > (np.median(labels) if name == "diabetes" else labels.min())).astype(float)
