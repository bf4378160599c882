"""Small images and a denoiser of them: the testbeds `sprites`, `digits_diffusion` and `photos`.

A query is an image with its condition: one that was held out, or one that a larger model *generated*, trained once on
the same images. Its main loss is the denoising loss over timesteps where images differ (``model.t_min`` to
``model.t_max``), the second one, ``uniform``, over timesteps of the whole schedule; noise is shared by all images and
all models. The triple that attribution is about: *behaviour* is this loss, *intervention* is training without some
images, *training process* is the recipe of the config, with draws that depend on seed, epoch and image alone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from tda import denoisers, lm, queries
from tda.artefacts import key_of, load_sealed, save_sealed
from tda.recipe import Recipe
from tda.task import Examples, Params
from tda.testbeds import pictures
from tda.testbeds.modality import Modality, counted_flops, kind
from tda.training import train

NETS = {"film_mlp": denoisers.FilmMLP, "film_conv": denoisers.FilmConv}


def encode(rows) -> Examples:
    """``pixels`` [N, D] in [-1, 1], ``condition`` [N, 2], and the list ``entity`` of some rows."""
    pixels, condition = (np.array(rows[name], np.int64) for name in ("pixels", "condition"))
    scaled = torch.from_numpy((pixels / 127.5 - 1).astype(np.float32))
    return {"pixels": scaled, "condition": torch.from_numpy(condition), "entity": list(rows["entity"])}


def stored(images: torch.Tensor) -> list[list[int]]:
    """Images [B, D] in [-1, 1] as the whole numbers 0 to 255 that rows hold."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().int().tolist()


@functools.lru_cache(maxsize=16)
def part(testbed, name: str) -> Examples:
    """The probes of one kind: held_out, validation, of sprites also unseen and rare."""
    return encode(testbed.probes.select([i for i, found in enumerate(testbed.probes["kind"]) if found == name]))


def generator(testbed) -> tuple[denoisers.Denoiser, Params]:
    """The larger model whose samples are queries: of the profile's seed, trained once for a corpus and recipe."""
    settings, seed = testbed.settings["model"]["generator"], testbed.config["seed"]
    modality, recipe = testbed.modality, Recipe.of(testbed.settings["training"] | {"epochs": settings["epochs"]})
    model = modality.net(testbed, "film_mlp", settings["width"], settings["depth"], "noise", seed)
    data = [hashlib.sha256(testbed.train[name].numpy().tobytes()).hexdigest() for name in ("pixels", "condition")]
    key = key_of([settings, vars(recipe), seed, model.dropout, data])
    about, path = {"kind": "generator", "key": key}, testbed.folder.parent / "generators" / f"{key}.npz"
    if not path.exists():
        init = {k: v.detach() for k, v in model.named_parameters()}
        params = train(modality.loss_function(model), init, testbed.train, recipe, seed).params
        save_sealed(path, {k: v.numpy() for k, v in params.items()}, about)
    arrays, _ = load_sealed(path, "generator", about, "delete this file and run again")
    return model, {k: torch.from_numpy(arrays[k]) for k, _ in model.named_parameters()}


