"""Learners on handwritten digits: ridge regression on random features, small classifiers by gradient descent, and a
fixed classifier seen through masks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.func import functional_call, vmap

from tda import classifiers
from tda.many import AT_ONCE, stack, train_many, unstack
from tda.studies.verification.learner import Learner
from tda.task import Params, Task
from tda.testbeds.digits import CLASSES, flip, pixels
from tda.training import Recipe

CHUNK = 256  # ridge models of one batched solve
OUTPUTS = ("margin", "loss")
RECIPE = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "schedule": "constant"}


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


def places_of(queries, available: int, output: str) -> list[int]:
    """The test points as a list of places. Raises ``ValueError`` for none, unknown ones, and an unknown ``output``."""
    queries = [queries] if isinstance(queries, int) else list(queries)
    if not queries or not all(isinstance(q, int) and 0 <= q < available for q in queries):
        raise ValueError(f"queries={queries}; give at least one place from 0 to {available - 1} of the test images.")
    if output not in OUTPUTS:
        raise ValueError(f"output={output!r}; one of {OUTPUTS}.")
    return queries


def margin_or_loss(scores: np.ndarray, truth: np.ndarray, output: str) -> np.ndarray:
    """[M, Q] from scores [M, Q, 10]: margin (right class minus the best other), or squared error to the one-hot
    label.
    """
    hot = np.eye(CLASSES)[truth]
    if output == "loss":
        return np.square(scores - hot).sum(-1)
    return (scores * hot).sum(-1) - np.where(hot > 0, -np.inf, scores).max(-1)


class Ridge(Learner):
    """Ridge regression of one-hot labels on ``features`` random tanh features, drawn by the training seed.

    Output: the score of the right class minus the largest other one (``margin``), or the squared error of the ten
    scores (``loss``). Deterministic to the bit, one solve of ``features`` unknowns a training.
    """

    kind = "ridge"

    def __init__(self, n=100, features=24, decay=1.0, queries=(0,), output="margin", flips=0.1, data_seed=0, bound=2.0):
        self.x, self.y, tests, truth = images(n, flips, data_seed)
        queries = places_of(queries, len(tests), output)
        if not decay > 0 or features < 1 or not bound > 0:
            raise ValueError(f"decay={decay}, features={features}, bound={bound}; all must be positive.")
        self.options = {"n": n, "features": features, "decay": decay, "queries": queries, "output": output}
        self.options |= {"flips": flips, "data_seed": data_seed, "bound": bound}
        self.n, self.points, self.bound = n, len(queries), float(bound)
        self.tests, self.truth, self.hot = tests[queries], truth[queries], np.eye(CLASSES)[self.y]
        self.data = self.x, self.y, self.tests, self.truth

    def features(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Features of the training and of the test images."""
        rng, width = np.random.default_rng([int(seed), 5]), self.options["features"]
        weights = rng.normal(size=(64, width)) / np.sqrt(8)
        offset = -0.3 * weights.sum(0)
        return np.tanh(self.x @ weights + offset), np.tanh(self.tests @ weights + offset)

    def run(self, subsets, seeds):
        values, models, known = [], [], {}
        for start in range(0, len(subsets), CHUNK):
            masks, own = subsets[start : start + CHUNK], seeds[start : start + CHUNK].tolist()
            if len(set(own)) > 1:
                known = {}  # many seeds: the features of one chunk at a time
            for seed in dict.fromkeys(own):
                known.setdefault(seed, self.features(seed))
            train, test = (np.stack([known[seed][side] for seed in own]) for side in (0, 1))
            kept = train * masks[:, :, None]
            gram = kept.transpose(0, 2, 1) @ train + self.options["decay"] * np.eye(train.shape[2])
            solved = np.linalg.solve(gram, kept.transpose(0, 2, 1) @ self.hot)
            values.append(margin_or_loss(test @ solved, self.truth, self.options["output"]))
            models += [model.tobytes() for model in solved]
        return np.concatenate(values), models


