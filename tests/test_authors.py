"""The `authors` testbed against the committed text it claims to describe."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest

from tda import config
from tda.testbeds import authors as A
from tda.testbeds.authors import OVERLAP, _shingles, near_duplicates
from tda.testbeds.cutting import split_prompt, train_bpe

SETTINGS = {
    "kind": "authors",
    "authors": 8,
    "passages": 100,
    "held_out": 12,
    "unseen": 6,
    "tokens_min": 60,
    "tokens_max": 120,
    "vocabulary": 1024,
}
SMALL = {**SETTINGS, "authors": 2, "passages": 20, "held_out": 4, "unseen": 3, "vocabulary": 400}


@pytest.fixture(scope="module")
def sources():
    return {entry["work"]: entry for entry in A.read_sources()}


@pytest.fixture(scope="module")
def corpus():
    return A.build(SETTINGS, seed=0)


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(A.SOURCES, tmp_path / "sources")
    return tmp_path / "sources"


def rewrite(folder, work, text):
    """Change one work and its entry in the index, as a person who adds a text would."""
    index = json.loads((folder / "index.json").read_text())
    entry = next(e for e in index if e["work"] == work)
    (folder / entry["path"]).write_bytes(text.encode())
    entry["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))


def test_the_committed_text_is_small_complete_and_listed(sources):
    files = {p.relative_to(A.SOURCES).as_posix() for p in A.SOURCES.rglob("*.txt")}
    assert files == {e["path"] for e in sources.values()}
    assert sum(p.stat().st_size for p in A.SOURCES.rglob("*") if p.is_file()) <= 2_000_000
    assert len({e["author"] for e in sources.values()}) >= 8
    for author in {e["author"] for e in sources.values()}:
        works = [e for e in sources.values() if e["author"] == author]
        assert len(works) >= 3 and {e["seen"] for e in works} == {True, False}
    listed = (A.SOURCES / "SOURCES.md").read_text()
    assert all(e["sha256"] in listed and e["work"] in listed for e in sources.values())
    assert hashlib.sha256((A.SOURCES / "people.yaml").read_bytes()).hexdigest() in listed
    assert sources["genesis"]["text"].startswith("In the beginning God created the heaven and the earth.")
    assert sources["emma"]["text"].startswith("Emma Woodhouse, handsome, clever, and rich, with a")


def test_typography_does_not_name_the_author(sources):
    """Plain ASCII, every character used by at least two authors, the common marks by all."""
    users = defaultdict(set)
    for entry in sources.values():
        for character in set(entry["text"]):
            users[character].add(entry["author"])
        paragraphs = entry["text"].rstrip("\n").split("\n\n")
        assert all(p == " ".join(p.split()) != "" for p in paragraphs), entry["work"]
        assert "--" not in entry["text"]
    assert set("".join(users)) <= {"\n", *map(chr, range(32, 127))} - set("_[]{}<>*#&%@|~^\\/+=`")
    assert {c: a for c, a in users.items() if len(a) < 2} == {}
    assert all(len(users[c]) == 11 for c in ".,;'")


def test_passages_are_verbatim_disjoint_and_of_the_asked_number(corpus, sources):
    assert Counter(d["entity"] for d in corpus["documents"]) == dict.fromkeys(corpus["report"]["available"], 100)
    kinds = {"held_out": 12, "unseen_work": 6}
    assert Counter((p["author"], p["kind"]) for p in corpus["probes"]) == {
        (author, kind): n for author in corpus["report"]["available"] for kind, n in kinds.items()
    }
    rows = [(d["doc_id"], d) for d in corpus["documents"]] + [(p["query_id"], p) for p in corpus["probes"]]
    assert len({name for name, _ in rows}) == len(rows)
    by_work = defaultdict(list)
    for name, row in rows:
        work, _, start = name.rpartition("_")
        start, end = int(start), int(start) + len(row["text"])
        by_work[work].append((start, end))
        assert row["work"] == work and sources[work]["author"] == row["entity"]
        assert sources[work]["text"][start:end] == row["text"] and "\n" not in row["text"]
    for spans in by_work.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_unseen_works_lend_only_queries_and_seen_works_share_evenly(corpus, sources):
    trained = Counter(d["work"] for d in corpus["documents"])
    assert all(sources[w]["seen"] for w in trained)
    assert all(sources[p["work"]]["seen"] == (p["kind"] == "held_out") for p in corpus["probes"])
    assert not {p["work"] for p in corpus["probes"] if p["kind"] == "unseen_work"} & set(trained)
    assert {trained[w] for w in ("genesis", "first_samuel", "acts", "emma", "mansfieldpark")} <= {33, 34}
    order = [d["entity"] for d in corpus["documents"]]
    assert sum(a == b for a, b in zip(order, order[1:], strict=False)) < 200  # shuffled: 100 of 799 expected


def test_lengths_round_trip_and_the_cut_of_a_query(corpus):
    encode, decode = corpus["tokenizer"].encode, corpus["tokenizer"].decode
    assert corpus["tokenizer"].get_vocab_size() == 1024
    assert [corpus["tokenizer"].token_to_id(t) for t in ("<pad>", "<eos>")] == [0, 1]
    for row in corpus["documents"] + corpus["probes"]:
        ids = encode(row["text"]).ids
        assert decode(ids) == row["text"] and len(ids) == row["tokens"] and 60 <= len(ids) <= 120
    for probe in corpus["probes"]:
        assert probe["prompt"] + probe["target"] == probe["text"]
        prompt, target = encode(probe["prompt"]).ids, encode(probe["target"]).ids
        assert encode(probe["text"]).ids == prompt + target
        assert 12 <= len(prompt) <= 28 and probe["target"].startswith(" ") and len(target) >= 30


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    first, second, other = A.build(SMALL, 0), A.build(SMALL, 0), A.build(SMALL, 1)
    assert all(first[part] == second[part] for part in ("documents", "probes", "report"))
    assert first["tokenizer"].to_str() == second["tokenizer"].to_str() == other["tokenizer"].to_str()
    assert first["documents"] != other["documents"]


def test_near_duplicates_by_hand_and_against_pairwise_sets(corpus):
    a = "one two three four five six seven eight nine ten"
    b = "One, two three four five six seven eight; nine eleven."
    assert near_duplicates([a, b, a]) == [(0, 1, 2 / 3), (0, 2, 1.0), (1, 2, 2 / 3)]
    assert near_duplicates(["x y"], [a]) == [] and near_duplicates(["x y"], ["X, y!"]) == [(0, 0, 1.0)]
    texts = [d["text"] for d in corpus["documents"]]
    query = texts[7].replace("the", "a", 1)
    assert max(near_duplicates([query], texts), key=lambda p: p[2])[:2] == (0, 7)
    sets = [_shingles(t) for t in texts]
    slow = [
        (i, j, len(sets[i] & sets[j]) / min(len(sets[i]), len(sets[j])))
        for i in range(len(sets))
        for j in range(i + 1, len(sets))
        if sets[i] & sets[j]
    ]
    assert near_duplicates(texts) == slow


def test_planted_copies_are_dropped_from_queries_and_reported_in_training(copied):
    """Copy trained passages into an unseen work, then a whole seen work over another."""
    clean = A.build(SMALL, 0, copied)
    paragraphs = {e["work"]: e["text"].rstrip("\n").split("\n\n") for e in A.read_sources(copied)}
    trained = [d["text"] for d in clean["documents"] if d["work"] in ("emma", "prideprejudice")][:3]
    assert len(trained) == 3 and clean["report"]["queries_dropped_total"] == 0
    planted = "\n\n".join(trained + paragraphs["persuasion"]) + "\n"
    rewrite(copied, "persuasion", planted)
    pool = 90  # unseen queries: enough that the planted ones are reached
    dirty = A.build({**SMALL, "unseen": pool}, 0, copied)
    training = {d["text"] for d in dirty["documents"]}
    assert dirty["report"]["queries_dropped"]["Austen"] >= 1
    assert not any(p["text"] in training for p in dirty["probes"])
    worst = near_duplicates([p["text"] for p in dirty["probes"]], [d["text"] for d in dirty["documents"]])
    assert all(overlap < OVERLAP for *_, overlap in worst)
    # Emma twice: the same paragraphs under two works.
    text = next(e["text"] for e in A.read_sources(copied) if e["work"] == "emma")
    rewrite(copied, "mansfieldpark", text)
    twice = A.build({**SMALL, "passages": 150}, 0, copied)
    report = twice["report"]
    assert report["queries_dropped"]["Austen"] > 0 and len(twice["documents"]) == 300
    works = {d["doc_id"]: d for d in twice["documents"]}
    copies = 0
    for first, second, overlap in report["training_pairs"]:
        copies += {works[first]["work"], works[second]["work"]} == {"emma", "mansfieldpark"}
        assert works[first]["group"] == works[second]["group"] != "" and overlap >= OVERLAP
    assert report["training_near_duplicates"] == len(report["training_pairs"]) >= copies >= 10
    assert sum(d["group"] != "" for d in twice["documents"]) == len(
        {name for *pair, _ in report["training_pairs"] for name in pair}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"authors": 12}, "authors is 12, but the sources hold 11: KJV, Austen"),
        ({"passages": 5000}, r"KJV: passages 5000 .* seen works hold \d+ passages"),
        ({"unseen": 500}, r"unseen 500 .* unseen works \d+ \(\d+ of \d+ unseen candidates"),
        ({"vocabulary": 200}, "vocabulary is 200; .* at least 258"),
        ({"vocabulary": 300_000}, r"vocabulary is 300000, but .* support only \d+"),
    ],
)
def test_bad_settings_give_one_clear_error(change, message):
    with pytest.raises(ValueError, match=message):
        A.build({**SMALL, **change}, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_min": 120, "tokens_max": 110}, r"authors.corpus.tokens_min: 120 .* at most tokens_max \(110\)"),
        ({"passages": 0}, "authors.corpus.passages: 0 is not allowed; it must be at least 4"),
        ({"held_out": 2.5}, "authors.corpus.held_out: 2.5 is not allowed; it must be of type integer"),
        ({"pasages": 3}, "authors.corpus.pasages: unknown key; .* did you mean 'passages'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_built(change, message):
    with pytest.raises(ValueError, match=message):
        config.load("smoke", {"testbeds": {"authors": {"corpus": change}}})


def test_a_changed_or_missing_source_is_refused(copied):
    path = copied / "austen" / "emma.txt"
    path.write_text(path.read_text().replace("Emma", "Anna", 1))
    with pytest.raises(ValueError, match=r"emma.txt: sha256 is [0-9a-f]{64}, index.json says"):
        A.build(SMALL, 0, copied)
    path.unlink()
    with pytest.raises(ValueError, match="emma.txt: sha256 is no file"):
        A.build(SMALL, 0, copied)


def test_sentences_keep_titles_initials_and_headwords_together():
    text = 'Abatis, n. Rubbish in front of a fort. "Mr. J. Smith came!" said Mrs. Weston. He left.'
    assert [text[a:b] for a, b in A.sentences(text)] == [
        "Abatis, n. Rubbish in front of a fort.",
        '"Mr. J. Smith came!" said Mrs. Weston.',
        "He left.",
    ]


def test_the_cut_is_at_the_start_of_the_nearest_word(corpus):
    """By the tokens' own marks of a space, as the tokeniser writes them; the function goes by offsets."""
    for probe in corpus["probes"]:
        encoding = corpus["tokenizer"].encode(probe["text"])
        starts = [k for k, piece in enumerate(encoding.tokens) if k and piece.startswith("\u0120")]
        cut = min(starts, key=lambda k: abs(k - 20))
        assert probe["prompt"] == corpus["tokenizer"].decode(encoding.ids[:cut])
        assert split_prompt(probe["text"], corpus["tokenizer"], 5)[0].count(" ") < probe["prompt"].count(" ")


