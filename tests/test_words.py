"""Words in any script, and the two lexical methods that compare them."""

import re

import numpy as np
import pytest

import tda
from tda.task import Task
from tda.words import words


def test_words_of_ascii_are_runs_of_letters_and_digits():
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(map(chr, rng.integers(0, 128, 60)))
        assert words(text) == re.findall(r"[a-z0-9]+", text.lower())


@pytest.mark.parametrize(
    "text, found",
    [
        ("Größe und Süße", ["größe", "und", "süße"]),
        ("дом_и САД, 2024", ["дом", "и", "сад", "2024"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),  # composed or not, the same word
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs belong to their word
        ("한국어 문장", ["한국어", "문장"]),  # Korean has spaces
        ("山上有云。", ["山上", "上有", "有云"]),
        ("山", ["山"]),
        ("iPhone手機 12", ["iphone", "手機", "12"]),
        ("ラーメン・ﾗｰﾒﾝ", ["ラー", "ーメ", "メン"] * 2),  # half width is a spelling
        ("ｆｕｌｌ１", ["full1"]),
        ("น้ำ", ["น้", "้ํ", "ํา"]),
        ("ខ្មែរ", ["ខ្", "្ម", "មែ", "ែរ"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("!? 😀 —", []),
        ("", []),
    ],
)
def test_words_in_other_scripts(text, found):
    assert words(text) == found


CORPORA = {
    "Russian": ["красный мост над рекой", "старый дом у моря", "новая книга о горах", "дом и сад у реки"],
    "Chinese": ["山上有云", "水中有月", "花落春天", "春天的花"],
    "Thai": ["น้ำใสไหลเย็น", "ปลาตัวใหญ่", "ดอกไม้สีแดง", "บ้านริมน้ำ"],
    "German": ["über den Fluss", "die schöne Straße", "ein grünes Feld", "fünf süße Äpfel"],
    "mixed": ["a red bridge", "an old house", "水中有月", "дом и сад у реки"],
}


def score(name, documents, queries):
    task = Task("own", None, {}, encode={"text": lambda examples: examples["text"]})
    return tda.attribute(name, task, {"text": documents}, {"text": queries})


@pytest.mark.parametrize("name", ["bm25", "tfidf"])
@pytest.mark.parametrize("corpus", CORPORA)
def test_a_copy_ranks_first_in_every_script(name, corpus):
    documents = CORPORA[corpus]
    scores = score(name, documents, documents)
    off = scores - np.diag(np.full(len(documents), np.inf))
    assert (np.diag(scores) > off.max(1) + 1e-6).all()


@pytest.mark.parametrize("name", ["bm25", "tfidf"])
def test_texts_without_words_are_refused_and_a_query_without_known_words_scores_zero(name):
    with pytest.raises(ValueError) as caught:
        score(name, ["!? :-)", "-- --"], ["a word"])
    assert str(caught.value) == (
        "none of the 2 documents has a word (letters or digits), such as '!? :-)'; a lexical method has nothing to "
        "compare. Use a method that reads the model."
    )
    documents = ["a red bridge", "!?", "an old house"]  # one document without words is no reason to stop
    for query in ("zebra", "!?"):
        assert (score(name, documents, [query, "red"])[0] == 0).all()
        with pytest.raises(ValueError, match="every document the score 0 for every query.*no word in common"):
            score(name, documents, [query])
    assert score(name, documents, ["red"])[0].argmax() == 0
