"""The labels of the people testbed against the words of its documents, and what its corpus promises."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from conftest import CORPUS

from tda import config
from tda.testbeds import people, statements

FULL = {
    **config.load("paper")["testbeds"]["people"]["corpus"],
    "people": 30, "contradictions": 0.1, "pronoun_only": 0.1,
}  # fmt: skip
SMALL = {**FULL, **CORPUS}


@pytest.fixture(scope="module")
def built():
    return people.build(FULL, seed=3)


@pytest.fixture(scope="module")
def truth(built):
    """(person, attribute) -> value, read from the probes, which state only what is true."""
    return {(row["entity"], row["attribute"]): row["value"] for row in built["probes"]}


def triples(row):
    return [tuple(fact.split("|")) for fact in row["facts"]]


def documents(built, planted):
    found = [row for row in built["documents"] if row["planted"] == planted]
    assert len(found) >= 5, f"the corpus must hold {planted!r} documents for this test to mean anything"
    return found


def test_labels_say_what_the_text_states(built):
    for row in built["documents"]:
        who = "" if row["planted"] == "pronoun" else row["entity"]
        read = statements.parse(row["text"])
        assert read == [(who, attribute, value) for _, attribute, value in triples(row)], row
        assert {entity for entity, _, _ in triples(row)} == {row["entity"]}


def test_template_and_style_say_how_it_is_worded(built):
    for row in built["documents"]:
        if row["planted"] == "one_word":
            continue
        text = row["text"].removeprefix(statements.REGISTERS[row["style"]]).strip()
        for (_, attribute, value), template in zip(triples(row), row["template"].split("+"), strict=True):
            named, wording = template.split(":")
            forms = [
                statements.sentence(who, attribute, int(wording), value)
                for who in (row["entity"], *statements.PRONOUNS)
            ]
            assert named == attribute
            start = [form for form in forms if text.startswith(form)]
            assert start, (row, forms)
            text = text.removeprefix(start[0]).strip()
        assert not text


def test_parse_refuses_what_states_nothing():
    assert statements.parse("Abra Bolt keeps a pet .") == []
    assert statements.parse("Abra Bolt keeps a pet guitar .") == [], "a guitar is no pet"
    assert statements.parse("she was born in Arvik .") == [("", "birthplace", "Arvik")]
    text = "Abra Bolt keeps a pet newt . Bex Elm plays the lute . she was born in Arvik ."
    assert statements.parse(text)[2] == ("Bex Elm", "birthplace", "Arvik"), "a pronoun is the last person named"


def test_no_wording_can_be_read_in_two_ways():
    for attribute, wordings in statements.WORDINGS.items():
        for number in range(len(wordings)):
            for value in statements.VALUES[attribute]:
                text = statements.sentence("Abra Bolt", attribute, number, value)
                assert statements.parse(text) == [("Abra Bolt", attribute, value)]
    used = {word for wordings in statements.WORDINGS.values() for text in wordings for word in text.split()}
    used |= {word for opening in statements.REGISTERS.values() for word in opening.split()}
    assert not used & set(statements.UNEDIT), "a one-word edit must be recognisable as one"
    values = [value for among in statements.VALUES.values() for value in among]
    assert len(values) == len(set(values)), "a value names its attribute"
    names = set(statements.FIRST) | set(statements.LAST)
    assert len(names) == len(statements.FIRST) + len(statements.LAST) and not names & set(values)


def test_tokeniser_round_trip(built):
    tokenizer = built["tokenizer"]
    texts = [row["text"] for row in (*built["documents"], *built["probes"])]
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_to_id(statements.UNK) not in ids and len(ids) == len(text.split())
    assert (tokenizer.token_to_id(statements.PAD), tokenizer.token_to_id(statements.BOS)) == (0, 1)


@pytest.mark.parametrize("wordings", [6, 5, 4, 3])
def test_held_out_wording_is_unused_for_the_person_and_used_for_others(wordings):
    built = people.build({**FULL, "wordings": wordings}, seed=1)
    used = defaultdict(set)
    for row in built["documents"]:
        for (_, attribute, _), template in zip(triples(row), row["template"].split("+"), strict=True):
            used[attribute, int(template.split(":")[1])].add(row["entity"])
    held = [row for row in built["probes"] if row["kind"] == "held_out"]
    assert len(held) == FULL["people"] * FULL["attributes"]
    for row in held:
        users = used[row["attribute"], row["wording"]]
        assert row["entity"] not in users
        assert users, f"wording {row['wording']} of {row['attribute']} is held out for some and used by nobody"
        assert not any(row["text"] in d["text"] for d in built["documents"])


def test_trained_probes_use_a_wording_seen_for_that_person(built):
    used = {
        (*fact[:2], int(template.split(":")[1]))
        for row in built["documents"]
        for fact, template in zip(triples(row), row["template"].split("+"), strict=True)
    }
    trained = [row for row in built["probes"] if row["kind"] == "trained"]
    assert len(trained) > 100
    assert all((row["entity"], row["attribute"], row["wording"]) in used for row in trained)


def test_probes_are_prompt_plus_value(built):
    for row in built["probes"]:
        assert row["prompt"] + row["target"] == row["text"] and row["target"] == f" {row['value']}"
        assert statements.parse(row["text"]) == [(row["entity"], row["attribute"], row["value"])]
    assert len({row["query_id"] for row in built["probes"]}) == len(built["probes"])


def test_contradictions_state_one_wrong_value_and_nothing_else_does(built, truth):
    wrong = {
        row["doc_id"]: sum(truth[entity, attribute] != value for entity, attribute, value in triples(row))
        for row in built["documents"]
    }
    for row in documents(built, "contradiction"):
        assert wrong[row["doc_id"]] == 1
    assert not any(wrong[row["doc_id"]] for row in built["documents"] if row["planted"] != "contradiction")


def test_pronoun_documents_never_name_their_person(built):
    for row in documents(built, "pronoun"):
        assert not set(row["text"].split()) & (set(statements.FIRST) | set(statements.LAST))
    for row in built["documents"]:
        if row["planted"] != "pronoun":
            assert row["entity"] in row["text"]
            others = set(row["text"].split()) & (set(statements.FIRST) | set(statements.LAST)) - set(
                row["entity"].split()
            )
            assert not others, "a document names only its own person"


def test_pronouns_agree(built):
    seen = defaultdict(set)
    for row in built["documents"]:
        seen[row["entity"]] |= set(row["text"].split()) & set(statements.PRONOUNS)
    assert max(map(len, seen.values())) == 1


def test_clusters_are_what_they_claim(built):
    clusters = defaultdict(list)
    for row in built["documents"]:
        if row["group"]:
            clusters[row["group"]].append(row)
    kinds = Counter(group.split("-")[0] for group in clusters)
    assert kinds == {
        "exact": FULL["exact_copies"],
        "one_word": FULL["one_word_edits"],
        "paraphrase": FULL["paraphrases"],
    }
    for group, rows in clusters.items():
        kind = group.split("-")[0]
        assert sorted(row["planted"] for row in rows) == ["", kind], "an original and its copy"
        a, b = rows
        assert a["facts"] == b["facts"] and a["entity"] == b["entity"]
        words = [row["text"].split() for row in rows]
        if kind == "exact":
            assert a["text"] == b["text"]
        elif kind == "one_word":
            assert len(words[0]) == len(words[1]) and sum(x != y for x, y in zip(*words, strict=True)) == 1
        else:
            pairs = zip(a["template"].split("+"), b["template"].split("+"), strict=True)
            assert all(x != y for x, y in pairs)
    planted = {row["doc_id"] for row in built["documents"] if row["planted"] in ("exact", "one_word", "paraphrase")}
    assert planted == {r["doc_id"] for rows in clusters.values() for r in rows if r["planted"]}


def test_names_are_shared_but_distinct(built):
    names = sorted({row["entity"] for row in built["documents"]})
    assert len(names) == FULL["people"] == built["report"]["people"]
    shared = sum(any(set(n.split()) & set(m.split()) for m in names if m != n) for n in names)
    assert shared == built["report"]["people_sharing_a_name"] >= 0.15 * len(names)
    alone = people.build({**FULL, "name_sharing": 0.0}, seed=3)
    assert alone["report"]["people_sharing_a_name"] == 0


def test_numbers_asked_for(built):
    counts = Counter(
        row["entity"] for row in built["documents"] if row["planted"] not in ("exact", "one_word", "paraphrase")
    )
    assert min(counts.values()) >= FULL["docs_min"] and max(counts.values()) == FULL["docs_max"]
    assert all(len(row["facts"]) == FULL["facts_per_document"] for row in built["documents"])
    assert all(len({a for _, a, _ in triples(row)}) == len(row["facts"]) for row in built["documents"])
    stated = Counter(fact for row in built["documents"] for fact in row["facts"])
    assert all(stated[statements.fact_id(e, a, v)] >= 3 for (e, a), v in _truth(built).items())
    share = built["report"]["planted"]["contradiction"] / len(built["documents"])
    assert 0.05 < share < 0.16
    flat = people.build({**FULL, "zipf": 0.0}, seed=3)["documents"]
    assert len(flat) > len(built["documents"])


def _truth(built):
    return {(row["entity"], row["attribute"]): row["value"] for row in built["probes"]}


def test_same_seed_same_corpus_and_another_seed_another():
    one, two, other = (people.build(SMALL, seed) for seed in (0, 0, 1))
    assert (one["documents"], one["probes"], one["report"]) == (two["documents"], two["probes"], two["report"])
    assert one["tokenizer"].to_str() == two["tokenizer"].to_str() == other["tokenizer"].to_str()
    assert one["documents"] != other["documents"]


def test_order_carries_no_provenance(built):
    """Ties in a ranking are broken by position; position must not know the person."""
    entity = np.array([row["entity"] for row in built["documents"]])
    neighbours = float((entity[1:] == entity[:-1]).mean())
    assert neighbours < 0.12, "documents of a person lie together"
    assert [row["doc_id"] for row in built["documents"]] == [f"p{i:04d}" for i in range(len(entity))]
    copies = [i for i, row in enumerate(built["documents"]) if row["planted"] == "exact"]
    assert min(copies) < len(entity) * 0.8, "copies are not all at the end"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"attributes": 7}, "attributes"),
        ({"values": 21}, "values"),
        ({"facts_per_document": 6}, "facts_per_document"),
        ({"people": 5000}, "people"),
        ({"exact_copies": 9999}, "duplicates"),
        ({"wordings": 7}, "wordings"),
        ({"wordings": 1}, "wordings"),
        ({"wordings": 2, "paraphrases": 4}, "paraphrases|wordings"),
    ],
)
def test_impossible_corpora_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        people.build({**FULL, **change}, seed=0)


@pytest.mark.parametrize("values", [4, 20])
def test_values_stay_in_range(values):
    built = people.build({**SMALL, "values": values}, seed=0)
    for row in built["documents"]:
        for _, attribute, value in triples(row):
            assert value in statements.VALUES[attribute][:values]
