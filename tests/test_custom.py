"""A corpus of one's own comes through the same door as the built-in ones, and bad files end in one clear line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models

from tda import attribute, lm, models, testbeds
from tda import config as configuration
from tda.artefacts import ArtefactError
from tda.saved import saved_tokenizer
from tda.testbeds import custom

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


def test_an_edited_file_is_built_again_with_its_models(tmp_path, monkeypatch, capsys):
    """Nothing of what was made from the file as it was is left, and training says where it is."""
    monkeypatch.setenv("TDA_BATCH", "1")
    path = jsonl(tmp_path, rows())
    old = load(path)
    models.load_task(old)
    assert "seed 0, epoch 2/2: loss" in capsys.readouterr().out
    (old.folder / "bank_half.npz").write_bytes(b"of the file as it was")
    jsonl(tmp_path, [{**row, "text": row["text"] + " Then it sank."} for row in rows()])
    task, new = models.load_task(load(path)), load(path)
    assert all(text.endswith(" Then it sank.") for text in new.documents["text"])
    assert not (new.folder / "bank_half.npz").exists()
    assert len(task.params["gpt_neox.embed_in.weight"]) == new.tokenizer.get_vocab_size()
    assert "seed 0, epoch 2/2: loss" in capsys.readouterr().out
    models.load_task(new)
    assert capsys.readouterr().out == "", "what is there is not trained again"
    with pytest.raises(ValueError, match=r"mine\.jsonl was edited after it was loaded\. Load it again\.$"):
        old.require_corpus()


def test_models_are_kept_until_the_edited_file_could_be_read(tmp_path):
    """A line that was saved half: the error says so, and nothing that was trained is lost."""
    path = jsonl(tmp_path, rows())
    bed = load(path)
    _ = bed.documents
    (bed.folder / "model").mkdir()
    (bed.folder / "model" / "kept").touch()
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(ValueError, match="not JSON"):
        _ = load(path).documents
    assert (bed.folder / "model" / "kept").exists()
    path.write_text(whole.replace("ship", "boat"))
    _ = load(path).documents
    assert not (bed.folder / "model").exists(), "what was trained on the former texts"


def test_a_corpus_of_other_settings_is_refused_and_nothing_is_lost(tmp_path):
    path = jsonl(tmp_path, rows())
    bed = load(path)
    _ = bed.documents
    with pytest.raises(ArtefactError, match="corpus.*holds key"):
        _ = load(path, {"vocabulary": 270}).documents
    assert len(load(path).documents) == len(bed.documents)


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


def with_text(value, n=24):
    return [*rows()[:4], {**rows()[4], "text": value}, *rows()[5:n]]


def with_field(**fields):
    return [*rows()[:4], {**rows()[4], **fields}, *rows()[5:]]


def column(name, value):
    """A Parquet table of which row 5 is different; a column has one type."""
    return pd.DataFrame(rows()).assign(**{name: [value] * 24})


FEW = "documents that can be cut in two (words, characters, tokens) are needed as queries; it has"
CONTEXT = "testbeds.mine.model.context"
NO_LIST = "it must be text or a number. Give one value."
STRING = "a text must be a string. Write it as one, or name another column in testbeds.mine.corpus.text_column."
TABLE = [  # what the file holds, and the one line that the user sees (PATH is the file)
    (with_text(""), "PATH, line 5: its text is empty. Remove the document or fill it."),
    (with_text("  \n"), "PATH, line 5: its text is empty. Remove the document or fill it."),
    (with_text(None), "PATH, line 5: its text is empty. Remove the document or fill it."),
    (with_text(float("nan")), "PATH, line 5: its text is empty. Remove the document or fill it."),
    (with_text(17), f"PATH, line 5: its text is 17, a number; {STRING}"),
    (with_text(1.5), f"PATH, line 5: its text is 1.5, a number; {STRING}"),
    (with_text(False), f"PATH, line 5: its text is False, a truth value; {STRING}"),
    (with_text(["a", "b"]), f"PATH, line 5: its text is ['a', 'b'], a list; {STRING}"),
    (with_text({"en": "a"}), f"PATH, line 5: its text is {{'en': 'a'}}, an object; {STRING}"),
    (with_text("\ud800 x"), "PATH, line 5: its text holds a lone surrogate, which UTF-8 lacks. Repair it."),
    (with_field(doc_id="\ud800"), "PATH, line 5: its doc_id holds a lone surrogate, which UTF-8 lacks. Repair it."),
    (with_field(doc_id="mine-2"), "PATH, line 5: doc_id 'mine-2' occurs twice (first in line 3). Make ids unique."),
    (with_field(entity=["a", "b"]), f"PATH, line 5: its entity is ['a', 'b'], a list; {NO_LIST}"),
    (with_field(group={"a": 1}), f"PATH, line 5: its group is {{'a': 1}}, an object; {NO_LIST}"),
    (
        [*rows()[:4], {"body": "a b", "id": 1}, *rows()[5:]],
        "PATH, line 5: no column 'text'; it has ['body', 'id']. Set testbeds.mine.corpus.text_column.",
    ),
    ([*rows()[:4], 17, *rows()[5:]], 'PATH, line 5: 17 is not an object with columns. Write {"text": ...}.'),
    ([*rows()[:4], ["a"], *rows()[5:]], "PATH, line 5: ['a'] is not an object with columns. Write {\"text\": ...}."),
    (rows()[:7], "PATH: 7 documents; at least 8 are needed to train, hold out and attribute."),
    ([], "PATH: 0 documents; at least 8 are needed to train, hold out and attribute."),
    ([{"text": "a"}] * 24, f"PATH: 2 {FEW} 0. Add longer documents."),
    (
        with_text("ship " * 119 + "ship"),
        "PATH, line 5: its text has TOKENS tokens and one boundary, more than the context of 96: "
        f"'{'ship ' * 8}'... Shorten it, or raise {CONTEXT} (all fit MORE).",
    ),
    (
        b"\n\n{'text': 'single quotes'}\n",
        "PATH, line 3: not JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)). One object a line is expected.",
    ),
    (
        b'{"text": "caf\xe9"}\n',
        "PATH, line 1: not UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 13: "
        "invalid continuation byte). Save the file as UTF-8.",
    ),
    (
        [{"text": "ab ab"}] * 24,
        "PATH: testbeds.mine.corpus.vocabulary (null: what the texts support) is 280, but 110 characters of text "
        "support only 260 entries. Lower vocabulary to 260, or add text.",
    ),
    (column("text", 17), f"PATH, row 1: its text is 17, a number; {STRING}"),
    (column("text", ["a", "b"]), f"PATH, row 1: its text is ['a', 'b'], a list; {STRING}"),
    (column("text", {"en": "a"}), f"PATH, row 1: its text is {{'en': 'a'}}, an object; {STRING}"),
    (column("text", b"raw"), f"PATH, row 1: its text is b'raw', bytes; {STRING}"),
    (pd.DataFrame(with_text(None)), "PATH, row 5: its text is empty. Remove the document or fill it."),
    (column("entity", ["a"]), f"PATH, row 1: its entity is ['a'], a list; {NO_LIST}"),
    (column("work", b"raw"), f"PATH, row 1: its work is b'raw', bytes; {NO_LIST}"),
    (
        pd.DataFrame({"body": ["a b"] * 24}),
        "PATH, row 1: no column 'text'; it has ['body']. Set testbeds.mine.corpus.text_column.",
    ),
    (
        pd.DataFrame(with_field(doc_id="mine-2")),
        "PATH, row 5: doc_id 'mine-2' occurs twice (first in row 3). Make ids unique.",
    ),
]


def written(folder, content):
    """The file that holds a content of the table."""
    path = folder / ("mine.parquet" if isinstance(content, pd.DataFrame) else "mine.jsonl")
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.mark.parametrize("content, line", TABLE, ids=[line[:70] for _, line in TABLE])
def test_each_bad_file_ends_in_one_line(tmp_path, content, line):
    path = written(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        _ = load(path).documents
    said = str(caught.value)
    if "TOKENS" in line:  # the number depends on the vocabulary, and the cure is one more
        tokens = int(said.split("its text has ")[1].split()[0])
        assert tokens >= 120
        line = line.replace("TOKENS", str(tokens)).replace("MORE", str(tokens + 1))
    assert said == line.replace("PATH", str(path))
    assert not (tmp_path / "scratch" / "mine" / "corpus" / "record.json").exists()


def test_damaged_parquet_is_refused(tmp_path):
    path = tmp_path / "mine.parquet"
    pd.DataFrame(rows()).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=r"mine\.parquet: not a Parquet file whose columns can all be read \(.*\)\. Write it again"
    ):
        _ = load(path).documents


def test_numbers_as_ids_and_missing_ones(tmp_path):
    """An id that is missing is the line, so that it leads back to the file."""
    lines = [json.dumps({"text": row["text"], **({"doc_id": i} if i % 2 else {})}) for i, row in enumerate(rows())]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    testbed = load(path)
    found = {d["doc_id"]: d["text"] for d in testbed.documents}
    found |= {p["query_id"].removeprefix("held_out-"): p["text"] for p in testbed.probes}
    assert found == {str(i) if i % 2 else f"d{2 * i + 1:06d}": row["text"] for i, row in enumerate(rows())}


def test_missing_file_and_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl' does not exist"):
        _ = load(tmp_path / "nowhere.jsonl").documents
    (tmp_path / "mine.csv").write_text("text\nhello\n")
    with pytest.raises(
        ValueError, match=r"unknown in profile 'smoke'; it has \['people', 'authors'\]|must end in \.jsonl"
    ):
        testbeds.load(str(tmp_path / "mine.csv"))


def test_one_word_documents_can_be_trained_on(tmp_path):
    """A document of one word cannot be cut into prompt and target; it must not stop the corpus, or be named."""
    content = rows() + [{"text": "ship", "entity": "a", "doc_id": f"short-{i}"} for i in range(30)]
    path = jsonl(tmp_path, content)
    try:
        testbed = load(path)
        assert all(" " in p["text"] for p in testbed.probes)
    except ValueError as error:
        assert "mine.jsonl" in str(error) or "short-" in str(error)


@pytest.mark.parametrize("n", [40, 200])
def test_three_lines_are_enough_for_a_small_file(tmp_path, n):
    """The README's lines, without settings: the vocabulary is what the texts support."""
    bed = testbeds.load(str(jsonl(tmp_path, rows(n))))
    size = bed.tokenizer.get_vocab_size()
    assert 258 < size < 1024 and max(max(e.ids) for e in bed.tokenizer.encode_batch(bed.documents["text"])) < size
    found = bed.tokenizer.to_str()
    shutil.rmtree(tmp_path / "scratch")  # other settings have a folder of their own, which this file's fixture hides
    with pytest.raises(ValueError, match=f"support only {size} entries. Lower vocabulary to {size}"):
        _ = load(tmp_path / "mine.jsonl", {"vocabulary": size + 1}).documents
    shutil.rmtree(tmp_path / "scratch")
    assert load(tmp_path / "mine.jsonl", {"vocabulary": size}).tokenizer.to_str() == found