@pytest.mark.parametrize(
    "text, prompt", [("ab cd", "ab"), (" ab cd ", " ab"), ("ab\ncd", "ab"), ("<eos> <pad>", "<eos>")]
)
def test_prompt_and_target_join_to_the_text_and_are_not_blank(text, prompt):
    made = train_bpe(["ab cd ef"] * 3, 262)
    assert split_prompt(text, made, 50) == (prompt, text[len(prompt) :])


@pytest.mark.parametrize("text", ["ab", " ab ", "a\u0301", "\U0001f600"])
def test_a_single_token_or_character_cannot_be_cut(text):
    with pytest.raises(ValueError, match="is a single token; a prompt and a target need at least two"):
        split_prompt(text, train_bpe(["ab ab"] * 3, 260), 20)


def test_a_token_that_joins_parts_of_two_characters_is_not_cut():
    """Byte-level tokens may end inside a character: (0, 1), (0, 2) share the first one."""
    spans = [(0, 1), (0, 2), (2, 3), (3, 4)]
    made = SimpleNamespace(encode=lambda text, add_special_tokens: SimpleNamespace(offsets=spans))
    assert split_prompt("\u5c71\u6c34\u4e91\u6708", made, 1) == ("\u5c71\u6c34", "\u4e91\u6708")
