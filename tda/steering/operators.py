"""Steering operators: one shared read-out of the activations and a small code per subset, and what they change.

At a target position with probabilities p, activation h and label y, the frozen logits o are shifted by

    delta_k = B(h) a_k,        B(h) = ((h - mean) / scale) psi  [r],        a_k [r, C].

Nothing of o is needed but p = softmax(o), since log softmax(o + delta)[y] = log p_y + delta_y - log E_p[e^delta]. With
f = log E_p[e^delta] this gives all that is asked of a code:

    loss(o) - loss(o + delta) = delta_y - f,        KL(p || softmax(o + delta)) = f - E_p[delta].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tda.artefacts import load_arrays, require, save_arrays
from tda.steering.snapshot import Snapshot

BLOCK = 1 << 22  # shifted logits held at once: positions x subsets x classes
KIND = "stride_operators"


@dataclass(frozen=True)
class Operators:
    """K trained operators: ``measure`` bool [K, n] (which documents each stands for), the ``layer`` they read,
    ``mean`` and ``scale`` [D] of its activations, ``readout`` psi [D, r] and ``codes`` [K, r, C].
    """

    measure: np.ndarray
    layer: int
    mean: Tensor
    scale: Tensor
    readout: Tensor
    codes: Tensor

    def read(self, states: Tensor) -> Tensor:
        """B(h) of activations [..., D]: [..., r]."""
        return ((states - self.mean) * self.scale) @ self.readout

    def save(self, path: str | PathLike, about: Mapping | None = None) -> Path:
        """Write all of it as one artefact (``.npz`` and record); :func:`load` gives it back to the bit. ``about`` says
        what the operators are of, such as ``{"testbed": ..., "key": ...}``.
        """
        arrays = {name: getattr(self, name).numpy() for name in ("mean", "scale", "readout", "codes")}
        return save_arrays(
            path, arrays | {"measure": self.measure}, {**(about or {}), "kind": KIND, "layer": self.layer}
        )


def load(path: str | PathLike, expect: Mapping | None = None) -> Operators:
    """What :meth:`Operators.save` wrote. Raises :class:`tda.artefacts.ArtefactError` for a damaged file, and for one
    whose record does not say ``expect`` (fields of ``about``).
    """
    arrays, made = load_arrays(path, KIND, ("measure", "mean", "scale", "readout", "codes"), expect)
    measure, (wide, rank) = arrays.pop("measure"), arrays["readout"].shape[:1] + arrays["readout"].shape[-1:]
    fits = measure.dtype == bool and arrays["codes"].shape[:2] == (len(measure), rank)
    fits = fits and arrays["mean"].shape == arrays["scale"].shape == (wide,)
    fits = fits and all(found.dtype == np.float32 and np.isfinite(found).all() for found in arrays.values())
    require(fits, path, "its arrays do not fit each other or are not finite float32", "delete it and train again")
    return Operators(measure, made["layer"], **{name: torch.from_numpy(found) for name, found in arrays.items()})


def log_mean_exp(p: Tensor, delta: Tensor) -> Tensor:
    """log E_p[e^delta] over the last axis, exact to rounding for small shifts."""
    return torch.log1p((p * torch.expm1(delta)).sum(-1))


def gain(p: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
    """Frozen loss minus steered loss at every position, in nats: ``p`` and ``delta`` [..., C], ``labels`` [...]."""
    return delta.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - log_mean_exp(p, delta)


def divergence(p: Tensor, delta: Tensor) -> Tensor:
    """KL from the frozen to the steered distribution at every position, [...], in nats."""
    return log_mean_exp(p, delta) - (p * delta).sum(-1)


def effects(operators: Operators, shot: Snapshot) -> np.ndarray:
    """y [K, n], float64, in nats: frozen minus steered mean loss of every example under every code.

    All codes are applied to a block of positions at once. Raises ``ValueError`` for activations or outputs of another
    model, and for codes that have diverged.
    """
    K, rank, classes = operators.codes.shape
    if (shot.states.shape[1], shot.probabilities.shape[1]) != (len(operators.mean), classes):
        raise ValueError(
            f"stride: operators for {len(operators.mean)} activations and {classes} outputs, asked about "
            f"{shot.states.shape[1]} and {shot.probabilities.shape[1]}. Use them with the model they were trained on."
        )
    flat = operators.codes.permute(1, 0, 2).reshape(rank, K * classes)
    read, weights, example = operators.read(shot.states), shot.weights.double(), shot.example
    found = torch.zeros(len(shot.start) - 1, K, dtype=torch.float64)
    step = max(1, BLOCK // (K * classes))
    for first in range(0, len(read), step):
        part = slice(first, first + step)
        delta = (read[part] @ flat).view(-1, K, classes)
        shift = torch.log1p(torch.bmm(delta.expm1(), shot.probabilities[part].unsqueeze(-1)).squeeze(-1))
        own = delta.gather(-1, shot.labels[part].view(-1, 1, 1).expand(-1, K, 1)).squeeze(-1)
        found.index_add_(0, example[part], (own - shift).double() * weights[part, None])
    if not found.isfinite().all():
        raise ValueError("stride: some codes have diverged. Raise stability, or lower rate or steps.")
    return found.T.numpy()
