"""What is trained: functions of (subset, seed) that both parties can repeat to the bit, and one whose truth is known.

A learner turns subsets into outputs in [-1, 1] (divided by its ``bound`` and clipped), one a test point, and a SHA-256
fingerprint of every trained model. Its :meth:`Learner.spec` is plain JSON, from which the other party builds the same
learner (:func:`tda.studies.verification.statement.build`) and which binds the data by hash. Learners count their
trainings: that is the cost of a party.
"""

from __future__ import annotations

import abc
import hashlib
from dataclasses import dataclass

import numpy as np

from tda.artefacts import key_of
from tda.studies.verification.cube import Attribution, check_probability, check_subsets, standard


@dataclass(frozen=True)
class Outputs:
    """``values`` [M, Q] in [-1, 1] and ``fingerprints`` [M, 32] uint8 of M trained models."""

    values: np.ndarray
    fingerprints: np.ndarray


class Learner(abc.ABC):
    """``n`` examples, ``points`` test points, ``bound`` > 0 in the output's own unit; ``exact`` if a model has the same
    bits whatever it is trained beside; ``kind``, ``data`` and ``options``: what it was made with.
    """

    kind: str
    data: tuple[np.ndarray, ...] = ()
    n: int
    points: int
    bound: float
    options: dict
    exact: bool = True
    trainings: int = 0

    def spec(self) -> dict:
        """JSON that makes this learner again: its kind (key ``learner``), its data by hash, its options."""
        data = {"data": digest_of(*self.data)} if self.data else {}
        return {"learner": self.kind} | data | self.options

    @abc.abstractmethod
    def run(self, subsets: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
        """Outputs [M, Q] in their own unit and the bytes of every model."""

    def task(self, seed: int):
        """``(task, train, queries)`` of the model trained on everything, for methods of the registry."""
        raise ValueError(f"learner {self.kind!r} has no gradients; fit its attribution by regression.")

    def __call__(self, subsets: np.ndarray, seeds: np.ndarray) -> Outputs:
        """Train on every subset [M, n] bool with its seed [M] >= 0.

        Raises ``ValueError`` for another shape, negative seeds, and outputs that are not finite.
        """
        subsets, seeds = check_subsets(subsets, self.n), np.asarray(seeds)
        if seeds.shape != (len(subsets),) or seeds.dtype.kind not in "iu" or (seeds < 0).any():
            raise ValueError(
                f"seeds {seeds.dtype} {seeds.shape} for {len(subsets)} subsets; one integer >= 0 a subset."
            )
        if not len(subsets):
            return Outputs(np.zeros((0, self.points)), np.zeros((0, 32), np.uint8))
        values, models = self.run(subsets, seeds)
        if not np.isfinite(values).all():
            bad = np.unique(np.argwhere(~np.isfinite(values))[:, 0])[:5].tolist()
            raise ValueError(
                f"learner {self.kind!r}: outputs of subsets {bad} are not finite. Lower its step size or "
                f"raise its regularisation."
            )
        self.trainings += len(subsets)
        digests = b"".join(hashlib.sha256(model).digest() for model in models)
        clipped = np.clip(values / self.bound, -1.0, 1.0)
        return Outputs(clipped, np.frombuffer(digests, np.uint8).reshape(-1, 32))


class Remembering:
    """A learner that trains the same call once. For experiments in which several claims meet the same coins; a party of
    a real session has no use for it.
    """

    def __init__(self, learner: Learner):
        self.learner, self.known = learner, {}

    def __getattr__(self, name: str):
        return getattr(self.learner, name)

    def __call__(self, subsets: np.ndarray, seeds: np.ndarray) -> Outputs:
        key = digest_of(np.asarray(subsets), np.asarray(seeds))
        if key not in self.known:
            self.known[key] = self.learner(subsets, seeds)
        return self.known[key]


def digest_of(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays, with their types and shapes."""
    return key_of([(str(a.dtype), a.shape, hashlib.sha256(np.ascontiguousarray(a)).hexdigest()) for a in arrays])


class Polynomial(Learner):
    """A function with known Fourier weights: no training at all, exact truth.

    f = sum_T f_T phi_T in the p-biased basis, all outputs with the same sets T: every single example, and at most
    ``monomials`` (``n`` unless given) random pairs, triples and quadruples, with ``energy`` = (B_0, B_1, B_2, ...) up
    to degree 4 and signs and sizes from ``seed``. ``concentration`` >= 0 makes the linear part uneven (0: all sizes
    alike, 2: few examples carry it). ``noise``: variance of a uniform number that depends on the training seed only.
    The bound is sum |f_T| max |phi_T|, so nothing is ever clipped.
    """

    kind = "polynomial"

    def __init__(
        self, n, p=0.5, energy=(0.0, 1.0, 0.1), points=1, seed=0, concentration=0.0, noise=0.0, monomials=None
    ):  # fmt: skip
        energy = [float(e) for e in energy]
        if n < 4 or not 2 <= len(energy) <= 5 or min(energy) < 0 or not sum(energy) > 0 or points < 1 or noise < 0:
            raise ValueError(
                f"n={n}, energy={energy}, points={points}, noise={noise}; n >= 4, two to five energies >= 0 of degree "
                f"0, 1, ..., not all zero, points >= 1 and noise >= 0."
            )
        self.n, self.p, self.points, self.noise = n, check_probability(p), points, float(noise)
        self.options = {"n": n, "p": p, "energy": energy, "points": points, "seed": seed}
        self.options |= {"concentration": concentration, "noise": noise, "monomials": monomials}
        rng, self.terms = np.random.default_rng([seed, 31]), []
        for degree, strength in enumerate(energy):
            members = [()] if degree == 0 else [(i,) for i in range(n)]
            if degree > 1:
                chosen = [sorted(rng.choice(n, degree, replace=False).tolist()) for _ in range(monomials or n)]
                members = sorted({tuple(one) for one in chosen})
            size = rng.normal(size=(points, len(members)))
            if degree == 1:
                size *= np.exp(concentration * rng.normal(size=len(members)))
            size *= np.sqrt(strength / np.square(size).sum(1, keepdims=True))
            self.terms.append((np.array(members, np.int64).reshape(len(members), degree), size))
        top = max(np.sqrt((1 - p) / p), np.sqrt(p / (1 - p)))
        sums = sum(np.abs(size).sum(1) * top**degree for degree, (_, size) in enumerate(self.terms))
        self.bound = float(sums.max() + np.sqrt(3 * self.noise))

    def weights(self) -> np.ndarray:
        """[K, Q]: B_0, B_1, ... of the scaled outputs."""
        return np.stack([np.square(size).sum(1) for _, size in self.terms]) / self.bound**2

    def best(self, seed: int | None = None) -> Attribution:
        """The best linear predictor of the scaled outputs: scores 2 f_i / sigma. With a ``seed``, of the trainings
        with it (noise is then part of the mean).
        """
        slope = 1 / np.sqrt(self.p * (1 - self.p))
        mean = self.terms[0][1][:, 0] + (0.0 if seed is None else self._shift(np.array([seed]))[0])
        return Attribution(self.terms[1][1] * slope / self.bound, mean / self.bound, self.p)

    def _shift(self, seeds: np.ndarray) -> np.ndarray:
        """The seeds' part of the output [M], uniform with variance ``noise``."""
        drawn = np.array([np.random.default_rng([int(s), 7]).random() for s in seeds])
        return np.sqrt(12 * self.noise) * (drawn - 0.5)

    def run(self, subsets, seeds):
        # One column more than needed, and sums term by term along the first axis: then a value does not depend on how
        # many subsets there are. (numpy adds up a single column in another order; a matrix product may, too.)
        z = np.ascontiguousarray(standard(np.concatenate([subsets, subsets[:1]]), self.p).T)
        values = np.zeros((len(subsets) + 1, self.points))
        for members, size in self.terms:
            phi = np.ones((len(members), len(values)))
            for column in members.T:
                phi *= z[column]
            values += np.stack([(phi * row[:, None]).sum(0) for row in size], axis=1)
        values = values[:-1]
        if self.noise:
            values += self._shift(seeds)[:, None]
        return values, [row.tobytes() for row in values]
