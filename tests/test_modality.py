"""The contract of kinds: a denoiser that this file registers is a testbed like any other, and nobody asks its kind."""

import copy
import re

import numpy as np
import pytest
import torch
from conftest import TINY
from test_output_loss import Film, denoiser

from tda import attribute, bank, config, models
from tda.task import n_examples
from tda.testbeds import KINDS, Testbed
from tda.testbeds.language import Language
from tda.testbeds.modality import Modality, kind
from tda.training import Recipe, train

NOISE = ("noisy", "time", "target")


class Denoiser(Modality):
    """Noisy images of four pixels; a query is a held-out one, and what is relevant is the first half of the corpus."""

    MODELS, OPTIMIZERS, OUTPUT_LOSS = ("film",), ("sgd",), "squared_error"
    CODE = ("training.py",)

    def build(self, testbed):
        _, drawn = denoiser(Film, 30)
        rows = [{name: drawn[name][i].tolist() for name in NOISE} | {"entity": "x"} for i in range(30)]
        documents = [{"doc_id": f"d{i}", **row} for i, row in enumerate(rows[:24])]
        return {"documents": documents, "probes": [{"query_id": f"q{i}", **row} for i, row in enumerate(rows[24:])],
                "report": {"images": 24}}  # fmt: skip

    def examples(self, testbed, part="documents"):
        rows = getattr(testbed, part)
        return {name: torch.tensor(rows[name]) for name in NOISE} | {"entity": list(rows["entity"])}

    def new_model(self, testbed, seed):
        torch.manual_seed(seed)
        return Film().eval()

    def outputs_function(self, model):
        def outputs_fn(params, batch):
            return torch.func.functional_call(model, params, (batch["noisy"], batch["time"])), batch["target"]

        return outputs_fn

    def loss_function(self, model):
        outputs_fn = self.outputs_function(model)

        def loss_fn(params, batch, reduction="mean"):
            found, target = outputs_fn(params, batch)
            example = (found - target).square().flatten(1).mean(1)
            return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()

        return loss_fn

    def encoders(self, model, params):
        return {"group": lambda examples: examples["entity"]}

    def train_models(self, testbed, wanted, how):
        for mask, seed in wanted:
            model, init = models.initial(testbed, seed)
            recipe = Recipe.of(testbed.settings["training"])
            done = train(self.loss_function(model), init, testbed.train, recipe, seed, mask, how)
            yield model, done.params, done.seconds, self.flops(model, done.tokens)

    def flops(self, model, tokens):
        return 6.0 * sum(p.numel() for p in model.parameters()) * tokens

    def knowledge(self, testbed, model, params):
        return {}

    def held_out(self, testbed):
        return self.examples(testbed, "probes")

    def choose_queries(self, testbed, model, params):
        names = ("prompt", "target", "text", "entity", "attribute", "value", "work")
        rows = [{"query_id": f"q{i}", "query_set": "held_out", "split": ("tune", "test")[i % 2]} for i in range(6)]
        return [row | dict.fromkeys(names, "") for row in rows], {}

    def encode_queries(self, testbed, rows):
        whole, places = self.held_out(testbed), [int(row["query_id"][1:]) for row in rows]
        return {k: v[places] for k, v in whole.items() if k in NOISE} | {"query_id": [r["query_id"] for r in rows]}

    def targets(self, asked):
        return np.ones(n_examples(asked), np.int64)

    def outputs(self, loss_fn, params, asked):
        with torch.no_grad():
            return loss_fn(params, asked, "example").numpy()[None]

    def relevance(self, testbed, rows):
        return np.tile(np.arange(24) < 12, (len(rows), 1))


SETTINGS = {
    "corpus": {"kind": "toy"}, "model": {"kind": "film"}, "queries": {"held_out": 6, "generated": 0, "tune": 0.5},
    "training": {"seeds": 1, "epochs": 4, "batch": 8, "lr": 0.1, "weight_decay": 0.0, "checkpoints": 2,
                 "optimizer": "sgd"},
    "designs": {"half": {"subsets": 3, "seeds": 2, "fraction": 0.5, "shards": 1}}, "removals": None,
    "evaluation": {"tailpatch_queries": 0, "recall_k": [5]},
}  # fmt: skip