def test_a_larger_file_has_the_usual_vocabulary():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghij klm"), 300)) for _ in range(60)]
    assert custom._bpe([{"text": text} for text in texts], {"kind": "file"}, "", "x").get_vocab_size() == 1024


@pytest.mark.parametrize("name", ["My Texts-2.jsonl", "2024_letters.jsonl"])
def test_any_file_name_will_do(tmp_path, name):
    path = jsonl(tmp_path, rows(), name)
    assert testbeds.load(str(path), overrides={}).settings["corpus"]["path"] == str(path)


@pytest.mark.parametrize(
    "name, given, head",
    [
        ("mine.jsonl", Path, ""),
        ("mine.jsonl", lambda path: f"~/{path.name}", ""),
        ("MINE.JSONL", str, ""),
        ("mine.jsonl", str, "\ufeff"),
    ],
    ids=["Path", "home", "upper case", "byte-order mark"],
)
def test_a_file_is_named_in_any_way(tmp_path, monkeypatch, name, given, head):
    folder = tmp_path / "my {data} (v2)"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    path = jsonl(folder, rows(), name)
    path.write_text(head + path.read_text(encoding="utf-8"), encoding="utf-8")
    testbed = testbeds.load(given(path), overrides={"testbeds": {"mine": SMALL}})
    assert (testbed.name, len(testbed.documents), testbed.settings["model"]["width"]) == ("mine", 22, 32)
    assert {d["doc_id"] for d in testbed.documents} < {row["doc_id"] for row in rows()}


