"""Which queries are chosen, known, tuned on and held out: what is reported on must take no part in a choice."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tda import bank, lm, models, queries, tuning
from tda.evaluation import removal
from tda.task import take
from tda.testbeds import KINDS, custom, statements

IGNORE = lm.IGNORE


# --- the choice of queries


def test_a_query_is_known_if_every_target_token_is(monkeypatch):
    """Rows: all right, the first right, the last right, none, and right where it counts."""
    said = torch.tensor([[5, 6, 7, 0], [5, 6, 9, 0], [5, 9, 7, 0], [9, 9, 9, 0], [9, 9, 7, 0]])
    logits = torch.nn.functional.one_hot(said, 10).float()
    labels = torch.tensor([[IGNORE, 5, 6, 7]] * 4 + [[IGNORE, IGNORE, IGNORE, 7]])
    monkeypatch.setattr(lm, "logits_function", lambda model: lambda params, ids: logits[ids[:, 0]])
    examples = {"input_ids": torch.arange(5).unsqueeze(1), "labels": labels, "text": ["x"] * 5}
    assert queries.knows(None, {}, examples).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(("kind", "unit"), [("people", "entity"), ("authors", "prompt"), ("file", "prompt")])
def test_splits_keep_persons_or_openings_together(kind, unit):
    assert KINDS[kind].UNIT == unit
    rows = [{"entity": f"person {i % 7}", "prompt": f"opening {i % 10}"} for i in range(70)]
    queries._split(rows, 0.4, unit, np.random.default_rng(0))
    sides = {split: {row[unit] for row in rows if row["split"] == split} for split in ("tune", "test")}
    assert not sides["tune"] & sides["test"], sides
    assert len(sides["tune"]) == round(0.4 * len(sides["tune"] | sides["test"]))
    other = {"entity": "prompt", "prompt": "entity"}[unit]
    both = [{row[other] for row in rows if row["split"] == split} for split in ("tune", "test")]
    assert both[0] & both[1], "only the one kept together is"


def test_the_second_loss_of_a_person_is_the_answer_and_of_a_passage_the_whole(tiny):
    rows = [row for row in models.query_rows(tiny) if row["query_set"] == "held_out"][:3]
    for kind, longer in (("people", "labels"), ("authors", "labels_second")):
        found = queries.encode_queries(tiny.tokenizer, rows, KINDS[kind].MAIN, 48)
        counts = {name: (found[name] != IGNORE).sum(1) for name in ("labels", "labels_second")}
        shorter = ({"labels", "labels_second"} - {longer}).pop()
        assert (counts[shorter] == 1).all() and (counts[longer] > 3).all()
        assert torch.equal(queries.second(found)["labels"], found["labels_second"])


# --- tune and test queries


def test_tune_queries_are_held_out_tune_queries_and_nothing_else(tiny):
    rows = models.query_rows(tiny)
    wanted = [q for q, row in enumerate(rows) if row["split"] == "tune" and row["query_set"] == "held_out"]
    assert tuning.tune_queries(tiny).tolist() == wanted and 0 < len(wanted) < len(rows)
    examples = models.query_examples(tiny)
    assert take(examples, tuning.tune_queries(tiny))["query_id"] == [rows[q]["query_id"] for q in wanted]
    reported = [row["query_id"] for row in rows if row["split"] == "test"]
    assert take(examples, models.which(tiny, "test"))["query_id"] == reported
    asked = {row["entity"] for row in rows if row["split"] == "test"}
    for every in (1, 2, 3):
        some = tuning.tune_queries(tiny, every)
        assert set(some) <= set(wanted) and not {rows[q]["entity"] for q in some} & asked


ROW = {"id": "x", "method": "bgo", "options": {"damping": 0.1}}
ROW |= {"tune_every": 1, "tune_like": "", "checkpoints": None}
LDS = {0.02: 0.1, 0.1: 0.4, 0.5: 0.3, 2.0: None}  # the largest step breaks the model


@pytest.fixture
def tried(own, monkeypatch):
    """``(testbed, trials asked for)``: an LDS that is known for each value, and adds up over two options."""
    asked = []

    def trial(row, task, train, given, options, truth, chosen):
        asked.append((options, chosen.tolist(), given["query_id"]))
        step = LDS[options["step"]]
        return None if step is None else step + {0.1: 0.0, 1.0: 0.05, 10.0: -0.2}[options["damping"]]

    monkeypatch.setattr(tuning, "_trial", trial)
    monkeypatch.setattr(bank, "load", lambda testbed, name: SimpleNamespace(record={"retrainings": 6}))
    return own, asked


def test_tuning_takes_the_best_value_of_each_option_in_turn(tried):
    testbed, asked = tried
    row = ROW | {"tune": {"step": list(LDS), "damping": [10.0, 0.1, 1.0]}}
    found = tuning.tune(testbed, row)
    assert found["options"] == {"step": 0.1, "damping": 1.0} and found["retrainings"] == 6
    assert [trial["lds_tune"] for trial in found["trials"]] == pytest.approx([0.1, 0.4, 0.3, None, 0.2, 0.4, 0.45])
    assert all(options["step"] == 0.1 for options, _, _ in asked[4:]), "the second at the best of the first"
    rows = models.query_rows(testbed)
    for _, chosen, given in asked:
        assert given == [rows[q]["query_id"] for q in chosen]
        assert {(rows[q]["split"], rows[q]["query_set"]) for q in chosen} == {("tune", "held_out")}
    count = len(asked)
    assert tuning.tune(testbed, row) == found and len(asked) == count, "kept on disk"


def test_tuning_without_a_usable_value_is_refused(tried):
    with pytest.raises(ValueError, match="row 'x': every value of step breaks the model"):
        tuning.tune(tried[0], ROW | {"tune": {"step": [2.0]}})


# --- removals


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("named", [True, False])
def test_removals_are_for_held_out_test_queries_of_different_persons(monkeypatch, named, seed):
    kinds = [(split, name) for name in ("held_out", "generated") for split in ("test", "tune")]
    rows = [{"split": s, "query_set": q, "entity": f"person {i % 5}" * named} for i in range(15) for s, q in kinds]
    monkeypatch.setattr(models, "query_rows", lambda testbed: rows)
    settings = {"queries": 5, "k": 2, "more_k": {}, "seeds": 2, "controls": 1}
    bed = SimpleNamespace(settings={"removals": settings}, config={"seed": seed}, documents=range(9))
    planned = removal.plan(bed, {"x": np.random.default_rng(seed).normal(size=(len(rows), 9))})
    chosen = [rows[q] for q in planned.query[planned.query >= 0]]
    assert len(chosen) == 5 and {(row["split"], row["query_set"]) for row in chosen} == {("test", "held_out")}
    assert len({row["entity"] for row in chosen}) == (5 if named else 1), "without names every query stands alone"


# --- what is generated and held out


def test_generation_draws_from_the_sharpened_top(task):
    """Temperature 0.8 over the top k: the probabilities that are drawn from, read off the generator."""

    class Recorder:
        def choice(self, count, p):
            self.p = p
            assert count == len(p)
            return 0

    prompt, drawn = [1, 5, 9], Recorder()
    with torch.no_grad():
        logits = lm.logits_function(task.model)(task.params, torch.tensor([prompt]))[0, -1].double()
    new = lm.generate(task.model, task.params, prompt, 1, drawn, top_k=7)
    best = np.sort(logits.numpy())[::-1][:7]
    wanted = np.exp((best - best[0]) / 0.8)
    np.testing.assert_allclose(drawn.p, wanted / wanted.sum(), rtol=1e-6)
    assert new in ([int(logits.argmax())], []), "the first choice, or nothing where that is the boundary"


@pytest.mark.parametrize(("count", "held"), [(24, 2), (60, 3), (80, 4)])
def test_a_twentieth_of_a_corpus_of_ones_own_is_held_out(tmp_path, count, held):
    rng, words = np.random.default_rng(0), "the old ship sailed over grey water towards an island where nobody spoke"
    texts = [" ".join(rng.choice(words.split(), 14)) + f" {i}." for i in range(count)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    settings = {"kind": "file", "path": str(path), "text_column": "text", "vocabulary": 280}
    built = custom.build(settings, 0)
    kept, asked = ({row["text"] for row in built[part]} for part in ("documents", "probes"))
    assert len(asked) == held and len(kept) == count - held and not kept & asked and kept | asked == set(texts)


# --- what the model knows, says and splits


def test_recall_is_counted_by_kind_of_probe(tiny, monkeypatch):
    probes = [row for row in tiny.probes if row["kind"] in ("held_out", "trained")]
    known = {row["text"] for i, row in enumerate(probes) if row["kind"] == "trained" or i % 4 == 0}
    monkeypatch.setattr(queries, "knows", lambda model, params, x: np.array([text in known for text in x["text"]]))
    found = queries.recall(None, {}, tiny.tokenizer, probes, 48)
    held = [row["text"] in known for row in probes if row["kind"] == "held_out"]
    assert found == {"held_out": pytest.approx(np.mean(held)), "trained": 1.0} and 0 < np.mean(held) < 1


def test_what_the_model_repeats_is_one_query(tiny, monkeypatch):
    """A model that says one true thing about everybody, three times."""
    stated = {}
    for entity, facts in zip(tiny.documents["entity"], tiny.documents["facts"], strict=True):
        stated.setdefault(entity, facts[0].split("|"))
    said = {}
    for entity, (_, attribute, value) in stated.items():
        prompt = (lm.boundary_id(tiny.tokenizer), *tiny.tokenizer.encode(entity).ids)
        text = statements.sentence(entity, attribute, 0, value).removeprefix(entity)
        said[prompt] = tiny.tokenizer.encode(text).ids
    monkeypatch.setattr(lm, "generate", lambda model, params, prompt, *rest, **named: said[tuple(prompt)])
    rows, counts = tiny.modality.generate(tiny, None, {}, 1000, np.random.default_rng(0))
    n = len(stated)
    assert {row["entity"] for row in rows} == set(stated) and len(rows) == n
    assert counts == {"drawn": 3 * n, "not_one_fact_at_the_end": 0, "no_stating_document": 0, "repeated": 2 * n}
    assert len(tiny.modality.generate(tiny, None, {}, 4, np.random.default_rng(0))[0]) == 4


def test_the_share_of_tune_persons_is_the_one_asked_for(tiny):
    rows, share = models.query_rows(tiny), tiny.settings["queries"]["tune"]
    persons = {row["entity"] for row in rows}
    assert len({row["entity"] for row in rows if row["split"] == "tune"}) == round(share * len(persons))
    assert share != 0.5, "or the two splits could be exchanged"


def test_queries_of_a_set_and_a_split(tiny):
    rows = models.query_rows(tiny)
    for query_set in (None, "held_out", "generated"):
        for split in (None, "tune", "test"):
            wanted = [
                row["query_id"]
                for row in rows
                if (not query_set or row["query_set"] == query_set) and (not split or row["split"] == split)
            ]
            assert models.query_examples(tiny, query_set, split)["query_id"] == wanted


def test_documents_without_a_label_are_relevant_to_nothing():
    bed = SimpleNamespace(documents={"entity": ["", "a", "", "b"]})
    found = KINDS["file"].relevance(bed, [{"entity": ""}, {"entity": "a"}])
    assert found.tolist() == [[False] * 4, [False, True, False, False]]


def test_who_takes_a_choice_pays_for_it_and_for_his_own(monkeypatch):
    rows = {
        "first": {"id": "first", "tune": {"damping": [1]}, "tune_like": ""},
        "second": {"id": "second", "tune": {"step": [1]}, "tune_like": "first"},
        "third": {"id": "third", "tune": {}, "tune_like": "second"},
    }
    chosen = {
        "first": {"options": {"damping": 3}, "trials": ["a"], "seconds": 10.0, "retrainings": 6},
        "second": {"options": {"step": 0.1}, "trials": ["b"], "seconds": 4.0, "retrainings": 6},
    }
    taken = {}

    def tune(testbed, row, given=None):
        taken[row["id"]] = given
        return chosen[row["id"]]

    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr(tuning, "row_of", lambda testbed, name: rows[name])
    second = {"options": {"damping": 3, "step": 0.1}, "trials": ["b"], "seconds": 14.0, "retrainings": 6}
    assert tuning.tuned(None, rows["second"]) == tuning.tuned(None, rows["third"]) == second
    assert taken == {"first": {}, "second": {"damping": 3}}


# --- groups that are left out


def test_groups_are_about_test_queries(monkeypatch):
    """Persons, facts and clusters of copies: none that only a tune query, or nobody, asks about."""
    documents = pd.DataFrame(
        [
            ("Ann", ["Ann|pet|newt"], "exact-0"), ("Ann", ["Ann|pet|newt"], "exact-0"), ("Ann", ["Ann|job|cook"], ""),
            ("Bob", ["Bob|pet|lute"], "exact-1"), ("Bob", ["Bob|pet|lute"], "exact-1"), ("Cid", ["Cid|pet|newt"], ""),
        ],
        columns=["entity", "facts", "group"],
    )  # fmt: skip
    rows = [
        {"entity": "Ann", "attribute": "pet", "value": "newt", "split": "test"},
        {"entity": "Bob", "attribute": "pet", "value": "lute", "split": "tune"},
    ]
    monkeypatch.setattr(models, "query_rows", lambda testbed: rows)
    bed = SimpleNamespace(name="x", documents=documents, config={"seed": 0}, modality=KINDS["people"])
    found = bank.planted_groups(bed, 10)
    assert found == {"entity Ann": [0, 1, 2], "fact Ann|pet|newt": [0, 1], "cluster exact-0": [0, 1]}
    rows[0] |= {"attribute": "", "value": ""}  # a corpus without facts: every cluster will do
    assert set(bank.planted_groups(bed, 10)) == {"entity Ann", "cluster exact-0", "cluster exact-1"}