class Pixels(Learner):
    """No training: a ridge classifier of 400 images is fixed, and what is left out are the 64 *pixels* of a test image.

    A pixel that is left out takes its mean value. f is a function on the Boolean cube like any other, so the same
    protocol certifies its best linear summary: a saliency map of the image.
    """

    kind = "pixels"
    exact = False  # matrix products over all masks at once

    def __init__(self, queries=(0,), output="margin", data_seed=0, bound=2.0):
        from sklearn.kernel_ridge import KernelRidge

        x, y, tests, truth = images(400, 0.0, data_seed)
        queries = places_of(queries, len(tests), output)
        self.options = {"queries": queries, "output": output, "data_seed": data_seed, "bound": bound}
        self.n, self.points, self.bound = 64, len(queries), float(bound)
        self.mean, self.tests, self.truth = x.mean(0), tests[queries], truth[queries]
        self.data = self.mean, self.tests, self.truth
        self.classifier = KernelRidge(alpha=1.0, kernel="rbf", gamma=0.05).fit(x, np.eye(CLASSES)[y])

    def run(self, subsets, seeds):
        shown = np.where(subsets[:, None, :], self.tests, self.mean)
        scores = self.classifier.predict(shown.reshape(-1, 64)).reshape(len(subsets), self.points, CLASSES)
        values = margin_or_loss(scores, self.truth, self.options["output"])
        return values, [row.tobytes() for row in values]


class Network(Learner):
    """A perceptron on digits (``depth=0``: logistic regression) by SGD; the seed fixes initialisation and data order.

    Output: log-odds of the right class (``margin``) or its cross-entropy (``loss``). ``at_once`` models are trained
    side by side; a stacked model has the bits of the model trained alone only if ``at_once=1``.
    """

    kind = "network"

    def __init__(
        self, n=100, depth=0, width=8, epochs=10, batch=25, lr=0.2, queries=(0,), output="margin", flips=0.1,
        data_seed=0, bound=10.0, at_once=AT_ONCE,
    ):  # fmt: skip
        x, y, tests, truth = images(n, flips, data_seed)
        queries = places_of(queries, len(tests), output)
        self.options = {"n": n, "depth": depth, "width": width, "epochs": epochs, "batch": batch, "lr": lr}
        self.options |= {"queries": queries, "output": output, "flips": flips, "data_seed": data_seed}
        self.options |= {"bound": bound, "at_once": at_once}
        self.n, self.points, self.bound, self.exact = n, len(queries), float(bound), at_once == 1
        self.train = {"inputs": torch.from_numpy(x).float(), "labels": torch.from_numpy(y)}
        self.queries = {"inputs": torch.from_numpy(tests[queries]).float(), "labels": torch.from_numpy(truth[queries])}
        self.data = tuple(part[k].numpy() for part in (self.train, self.queries) for k in ("inputs", "labels"))
        self.net = classifiers.mlp(depth, width, 0)
        self.loss_fn = classifiers.loss_function(self.net)
        self.recipe = Recipe.of(RECIPE | {"epochs": epochs, "batch": batch, "lr": lr})

    def fitted(self, subsets: np.ndarray, seeds: np.ndarray) -> Params:
        """Stacked parameters. An empty subset leaves the initial ones."""
        initial = {seed: self._initial(seed) for seed in dict.fromkeys(seeds.tolist())}
        params = stack([initial[seed] for seed in seeds.tolist()])
        rows = np.flatnonzero(subsets.any(1))
        if len(rows):
            start = {k: v[torch.from_numpy(rows)] for k, v in params.items()}
            masks, own, chunk = subsets[rows], seeds[rows].tolist(), self.options["at_once"]
            trained = train_many(self.loss_fn, start, self.train, self.recipe, masks, own, chunk=chunk)
            for name, value in params.items():
                value[torch.from_numpy(rows)] = trained[name]
        return params

    def _initial(self, seed: int) -> Params:
        depth, width = self.options["depth"], self.options["width"]
        return classifiers.parameters(classifiers.mlp(depth, width, seed % 2**32))

    def run(self, subsets, seeds):
        params = self.fitted(subsets, seeds)
        with torch.no_grad():
            logits = vmap(lambda model: functional_call(self.net, model, (self.queries["inputs"],)))(params)
        labels = self.queries["labels"].expand(len(subsets), -1)
        if self.options["output"] == "margin":
            values = log_odds(logits, labels)
        else:
            values = -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        models = [b"".join(v.numpy().tobytes() for v in model.values()) for model in unstack(params)]
        return values.numpy().astype(np.float64), models

    def task(self, seed: int):
        params = unstack(self.fitted(np.ones((1, self.n), bool), np.array([seed])))[0]
        outputs = classifiers.outputs_function(self.net)
        return Task("digits", self.loss_fn, params, self.net, outputs_fn=outputs), self.train, self.queries


def log_odds(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p - log(1 - p) of the label: its logit minus the log-sum-exp of the others; logits [..., C], labels [...]."""
    own = torch.nn.functional.one_hot(labels, logits.shape[-1]).bool()
    return logits[own].view(labels.shape) - logits.masked_fill(own, -torch.inf).logsumexp(-1)