@pytest.mark.parametrize("settings_of", ["people", "file_people"])
def test_a_file_called_like_a_testbed_leaves_that_one_alone(tmp_path, settings_of):
    path = jsonl(tmp_path, rows(), "people.jsonl")
    testbed = testbeds.load(path, overrides={"testbeds": {settings_of: {**SMALL, "corpus": {"vocabulary": 270}}}})
    assert testbed.name == "file_people" and testbed.tokenizer.get_vocab_size() == 270
    assert testbed.config["testbeds"]["people"] == configuration.load("smoke")["testbeds"]["people"]
    assert len(testbed.documents) == 22
    digits = jsonl(tmp_path, rows(), "digits_mlp.jsonl")  # not in this profile, but it has a committed bank
    assert "digits_mlp" not in configuration.load("large")["testbeds"]
    assert testbeds.load(digits, "large").name == "file_digits_mlp"


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "mine.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"mine\.jsonl' is not a file\. Give a \.jsonl or \.parquet file"):
        _ = load(tmp_path / "mine.jsonl").documents


# --- scripts and special tokens

SCRIPTS = {
    "Chinese": "山水云月花鸟风雨春秋江河湖海天地日星",
    "Japanese": "山川カタナひらがな東京都ラーメン食べる",
    "Thai": "ที่นี่มีน้ำใสและปลาตัวใหญ่ว่ายอยู่",
    "Khmer": "ភាសាខ្មែរជាភាសាផ្លូវការ",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_without_spaces_are_cut_between_characters(tmp_path, script):
    rng = np.random.default_rng(0)
    letters = [c for c in SCRIPTS[script] if c.isalnum()]
    marks = [c for c in SCRIPTS[script] if not c.isalnum()] or [""]
    texts = ["".join(c + rng.choice(marks) for c in rng.choice(letters, 20)) for _ in range(40)]
    bed = load(jsonl(tmp_path, [{"text": text} for text in texts]), {"vocabulary": None})
    assert len(bed.probes) == 2 and len(bed.documents) == 38
    for probe in bed.probes:
        assert probe["prompt"] + probe["target"] == probe["text"]
        assert probe["target"][0] in letters, "not a mark, which belongs to the character before it"
        ids, cut = bed.tokenizer.encode(probe["text"]).ids, len(bed.tokenizer.encode(probe["prompt"]).ids)
        assert 0.3 < cut / len(ids) < 0.7
    encoded = lm.encode(bed.tokenizer, [p["text"] for p in bed.probes], 96, [p["target"] for p in bed.probes])
    for probe, labels in zip(bed.probes, encoded["labels"], strict=True):
        assert bed.tokenizer.decode(labels[labels != lm.IGNORE].tolist()) == probe["target"]


def test_documents_of_few_characters_are_still_asked(tmp_path):
    """Characters that are often together are one token, which cannot be cut; another document is then the query."""
    texts = ["山水云"] * 30 + ["花鸟山水云", "月山水云花", "风雨春", "江湖海"]
    bed = load(jsonl(tmp_path, [{"text": text} for text in texts]), {"vocabulary": None})
    assert len(bed.tokenizer.encode("山水云").ids) == 1
    assert {probe["text"] for probe in bed.probes} < set(texts[30:]) and len(bed.documents) == 32
    assert all(probe["prompt"] + probe["target"] == probe["text"] for probe in bed.probes)


def test_special_tokens_written_in_a_text_are_text(tmp_path):
    """In documents and in queries alike: no boundary and no padding id stands for characters."""
    content = [{"text": f"<eos> {row['text']} <pad> and <eos>."} for row in rows()]
    bed = load(jsonl(tmp_path, content))
    encoded = lm.encode(bed.tokenizer, [p["text"] for p in bed.probes], 96, [p["target"] for p in bed.probes])
    for examples in (bed.train, encoded):
        for ids, labels, text in zip(examples["input_ids"], examples["labels"], examples["text"], strict=True):
            real = ids[: int((labels != lm.IGNORE).nonzero().max()) + 1][1:].tolist()
            assert not {lm.PAD_ID, lm.BOUNDARY_ID} & set(real) and bed.tokenizer.decode(real) == text
    for probe, labels in zip(bed.probes, encoded["labels"], strict=True):
        assert probe["prompt"] + probe["target"] == probe["text"]
        assert bed.tokenizer.decode(labels[labels != lm.IGNORE].tolist()) == probe["target"]


# --- a saved model

STATES = {
    "none": {},
    "padding": {"padding": True},
    "longest": {"padding": "max_length", "max_length": 20, "truncation": True},
    "truncation": {"truncation": True, "max_length": 6},
}


def saved_model(folder, texts, state=()):
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    made = Tokenizer(tokenizer_models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    clean = Tokenizer.from_str(made.to_str())
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    if state:
        wrapped(texts[:4], **state)
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=320, n_positions=96, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1
    )
    GPT2LMHeadModel(settings).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return clean


@pytest.mark.parametrize("state", STATES)
def test_a_saved_model_brings_its_tokenizer(tmp_path, monkeypatch, state):
    """No BPE is trained, documents are their own tokens after its own opening token, queries are cut by it."""
    content = rows(40)
    clean = saved_model(tmp_path / "model", [row["text"] for row in content], STATES[state])
    monkeypatch.setattr(custom, "train_bpe", None)
    sections = {
        "model": {"from": str(tmp_path / "model"), "context": 96},
        "training": {"epochs": 1, "seeds": 1, "checkpoints": 1},
    }
    path = jsonl(tmp_path, content)
    bed = testbeds.load(path, overrides={"testbeds": {"mine": sections}})
    opening = clean.token_to_id("<s>")
    for ids, labels, text in zip(bed.train["input_ids"], bed.train["labels"], bed.train["text"], strict=True):
        wanted = clean.encode(text).ids
        assert labels[labels != lm.IGNORE].tolist() == wanted
        assert ids[: len(wanted) + 1].tolist() == [opening, *wanted]
    for probe in bed.probes:
        prompt, target = (clean.encode(probe[part]).ids for part in ("prompt", "target"))
        assert prompt + target == clean.encode(probe["text"]).ids and abs(len(prompt) - len(target)) < 8
    task, queries = models.load_task(bed), models.query_examples(bed)
    assert attribute("gradient_dot", task, bed.train, queries).shape == (len(queries["text"]), 38)
    again = saved_tokenizer(str(bed.folder / "model" / "pretrained"))
    assert lm.boundary_id(again) == lm.boundary_id(bed.tokenizer) == opening


def test_another_tokenizer_in_the_same_folder_is_another_corpus(tmp_path):
    content = rows(40)
    saved_model(tmp_path / "model", [row["text"] for row in content])
    sections = {"model": {"from": str(tmp_path / "model"), "context": 96}}
    path = jsonl(tmp_path, content)
    before = testbeds.load(path, overrides={"testbeds": {"mine": sections}})
    ids = before.train["input_ids"]
    saved_model(tmp_path / "model", ["ship island water"] * 9)
    after = testbeds.load(path, overrides={"testbeds": {"mine": sections}})
    assert before.corpus_key != after.corpus_key and ids.shape != after.train["input_ids"].shape


def test_a_text_that_the_saved_model_cannot_hold_is_named_by_its_line(tmp_path):
    content = rows(40)
    clean = saved_model(tmp_path / "model", [row["text"] for row in content])
    content[6]["text"] = "ship " * 60 + "ship"
    n = len(clean.encode(content[6]["text"]).ids)
    sections = {"model": {"from": str(tmp_path / "model"), "context": n}}
    with pytest.raises(
        ValueError, match=rf"line 7: its text has {n} tokens .* context of {n}: .*\(all fit {n + 1}\)\.$"
    ):
        _ = testbeds.load(jsonl(tmp_path, content), overrides={"testbeds": {"mine": sections}}).documents


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


def test_a_data_set_of_the_hub_comes_through_the_same_door(monkeypatch):
    import datasets

    settings = {"kind": "hub", "dataset": "some/set", "split": "train", "text_column": "text", "vocabulary": None}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows()))
    built = custom.build(settings, 0, context=96, name="hub")
    assert len(built["documents"]) == 22 and 258 < built["tokenizer"].get_vocab_size() < 4096
    with pytest.raises(ValueError, match=r"^some/set, row 1: its text has .* raise testbeds\.hub\.model\.context"):
        custom.build(settings, 0, context=9, name="hub")

    def offline(name, split):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError) as caught:
        custom.build(settings, 0)
    assert str(caught.value) == (
        "corpus.dataset='some/set', split 'train': could not be loaded (no network). Check both names and the network."
    )