@kind("sprites", "digit_images", "photos")
class Images(Modality):
    """Denoised images; the work of training is counted in images."""

    MODELS, OPTIMIZERS, OUTPUT_LOSS = tuple(NETS), ("adamw_averaged",), "squared_error"
    CODE = ("task.py", "denoisers.py", "denoiser_nets.py", "lm.py", "recipe.py", "training.py", "retrain.py",
            "testbeds/modality.py", "testbeds/images.py", "testbeds/pictures.py")  # fmt: skip
    SECOND = "uniform"
    GENERATES = GROUPS = True
    SOURCES = {"sprites": pictures.sprites, "digit_images": pictures.digits, "photos": pictures.photos}
    SHAPES = {"sprites": (3, 12, 12), "digit_images": (1, 8, 8), "photos": (3, 12, 12)}
    TOKENS = {"sprites": (6, 5), "digit_images": (10, 0), "photos": (2, 3)}
    FACTORS = {"sprites": ("colour", "shape"), "digit_images": ("digit", ""), "photos": ("photo", "third")}

    part = staticmethod(part)

    def build(self, testbed) -> dict:
        settings, rng = testbed.settings["corpus"], np.random.default_rng([testbed.config["seed"], 71])
        documents, probes = self.SOURCES[settings["kind"]](settings, rng)
        documents = [documents[i] for i in rng.permutation(len(documents))]
        documents = [{"doc_id": f"image_{i:04d}", **row} for i, row in enumerate(documents)]
        probes = [{"query_id": f"{row['kind']}_{i:03d}", **row} for i, row in enumerate(probes)]
        counts = {name: sum(row["planted"] == name for row in documents) for name in ("copy", "exemplar")}
        report = {"images": len(documents), **counts, "conditions": len({row["entity"] for row in documents})}
        report |= {name: sum(row["kind"] == name for row in probes) for name in sorted({row["kind"] for row in probes})}
        return {"documents": documents, "probes": probes, "report": report}

    def check(self, settings: dict) -> Iterator[tuple[str, Any, str]]:
        yield from super().check(settings)
        corpus, model = settings["corpus"], settings["model"]
        if corpus["kind"] == "digit_images" and sum(corpus[k] for k in ("train", "held_out", "validation")) > 1797:
            yield "corpus.train", corpus["train"], "train, held_out and validation share 1797 images"
        if model["kind"] in NETS and model["t_min"] > model["t_max"]:
            yield "model.t_min", model["t_min"], f"it must be at most t_max ({model['t_max']})"
        asked, there = settings["queries"]["held_out"], corpus["held_out"]
        if asked > there:
            yield "queries.held_out", asked, f"it must be at most corpus.held_out ({there})"

    def examples(self, testbed) -> Examples:
        return encode(testbed.documents) | {"doc_id": list(testbed.documents["doc_id"])}

    def net(self, testbed, name: str, width: int, depth: int, prediction: str, seed: int) -> denoisers.Denoiser:
        """A net for images of this corpus with fresh weights, and what its loss draws (``main``, ``uniform``)."""
        corpus, model = testbed.settings["corpus"]["kind"], testbed.settings["model"]
        torch.manual_seed(seed)
        net = NETS[name](self.SHAPES[corpus], self.TOKENS[corpus], width, depth, prediction).eval()
        pixels, count = int(np.prod(net.shape)), model["timesteps"]
        chosen = np.linspace(model["t_min"], model["t_max"], count).round()
        evenly = ((np.arange(count) + 0.5) * denoisers.STEPS / count).round()
        draws = (denoisers.draws(times, model["noises"], pixels, testbed.config["seed"]) for times in (chosen, evenly))
        net.main, net.uniform = draws
        net.dropout = model["dropout"]
        return net

    def new_model(self, testbed, seed: int) -> denoisers.Denoiser:
        model = testbed.settings["model"]
        return self.net(testbed, model["kind"], model["width"], model["depth"], model["prediction"], seed)

    def loss_function(self, model: denoisers.Denoiser) -> Callable[..., torch.Tensor]:
        loss_fn = denoisers.denoising_loss(model, *model.main, model.dropout)
        loss_fn.uniform = model.uniform
        return loss_fn

    def outputs_function(self, model: denoisers.Denoiser) -> Callable:
        return denoisers.outputs_function(model, *model.main)

    def encoders(self, model: denoisers.Denoiser, params: Params) -> dict:
        """``group`` (the condition in words), ``features`` (what the last layer sees of an image, mean over draws)."""
        features = functools.partial(denoisers.features, model, params, model.main)
        return {"group": lambda x: x["entity"], "features": features, "pixels": lambda x: x["pixels"].numpy()}

    def flops(self, model: denoisers.Denoiser, tokens: int) -> float:
        """As the library counts them for one image and draw."""
        image = {"pixels": torch.zeros(1, int(np.prod(model.shape))), "condition": torch.zeros(1, 2, dtype=torch.long)}
        return counted_flops(self.loss_function(model), model, denoisers.redrawn(image, 0, 0, 0.0)) * tokens

    def knowledge(self, testbed, model: denoisers.Denoiser, params: Params) -> dict[str, float]:
        return {}

    def held_out(self, testbed) -> Examples:
        return part(testbed, "validation")

    def choose_queries(self, testbed, model: denoisers.Denoiser, params: Params) -> tuple[list[dict], dict]:
        """Held-out images, and samples of :func:`generator` for conditions that are trained on, each set split into
        ``tune`` and ``test`` by the config's seed. Under ``bank: shipped`` those that the shipped models were asked.
        """
        if shipped := queries.shipped(testbed):
            return shipped
        wanted, rng = testbed.settings["queries"], np.random.default_rng([testbed.config["seed"], 17])
        held = [row for row in testbed.probes if row["kind"] == "held_out"]
        found = [held[i] | {"query_set": "held_out"} for i in sorted(rng.permutation(len(held))[: wanted["held_out"]])]
        common = {row["entity"]: row for row in testbed.documents if row["planted"] != "exemplar"}
        names = itertools.islice(itertools.cycle(rng.permutation(sorted(common))), wanted["generated"])
        made = [
            common[name] | {"query_id": f"generated_{i:03d}", "query_set": "generated"} for i, name in enumerate(names)
        ]
        if made:
            net, of_generator = generator(testbed)
            noise = denoisers.start([len(found) + i for i in range(len(made))], int(np.prod(net.shape)))
            condition = torch.tensor([row["condition"] for row in made])
            images = stored(denoisers.sample(net, of_generator, noise, condition))
            made = [row | {"pixels": image} for row, image in zip(made, images, strict=True)]
        rows = []
        for chosen in (found, made):
            tune = set(rng.permutation(len(chosen))[: round(wanted["tune"] * len(chosen))].tolist())
            for i, row in enumerate(chosen):
                rows.append(_query(row, "tune" if i in tune else "test", len(rows)))
        return rows, {"queries": {"held_out": len(found), "generated": len(made)}}

    def encode_queries(self, testbed, rows: list[dict]) -> Examples:
        """Also the lists ``query_id``, ``query_set``, ``split`` and ``noise_seed`` (of a sample's initial noise)."""
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return encode(columns) | {k: columns[k] for k in ("query_id", "query_set", "split", "noise_seed")}

    def targets(self, asked: Examples) -> np.ndarray:
        return np.full(len(asked["pixels"]), asked["pixels"].shape[1])

    def outputs(self, loss_fn, params: Params, asked: Examples) -> np.ndarray:
        uniform = asked | denoisers.own(loss_fn.uniform, len(asked["pixels"]))
        return np.stack([lm.losses(loss_fn, params, examples) for examples in (asked, uniform)])

    def relevance(self, testbed, rows: list[dict]) -> np.ndarray:
        """Training images of the query's condition."""
        entity = np.array(testbed.documents["entity"])
        return np.array([entity == row["entity"] for row in rows])

    def strata(self, testbed) -> list[str]:
        """Every condition is halved; the exemplars are one stratum."""
        return [row["planted"] if row["planted"] == "exemplar" else row["entity"] for row in testbed.documents]

    def groups(self, testbed, rows: list[dict]) -> list[dict[str, list[int]]]:
        """All images of one value of a factor (a colour, a shape), which queries have, too."""
        pools = []
        for place, factor in enumerate(name for name in self.FACTORS[testbed.settings["corpus"]["kind"]] if name):
            asked, pool = {row[("attribute", "value")[place]] for row in rows}, {}
            for i, words in enumerate(testbed.documents["factors"]):
                if words[place] in asked:
                    pool.setdefault(f"{factor} {words[place]}", []).append(i)
            pools.append(pool)
        return pools


def _query(row: dict, split: str, noise_seed: int) -> dict:
    first, second = row["factors"]
    texts = {"prompt": row["entity"], "target": "", "text": "", "work": "", "attribute": first, "value": second}
    kept = {name: row[name] for name in ("query_id", "query_set", "entity", "pixels", "condition")}
    return kept | texts | {"split": split, "noise_seed": noise_seed}
