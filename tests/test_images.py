"""Testbeds of small images: what is drawn, who is a query, the bank of denoisers, and what is refused."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tda.testbeds
from tda import artefacts, attribute, bank, config, denoisers, lm, models, retrain
from tda.artefacts import ArtefactError
from tda.recipe import Recipe
from tda.studies.diffusion import show
from tda.task import n_examples
from tda.testbeds import images, pictures
from tda.training import train

TINY = {
    "corpus": {"kind": "sprites", "each": 4, "copies": 3, "exemplars": 6, "held_out": 22, "validation": 8, "unseen": 2},
    "model": {"kind": "film_mlp", "width": 16, "depth": 1, "timesteps": 3, "noises": 2,
              "generator": {"width": 24, "depth": 2, "epochs": 4}},
    "training": {"optimizer": "adamw_averaged", "seeds": 1, "epochs": 4, "batch": 16, "lr": 0.01, "checkpoints": 2},
    "queries": {"held_out": 8, "generated": 8},
    "designs": {"half": {"subsets": 3, "seeds": 2}, "leave_group": {"groups": 4, "seeds": 2}},
    "evaluation": {"tailpatch_queries": 0},
}  # fmt: skip


def make(folder, changes=None, **top):
    settings = copy.deepcopy(TINY)
    for section, keys in (changes or {}).items():
        settings[section] = {**settings[section], **keys}
    loaded = config.load("smoke", {"testbeds": {"sprites": settings}, **top})
    tda.testbeds.check_kinds(loaded)
    return tda.testbeds.Testbed("sprites", loaded, loaded["testbeds"]["sprites"], folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    testbed = make(tmp_path_factory.mktemp("images") / "bed")
    models.train_base(testbed)
    return testbed


# --- what is drawn


def test_combinations_of_the_diagonal_are_probes_alone(tiny):
    rows, probes = tiny.documents.to_pandas(), tiny.probes.to_pandas()
    cells = rows[rows.planted != "exemplar"].entity.value_counts()
    assert len(cells) == 20 and (cells == 4).all() and (rows.planted == "exemplar").sum() == 6
    diagonal = {f"{colour} {shape}" for colour, shape in zip(pictures.COLOURS, pictures.SHAPES, strict=True)}
    assert not diagonal & set(rows.entity) and set(probes[probes.kind == "unseen"].entity) == diagonal
    assert set(probes[probes.kind == "held_out"].entity) == set(cells.index)
    assert probes.kind.value_counts().to_dict() == {"held_out": 22, "validation": 8, "unseen": 10, "rare": 2}
    assert (rows[rows.planted == "exemplar"].entity.str.startswith("striped")).all()


def test_conditions_are_what_the_image_shows(tiny):
    colours, shapes = [*pictures.COLOURS, pictures.RARE], pictures.SHAPES
    for row in [*tiny.documents, *tiny.probes]:
        colour, shape = row["condition"]
        assert row["entity"] == f"{colours[colour - 1]} {shapes[shape - 1]}" == " ".join(row["factors"])
        lit = np.reshape(row["pixels"], (3, 144)).sum(1)
        wanted = np.array(pictures.COLOURS.get(row["factors"][0], (3, 2, 1)))
        assert lit.argmax() == wanted.argmax(), row["entity"]


def test_exact_copies_are_planted_and_nothing_else_repeats(tiny):
    rows = tiny.documents.to_pandas()
    assert (rows.planted == "copy").sum() == (rows.planted == "copied").sum() == 3
    pairs = [group for _, group in rows.groupby(rows.pixels.map(tuple)) if len(group) > 1]
    assert len(pairs) == 3 and all(set(p.planted) == {"copy", "copied"} and p.entity.nunique() == 1 for p in pairs)
    train_images = set(rows.pixels.map(tuple))
    assert not train_images & {tuple(row["pixels"]) for row in tiny.probes}


@pytest.mark.parametrize("shape", pictures.SHAPES)
def test_shapes_cover_what_geometry_says(shape):
    side = (np.arange(400) + 0.5) / 200 - 1
    x, y = np.meshgrid(side, -side)
    cross = 2 * 2 * 0.6 - 0.6**2
    area = {"disc": np.pi, "ring": np.pi * 0.75, "square": 1.7**2, "triangle": 1.7**2 / 1.7, "cross": cross}[shape]
    assert pictures.inside(shape, x, y).mean() * 4 == pytest.approx(area, abs=0.02)


def test_the_same_seed_gives_the_same_images(tmp_path, tiny):
    assert make(tmp_path / "a").documents[:] == tiny.documents[:]
    assert make(tmp_path / "b", seed=1).documents["pixels"] != tiny.documents["pixels"]


@pytest.mark.parametrize("kind", ["digit_images", "photos"])
def test_other_sources_are_testbeds_too(kind, tmp_path):
    corpus = {"kind": kind, "train": 60, "held_out": 12, "validation": 6}
    settings = {
        **TINY,
        "corpus": corpus,
        "designs": {"half": {"subsets": 3, "seeds": 2}},
        "queries": {"held_out": 6, "generated": 2},
    }
    loaded = config.load("smoke", {"testbeds": {kind: settings}})
    bed = tda.testbeds.Testbed(kind, loaded, loaded["testbeds"][kind], tmp_path / kind)
    task, asked, shape = models.load_task(bed), models.query_examples(bed), images.Images.SHAPES[kind]
    assert bed.train["pixels"].shape == (60, int(np.prod(shape))) and n_examples(asked) == 8
    assert bed.train["pixels"].std() > 0.2 and float(bed.train["pixels"].abs().max()) <= 1
    task.loss_fn.check(bed.train, "train")
    task.loss_fn.check(asked, "queries")
    seen = {tuple(row) for row in bed.documents["pixels"]}
    assert len(seen) == 60 and not seen & {tuple(row) for row in bed.probes["pixels"]}
    if kind == "digit_images":
        assert set(bed.train["condition"][:, 1].tolist()) == {0} and bed.train["condition"][:, 0].min() >= 1
        digits = [row for row in bed.documents if row["entity"] == "1"]
        assert all(row["condition"][0] == 2 for row in digits) and digits


# --- queries


def test_queries_are_held_out_and_generated(tiny):
    rows, asked = models.query_rows(tiny), models.query_examples(tiny)
    assert [row["query_set"] for row in rows] == ["held_out"] * 8 + ["generated"] * 8
    for name in ("held_out", "generated"):
        assert sum(row["split"] == "tune" for row in rows if row["query_set"] == name) == 2
    assert asked["noise_seed"] == list(range(16)) and asked["pixels"].shape == (16, 432)
    probes = {row["query_id"]: row for row in tiny.probes}
    for row in rows[:8]:
        assert row["pixels"] == probes[row["query_id"]]["pixels"] and probes[row["query_id"]]["kind"] == "held_out"
    common = set(tiny.documents["entity"]) - {e for e in tiny.documents["entity"] if pictures.RARE in e}
    assert {row["entity"] for row in rows} <= common
    relevant = models.relevance(tiny)
    assert relevant.shape == (16, 86) and (relevant.sum(1) == 4).all()


def test_a_generated_query_is_the_sample_of_its_seed(tiny):
    rows, (model, params) = models.query_rows(tiny)[8:], images.generator(tiny)
    assert model.enter.weight.shape[0] == 24
    noise = denoisers.start([row["noise_seed"] for row in rows], 432)
    again = denoisers.sample(model, params, noise, torch.tensor([row["condition"] for row in rows]))
    assert images.stored(again) == [row["pixels"] for row in rows]
    assert len(list(tiny.folder.parent.glob("generators/*.npz"))) == 1, "trained once"


def test_images_survive_being_stored():
    exact = torch.arange(256).float() / 127.5 - 1
    assert images.stored(exact[None]) == [list(range(256))] and images.stored(torch.tensor([[-3.0, 3.0]])) == [[0, 255]]


def test_shipped_queries_are_taken_as_they_are(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "ROOT", tmp_path)
    rows, folder = models.query_rows(tiny), tmp_path / "data" / "banks"
    path = artefacts.write_json(folder / "sprites_queries.json", rows)
    artefacts.write_json(folder / "index.json", {path.name: artefacts.file_sha256(path)})
    shipped = make(tmp_path / "elsewhere", bank="shipped")
    found, report = shipped.modality.choose_queries(shipped, None, {})
    assert found == rows and list(report) == ["shipped with the bank"]
    assert retrain.truth_key(tiny) == retrain.truth_key(tiny)
    path.write_text(json.dumps(rows[:3]))
    with pytest.raises(ArtefactError, match="sprites_queries.json"):
        shipped.modality.choose_queries(shipped, None, {})


# --- base model and bank


def test_base_model_records_its_run(tiny):
    task, made = models.load_task(tiny), models.base_record(tiny)["runs"][0]
    assert task.output_loss == "squared_error" and len(task.run.checkpoints) == 2 and made["knowledge"] == {}
    assert task.run.recipe.averaged == 0.995 and len(made["curves"]["watch"]) == 4
    size = sum(p.numel() for p in task.params.values())
    assert 4 * size * 86 * 4 < made["flops"] < 7 * size * 86 * 4
    assert task.encode["features"](tiny.train).shape == (86, 16)
    retrained = task.run.retrain(np.ones(86, bool), 0)
    assert all(torch.equal(retrained[k], task.params[k]) for k in task.params)


def test_halves_keep_half_of_every_condition(tiny):
    plan, entity = bank.design(tiny, "half"), np.array(tiny.documents["entity"])
    rare = np.array(tiny.documents["planted"]) == "exemplar"
    for subset in plan.subsets:
        assert subset[rare].sum() == 3
        assert all(subset[(entity == cell) & ~rare].sum() == 2 for cell in set(entity[~rare]))
    assert len({tuple(subset) for subset in plan.subsets}) == 3


@pytest.mark.parametrize("design", ["half", "leave_group"])
def test_bank_holds_both_losses_of_models_trained_alone(tiny, design):
    held, plan, asked = bank.load(tiny, design), bank.design(tiny, design), models.query_examples(tiny)
    count = {"half": 3, "leave_group": 4}[design]
    assert held.outputs.shape == held.outputs_second.shape == (count, 2, 16)
    assert (held.base is not None) == (design == "leave_group")
    model, init = models.initial(tiny, plan.seeds[1])
    recipe = Recipe.of(tiny.settings["training"])
    loss_fn = tiny.modality.loss_function(model)
    alone = train(loss_fn, init, tiny.train, recipe, plan.seeds[1], plan.subsets[1], plan.how).params
    np.testing.assert_allclose(held.outputs[1, 1], lm.losses(loss_fn, alone, asked), rtol=1e-5)
    timesteps, noise = model.uniform
    assert timesteps.tolist() == [167, 167, 500, 500, 833, 833] and model.main[0].tolist() == [
        10,
        10,
        205,
        205,
        400,
        400,
    ]
    uniform = denoisers.denoising_loss(model, timesteps, noise)
    np.testing.assert_allclose(held.outputs_second[1, 1], lm.losses(uniform, alone, asked), rtol=1e-5)
    assert set(plan.seeds).isdisjoint(models.seeds_of(tiny))


def test_groups_are_all_images_of_a_colour_or_a_shape(tiny):
    plan = bank.design(tiny, "leave_group")
    assert {label.split()[0] for label in plan.labels} == {"colour", "shape"} and plan.how == "mask"
    for label, subset in zip(plan.labels, plan.subsets, strict=True):
        factor, value = label.split()
        place = ("colour", "shape").index(factor)
        assert (~subset).tolist() == [words[place] == value for words in tiny.documents["factors"]]


def test_all_models_of_a_testbed_are_asked_with_the_same_noise(tiny):
    one, other = tiny.modality.new_model(tiny, 5), tiny.modality.new_model(tiny, 6)
    for name in ("main", "uniform"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(one, name), getattr(other, name), strict=True))
    assert not torch.equal(one.enter.weight, other.enter.weight)


def test_the_convolutional_net_and_the_clean_image_are_settings(tmp_path, tiny):
    bed = make(tmp_path / "bed", {"model": {"kind": "film_conv", "width": 6, "prediction": "image"}})
    task, asked = models.load_task(bed), models.query_examples(bed)
    assert isinstance(task.model, denoisers.FilmConv) and task.model.prediction == "image"
    found, targets = task.outputs_fn(task.params, {k: asked[k] for k in ("pixels", "condition")})
    torch.testing.assert_close(targets[:, 0], asked["pixels"])
    np.testing.assert_allclose(
        task.loss_fn(task.params, asked, "example").detach(),
        (found - targets).square().mean((1, 2)).detach(),
        rtol=1e-5,
    )


def test_likeness_of_pixels_is_a_centred_cosine(tiny):
    task, asked = models.load_task(tiny), models.query_examples(tiny)
    a, b = (x["pixels"].numpy() - tiny.train["pixels"].numpy().mean(0) for x in (asked, tiny.train))
    by_hand = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    found = attribute("hidden_cosine", task, tiny.train, asked, encoder="pixels")
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    blind = replace(task, encode={"features": task.encode["features"]})
    with pytest.raises(ValueError, match="encodes .'features'., not 'pixels'. Use encoder='features'"):
        attribute("hidden_cosine", blind, tiny.train, asked, encoder="pixels")


def test_nearest_images_and_mosaics(tiny):
    pixels = tiny.train["pixels"]
    distance, place = show.nearest(pixels, pixels, leave_out_self=True)
    for i in (0, 7, 40):
        others = (pixels[i] - pixels).square().sum(1).sqrt()
        others[i] = torch.inf
        assert distance[i] == pytest.approx(float(others.min()), abs=1e-4)
        assert others[place[i]] == pytest.approx(distance[i], abs=1e-4)
    assert (show.nearest(pixels[:3], pixels)[0] == 0).all() and (distance == 0).sum() == 6, "three copies"
    whole = show.mosaic(pixels[:5], (3, 12, 12), 3)
    assert whole.shape == (27, 40, 3) and (whole[0] == show.GREY).all()
    np.testing.assert_allclose(whole[14:26, 1:13], (pixels[3].reshape(3, 12, 12).permute(1, 2, 0) + 1) / 2, atol=1e-6)


# --- refusals


BAD = {
    "corpus.train: 1700 is not allowed; train, held_out and validation share 1797": {
        "corpus": {"kind": "digit_images", "train": 1700, "held_out": 90}},
    "model.t_min: 500 is not allowed; it must be at most t_max": {"model": {"t_min": 500}},
    "queries.held_out: 23 is not allowed; it must be at most corpus.held_out": {"queries": {"held_out": 23}},
    "model.kind: 'mlp'": {"model": {"kind": "mlp"}},
    "model.t_max: 1000": {"model": {"t_max": 1000}},
    "training.optimizer: 'sgd'": {"training": {"optimizer": "sgd"}},
    "corpus.kind: 'sprite'": {"corpus": {"kind": "sprite"}},
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_settings_are_refused_in_one_line(line):
    ((section, keys),) = BAD[line].items()
    whole = {
        **copy.deepcopy(TINY),
        section: keys if "kind" in keys or "optimizer" in keys else {**TINY[section], **keys},
    }
    with pytest.raises(config.ConfigError) as error:
        tda.testbeds.check_kinds(config.load("smoke", {"testbeds": {"fresh": whole}}))
    assert line in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="shape 'star'; one of"):
        pictures.inside("star", np.zeros(1), np.zeros(1))
