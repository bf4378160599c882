"""Two learners on handwritten digits: ridge regression on random features, and a fixed classifier seen through
masks.
"""

from __future__ import annotations

import numpy as np

from tda.testbeds.digits import CLASSES, flip, pixels
from tda.verification.learners import Learner, digest_of, register

CHUNK = 256  # models of one batched solve
OUTPUTS = ("margin", "loss")


def images(n: int, flips: float, data_seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``n`` training images [n, 64], their labels (a share ``flips`` of them wrong), and the other images as test
    points with true labels.
    """
    x, y = pixels()
    rng = np.random.default_rng([data_seed, 31])
    order = rng.permutation(len(x))
    if not 2 <= n <= len(x) - 100:
        raise ValueError(f"n={n} training images of {len(x)}; from 2 to {len(x) - 100}, so that test points are left.")
    given, _ = flip(y[order[:n]], flips, "uniform", rng)
    return x[order[:n]].astype(np.float64), given, x[order[n:]].astype(np.float64), y[order[n:]]


def asked(queries, available: int, output: str) -> list[int]:
    """The test points as a list of places. Raises ``ValueError`` for none, unknown ones, and an unknown ``output``."""
    queries = [queries] if isinstance(queries, int) else list(queries)
    if not queries or not all(isinstance(q, int) and 0 <= q < available for q in queries):
        raise ValueError(f"queries={queries}; give at least one place from 0 to {available - 1} of the test images.")
    if output not in OUTPUTS:
        raise ValueError(f"output={output!r}; one of {OUTPUTS}.")
    return queries


@register("ridge")
class Ridge(Learner):
    """Ridge regression of one-hot labels on ``features`` random tanh features, drawn by the training seed.

    Output: the score of the right class minus the largest other one (``margin``), or the squared error of the ten
    scores (``loss``). Deterministic to the bit, one solve of ``features`` unknowns a training.
    """

    def __init__(self, n=100, features=24, decay=1.0, queries=(0,), output="margin", flips=0.1, data_seed=0, bound=2.0):
        self.x, self.y, tests, truth = images(n, flips, data_seed)
        queries = asked(queries, len(tests), output)
        if not decay > 0 or features < 1 or not bound > 0:
            raise ValueError(f"decay={decay}, features={features}, bound={bound}; all must be positive.")
        self.options = {
            "n": n,
            "features": features,
            "decay": decay,
            "queries": queries,
            "output": output,
            "flips": flips,
        }
        self.options |= {"data_seed": data_seed, "bound": bound}
        self.n, self.points, self.bound = n, len(queries), float(bound)
        self.tests, self.truth, self.hot = tests[queries], truth[queries], np.eye(CLASSES)[self.y]

    def spec(self) -> dict:
        return {"learner": "ridge", "data": digest_of(self.x, self.y, self.tests, self.truth)} | self.options

    def _features(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng, width = np.random.default_rng([int(seed), 5]), self.options["features"]
        weights = rng.normal(size=(64, width)) / np.sqrt(8)
        offset = -0.3 * weights.sum(0)
        return np.tanh(self.x @ weights + offset), np.tanh(self.tests @ weights + offset)

    def run(self, subsets, seeds):
        values, models, known = [], [], {}
        for start in range(0, len(subsets), CHUNK):
            part, own = subsets[start : start + CHUNK], seeds[start : start + CHUNK]
            if len(set(own.tolist())) > 1:
                known = {}
            for seed in dict.fromkeys(own.tolist()):
                known.setdefault(seed, self._features(seed))
            train, test = (np.stack([known[s][side] for s in own.tolist()]) for side in (0, 1))
            kept = train * part[:, :, None]
            gram = kept.transpose(0, 2, 1) @ train + self.options["decay"] * np.eye(train.shape[2])
            solved = np.linalg.solve(gram, kept.transpose(0, 2, 1) @ self.hot)
            values.append(measured(test @ solved, self.truth, self.options["output"]))
            models += [model.tobytes() for model in solved]
        return np.concatenate(values), models


def measured(scores: np.ndarray, truth: np.ndarray, output: str) -> np.ndarray:
    """[M, Q] from scores [M, Q, 10]: margin (right class minus the best other), or squared error to the one-hot
    label.
    """
    hot = np.eye(CLASSES)[truth]
    if output == "loss":
        return np.square(scores - hot).sum(-1)
    return (scores * hot).sum(-1) - np.where(hot > 0, -np.inf, scores).max(-1)


@register("pixels")
class Pixels(Learner):
    """No training: a ridge classifier of 400 images is fixed, and what is left out are the 64 *pixels* of a test image.

    A pixel that is left out takes its mean value. f is a function on the Boolean cube like any other, so the same
    protocol certifies its best linear summary: a saliency map of the image.
    """

    def __init__(self, queries=(0,), output="margin", data_seed=0, bound=2.0):
        from sklearn.kernel_ridge import KernelRidge

        x, y, tests, truth = images(400, 0.0, data_seed)
        queries = asked(queries, len(tests), output)
        self.options = {"queries": queries, "output": output, "data_seed": data_seed, "bound": bound}
        self.n, self.points, self.bound = 64, len(queries), float(bound)
        self.mean, self.tests, self.truth = x.mean(0), tests[queries], truth[queries]
        self.classifier = KernelRidge(alpha=1.0, kernel="rbf", gamma=0.05).fit(x, np.eye(CLASSES)[y])

    def spec(self) -> dict:
        return {"learner": "pixels", "data": digest_of(self.mean, self.tests, self.truth)} | self.options

    exact = False  # matrix products over all masks at once

    def run(self, subsets, seeds):
        shown = np.where(subsets[:, None, :], self.tests, self.mean)
        scores = self.classifier.predict(shown.reshape(-1, 64)).reshape(len(subsets), self.points, CLASSES)
        values = measured(scores, self.truth, self.options["output"])
        return values, [row.tobytes() for row in values]