@pytest.fixture
def bed(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "toy", Denoiser())
    loaded = config.load("smoke", {"testbeds": {"people": copy.deepcopy(TINY)}})
    return Testbed("toy", loaded, SETTINGS, tmp_path / "toy")


def test_a_new_kind_is_one_class(bed):
    """Corpus, base model, queries, a bank and scores, by no more than what the class above says."""
    task, asked = models.load_task(bed), models.query_examples(bed)
    assert task.output_loss == "squared_error" and len(task.run.checkpoints) == 2
    held = bank.load(bed, "half")
    assert held.outputs.shape == (3, 2, 6) and held.outputs_second is None
    mask, seed = bank.design(bed, "half").models()[0]
    _, params, _, _ = next(bed.modality.train_models(bed, [(mask, seed)], "filter"))
    with torch.no_grad():
        again = task.loss_fn(params, asked, "example").numpy()
    np.testing.assert_allclose(held.outputs[0, 0], again, rtol=1e-5)
    for curvature in ("ekfac", "ggn"):
        assert attribute("influence", task, bed.train, asked, curvature=curvature).shape == (6, 24)
    assert models.relevance(bed).shape == (6, 24) and models.query_clusters(bed, np.ones(6, bool)) == asked["query_id"]
    assert bed.modality.retrieval_measures(bed) == ["precision_at_10"] and bed.modality.SECOND is None
    with pytest.raises(ValueError, match="'toy' has 0 groups to leave out"):
        bank.planted_groups(bed, 4)


def test_what_a_kind_lacks_is_refused():
    toy, asked = Denoiser(), copy.deepcopy(SETTINGS)
    assert list(toy.check(asked)) == []
    asked["model"]["kind"], asked["training"]["optimizer"], asked["queries"]["generated"] = "cnn", "adamw", 3
    asked["designs"]["leave_group"], asked["removals"], asked["evaluation"]["tailpatch_queries"] = {}, {"k": 3}, 2
    assert [(key, given) for key, given, _ in toy.check(asked)] == [
        ("model.kind", "cnn"), ("training.optimizer", "adamw"), ("designs", "leave_group"), ("queries.generated", 3),
        ("evaluation.tailpatch_queries", 2), ("removals", "a plan"),
    ]  # fmt: skip


def test_kinds_are_registered_once_and_whole(monkeypatch):
    monkeypatch.setattr("tda.testbeds.modality.KINDS", dict(KINDS))
    with pytest.raises(ValueError, match="a kind of corpus named 'people' is registered already"):
        kind("mine", "people")(Denoiser)
    with pytest.raises(TypeError, match="abstract"):
        kind("mine")(type("Half", (Modality,), {"MODELS": ()}))
    with pytest.raises(TypeError, match="Texts is abstract: a kind of corpus has corpus, too"):
        kind("mine")(type("Texts", (Language,), {}))
    assert set(KINDS) == {"people", "authors", "file", "hub", "digits", "sprites", "digit_images", "photos"}
    profile = config.load("paper")
    for name, settings in profile["testbeds"].items():
        assert list(KINDS[settings["corpus"]["kind"]].check(settings)) == [], name
        texts = isinstance(KINDS[settings["corpus"]["kind"]], Language)
        drawn = settings["corpus"]["kind"] in ("sprites", "digit_images")
        assert (texts or drawn) == KINDS[settings["corpus"]["kind"]].GROUPS, name


def test_nobody_outside_the_testbeds_asks_for_a_kind():
    asks = re.compile(r"""\[?["']corpus["']\]?\)?(\.get\(|\[)["']kind["']""")
    for path in sorted((config.ROOT / "tda").rglob("*.py")):
        if "testbeds" not in path.parts and path.name not in ("config_checks.py", "scores.py"):
            assert not asks.search(path.read_text(encoding="utf-8")), f"{path} asks for the kind of a corpus"
