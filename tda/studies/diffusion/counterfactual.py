"""Take images away, train again, and look at what the model draws: the causal check of a ranking of concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from tda import denoisers
from tda.recipe import Recipe
from tda.studies.diffusion.recogniser import Recogniser
from tda.task import Examples, Params, Task
from tda.training import train


def matched(chosen: np.ndarray, groups: list[str], rng: np.random.Generator) -> np.ndarray:
    """As many images of every group at random as ``chosen`` [k] has of it, [k]; chosen ones may be among them."""
    labels = np.asarray(groups)
    drawn = [
        rng.choice(np.flatnonzero(labels == name), int((labels[chosen] == name).sum()), replace=False)
        for name in np.unique(labels[chosen])
    ]
    return np.concatenate(drawn)


def retrained(testbed, model, data: Examples, removed: np.ndarray, seed: int, epochs: int) -> Params:
    """Parameters after ``epochs`` epochs of the testbed's recipe, from those of ``model``, without the images
    ``removed`` [k], which are masked within the batches: runs of one seed differ in nothing else.
    """
    mask = np.ones(len(data["pixels"]), bool)
    mask[removed] = False
    recipe = replace(Recipe.of(testbed.settings["training"]), epochs=epochs)
    init = {k: v.detach() for k, v in model.named_parameters()}
    return train(testbed.modality.loss_function(model), init, data, recipe, seed, mask, "mask").params


def task_of(testbed, model, params: Params, name: str) -> Task:
    """A task that attribution methods take, of a denoiser that a study has trained."""
    loss_fn, outputs_fn = testbed.modality.loss_function(model), testbed.modality.outputs_function(model)
    return Task(name, loss_fn, params, model, outputs_fn=outputs_fn, output_loss="squared_error")


def paired_runs(testbed, removed: Mapping, seeds: Sequence[int], epochs: int) -> dict[tuple, Params]:
    """``(concept, name) -> parameters``, ``removed`` holding lists of images by name for every concept, and ``nothing``
    besides. The concepts take turns with the seeds; the full run of a seed is trained once.
    """
    full, runs = {}, {}
    for at, (concept, lists) in enumerate(removed.items()):
        seed = seeds[at % len(seeds)]
        model = testbed.modality.new_model(testbed, seed)
        for name, places in lists.items():
            runs[concept, name] = retrained(testbed, model, testbed.train, places, seed, epochs)
        if seed not in full:
            full[seed] = retrained(testbed, model, testbed.train, np.array([], int), seed, epochs)
        runs[concept, "nothing"] = full[seed]
    return runs


def samples(model, params: Params, conditions: Tensor, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """``(images, conditions)`` of ``each`` samples of every condition [B, 2], by the plain model (guidance 1); the
    initial noises are those of ``seed, seed + 1, ...`` for every condition and every model.
    """
    noise = denoisers.start([seed + i for i in range(each)], int(np.prod(model.shape)))
    told = conditions.repeat_interleave(each, 0)
    return denoisers.sample(model, params, noise.repeat(len(conditions), 1), told, guidance=1.0), told


def presence(recogniser: Recogniser, drawn: Tensor, told: Tensor, factor: int) -> Tensor:
    """Probability [B] that the recogniser sees in images what ``factor`` of their conditions says."""
    return recogniser.probabilities(drawn)[factor].gather(1, told[:, factor : factor + 1] - 1)[:, 0]
