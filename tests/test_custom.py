"""A corpus of one's own comes through the same door as the built-in ones, and bad files end in one clear line."""

import json

import numpy as np
import pandas as pd
import pytest

from tda import attribute, models, testbeds
from tda import config as configuration

SMALL = {
    "model": {"layers": 1, "width": 32, "heads": 2, "context": 96},
    "training": {"seeds": 1, "epochs": 2, "batch": 4, "lr": 0.01, "checkpoints": 2},
    "queries": {"held_out": 4, "generated": 2},
}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Whatever these tests build goes below a temporary folder."""
    monkeypatch.setattr(configuration, "data_dir", lambda config: tmp_path / "scratch")


def rows(n=24):
    rng = np.random.default_rng(0)
    words = "the old ship sailed over grey water towards a café on an island where nobody spoke".split()
    return [
        {"text": " ".join(rng.choice(words, 14)) + ".", "entity": f"author {i % 3}", "doc_id": f"mine-{i}", "extra": i}
        for i in range(n)
    ]


def jsonl(folder, content, name="mine.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return path


def load(path, corpus=None, **sections):
    testbed = {**SMALL, **sections, "corpus": {"vocabulary": 280, **(corpus or {})}}
    return testbeds.load(str(path), overrides={"testbeds": {path.stem: testbed}})


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_own_corpus_trains_and_is_attributed(tmp_path, suffix):
    content, path = rows(), tmp_path / f"mine.{suffix}"
    if suffix == "jsonl":
        jsonl(tmp_path, content)
    else:
        pd.DataFrame(content).to_parquet(path)
    testbed = load(path)
    documents, probes = list(testbed.documents), list(testbed.probes)
    given = {row["doc_id"]: row for row in content}
    assert len(documents) + len(probes) == 24 and len(probes) == 2
    assert all(
        given[d["doc_id"]]["text"] == d["text"] and given[d["doc_id"]]["entity"] == d["entity"] for d in documents
    )
    held = {p["query_id"].removeprefix("held_out-") for p in probes}
    assert held | {d["doc_id"] for d in documents} == set(given) and not held & {d["doc_id"] for d in documents}
    assert all(p["prompt"] + p["target"] == p["text"] and p["prompt"] for p in probes)
    for text in (d["text"] for d in documents):
        assert testbed.tokenizer.decode(testbed.tokenizer.encode(text).ids) == text
    task, queries = models.load_task(testbed), models.query_examples(testbed)
    for name in ("gradient_dot", "bm25", "metadata", "bgo"):
        assert attribute(name, task, testbed.train, queries).shape == (len(queries["text"]), 22)
    relevant = models.relevance(testbed)
    assert relevant.shape == (len(queries["text"]), 22) and 0 < relevant.mean() < 1
    assert testbed.folder == tmp_path / "scratch" / "mine"


def test_changed_file_is_noticed(tmp_path):
    path = jsonl(tmp_path, rows())
    _ = load(path).documents
    jsonl(tmp_path, [{**row, "text": row["text"] + " Then it sank."} for row in rows()])
    with pytest.raises(ValueError, match="built from other settings"):
        _ = load(path).documents


def test_another_text_column_and_no_metadata(tmp_path):
    path = jsonl(tmp_path, [{"body": row["text"]} for row in rows()])
    testbed = load(path, {"text_column": "body"})
    assert set(testbed.documents["entity"]) == {""} and len(set(testbed.documents["doc_id"])) == 22


def test_missing_values_and_numbers_in_parquet(tmp_path):
    """Parquet has nulls and integers: a null is an empty string, an id of 0 is an id."""
    frame = pd.DataFrame(rows()).assign(doc_id=range(24), entity=[None, "b"] * 12, group=[np.nan, 1.0] * 12)
    frame.to_parquet(tmp_path / "mine.parquet")
    testbed = load(tmp_path / "mine.parquet")
    everything = set(testbed.documents["doc_id"]) | {p["query_id"].removeprefix("held_out-") for p in testbed.probes}
    assert everything == {str(i) for i in range(24)}
    assert set(testbed.documents["entity"]) == {"", "b"} and "nan" not in testbed.documents["group"]


def bad(tmp_path, change):
    content = rows()
    change(content)
    return jsonl(tmp_path, content)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c[4].update(text=""), r"document 5: its text is empty\. Remove"),
        (lambda c: c[4].update(text="  \n"), r"document 5: its text is empty"),
        (lambda c: c[4].update(text=None), r"document 5: its text is empty"),
        (lambda c: c[4].update(text=7), r"document 5: its text is (empty|not text)"),
        (lambda c: c[4].update(doc_id="mine-2"), r"document 5: doc_id 'mine-2' occurs twice\. Make ids unique"),
        (lambda c: c[4].pop("text"), r"document 5: no column 'text'; it has \['doc_id', .*Set text_column"),
        (lambda c: c.__delitem__(slice(7, None)), r"7 documents; at least 8 are needed"),
        (lambda c: c.clear(), r"0 documents; at least 8"),
        (lambda c: c.__setitem__(4, ["not", "an", "object"]), r"(document|line) 5"),
        (lambda c: c.__setitem__(4, 17), r"(document|line) 5"),
        (lambda c: c[4].update(text="\ud800 broken"), r"(document|line) 5"),
    ],
)
def test_bad_documents_are_refused(tmp_path, change, words):
    content = rows()
    change(content)
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    with pytest.raises(ValueError, match=words) as caught:
        _ = load(path).documents
    assert "mine.jsonl" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "scratch" / "mine" / "corpus" / "record.json").exists()


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = jsonl(tmp_path, rows())
    lines = path.read_bytes().splitlines()
    lines[2] = lines[2].replace(b"mine-2", "mine-\u00e9".encode("latin-1"))
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 3: not UTF-8 .*Save the file as UTF-8"):
        _ = load(path).documents


def test_lines_that_are_not_json_are_refused(tmp_path):
    path = jsonl(tmp_path, rows())
    path.write_text(path.read_text() + "{'text': 'single quotes'}\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 25: not JSON .*One object a line"):
        _ = load(path).documents


def test_damaged_parquet_is_refused(tmp_path):
    path = tmp_path / "mine.parquet"
    pd.DataFrame(rows()).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"mine\.parquet"):
        _ = load(path).documents


def test_missing_file_and_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl' does not exist"):
        _ = load(tmp_path / "nowhere.jsonl").documents
    (tmp_path / "mine.csv").write_text("text\nhello\n")
    with pytest.raises(
        ValueError, match=r"unknown in profile 'smoke'; it has \['people', 'authors'\]|must end in \.jsonl"
    ):
        testbeds.load(str(tmp_path / "mine.csv"))


def test_documents_longer_than_the_context_are_refused(tmp_path):
    content = rows()
    content[9]["text"] = " ".join(["ship"] * 120)
    path = jsonl(tmp_path, content)
    with pytest.raises(ValueError, match=r"tokens and one boundary, more than the context of 96.*model\.context"):
        testbed = load(path)
        _ = testbed.train
        models.load_task(testbed)


def test_one_word_documents_can_be_trained_on(tmp_path):
    """A document of one word cannot be cut into prompt and target; it must not stop the corpus, or be named."""
    content = rows() + [{"text": "ship", "entity": "a", "doc_id": f"short-{i}"} for i in range(30)]
    path = jsonl(tmp_path, content)
    try:
        testbed = load(path)
        assert all(" " in p["text"] for p in testbed.probes)
    except ValueError as error:
        assert "mine.jsonl" in str(error) or "short-" in str(error)


def test_vocabulary_that_the_texts_do_not_support_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocabulary is 4000.*Lower vocabulary"):
        _ = load(jsonl(tmp_path, rows()), {"vocabulary": 4000}).documents


@pytest.mark.parametrize("name", ["My Texts-2.jsonl", "2024_letters.jsonl"])
def test_any_file_name_will_do(tmp_path, name):
    path = jsonl(tmp_path, rows(), name)
    assert testbeds.load(str(path), overrides={}).settings["corpus"]["path"] == str(path)


def test_relative_path_in_a_profile_is_relative_to_the_repository(tmp_path, monkeypatch):
    """As the schema says, wherever Python was started."""
    path = jsonl(tmp_path, rows())
    monkeypatch.setattr(configuration, "ROOT", tmp_path)
    elsewhere = tmp_path / "notebooks"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    entry = {**SMALL, "corpus": {"kind": "file", "path": path.name, "vocabulary": 280}}
    testbed = testbeds.load("texts", overrides={"testbeds": {"texts": entry}})
    assert len(testbed.documents) == 22


def test_unknown_testbed_names_the_ones_there_are():
    with pytest.raises(ValueError, match=r"testbed 'peeple' is unknown in profile 'smoke'; it has \["):
        testbeds.load("peeple")


def test_overrides_are_not_changed(tmp_path):
    path = jsonl(tmp_path, rows())
    overrides = {"testbeds": {"mine": {**SMALL, "corpus": {"vocabulary": 280}}}}
    before = json.dumps(overrides)
    testbeds.load(str(path), overrides=overrides)
    assert json.dumps(overrides) == before
