"""Corpora with planted leaks, suspicion, and the choice of documents (tda/studies/audit)."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from tda.studies.audit import leaks, selection, suspicion


def corpus(n=40, context=64):
    texts = [f"person{i} sings . person{i} lives in town{i} ." for i in range(n - 1)] + ["one sentence only"]
    documents = {"text": texts, "entity": [f"person{i}" for i in range(n)]}
    return SimpleNamespace(documents=documents, settings={"model": {"context": context}})


ITEMS = {"text": [f"item{i} dances" for i in range(30)], "entity": [f"other{i}" for i in range(30)]}


def planted(seed=0, rate=0.05):
    rng = np.random.default_rng(seed)
    drawn = leaks.draw(rng, 30, 40, (rate, 2 * rate))
    return drawn, leaks.plant(rng, corpus(), ITEMS, drawn[rate])


def test_no_item_leaks_twice_and_each_form_has_its_share():
    drawn, _ = planted()
    assert {rate: [len(drawn[rate][form]) for form in leaks.FORMS] for rate in drawn} == {0.05: [2] * 3, 0.1: [4] * 3}
    every = np.concatenate([positions for forms in drawn.values() for positions in forms.values()])
    assert len(set(every)) == len(every) == 18 and every.max() < 30
    assert leaks.draw(np.random.default_rng(0), 30, 40, ()) == {}


def test_source_names_the_item_that_a_document_holds_and_no_other_document_holds_one():
    drawn, leaky = planted()
    first = drawn[0.05]
    assert len(leaky.texts) == len(leaky.entities) == len(leaky.source) == 42
    for text, entity, source in zip(leaky.texts, leaky.entities, leaky.source, strict=True):
        held = [i for i, item in enumerate(ITEMS["text"]) if item in text]
        assert held == ([source] if source >= 0 else [])
        if source in first["alone"]:
            assert text == ITEMS["text"][source] and entity == ITEMS["entity"][source]
        elif source >= 0:
            assert text.split(" . ")[1] == ITEMS["text"][source] and text.startswith(f"{entity} sings . ")
    times = {form: [(leaky.source == i).sum() for i in positions] for form, positions in first.items()}
    assert times == {"alone": [1, 1], "twice": [2, 2], "hidden": [1, 1]}


def test_an_item_in_the_place_of_a_sentence_keeps_the_length_of_its_host():
    """Items of 2 and of 4 words, and second sentences of 2 and of 4."""
    bed = corpus()
    second = ["she runs ." if i % 2 else "he drinks cold tea . the end ." for i in range(40)]
    texts = [f"person{i} sings . {text}" for i, text in enumerate(second)]
    bed.documents["text"] = texts
    items = ITEMS | {"text": [f"item{i} dances" + " all night" * (i % 2) for i in range(30)]}
    forms = {"alone": np.array([0]), "twice": np.array([1, 2, 3]), "hidden": np.array([4, 5])}
    leaky = leaks.plant(np.random.default_rng(0), bed, items, forms, replace=True)
    assert len(leaky.texts) == 41 and sorted(leaky.source[leaky.source >= 0]) == [0, 1, 1, 2, 2, 3, 3, 4, 5]
    before = dict(zip(bed.documents["entity"], texts, strict=True))
    for text, entity, source in zip(leaky.texts, leaky.entities, leaky.source, strict=True):
        if source != 0:
            start = before[entity] if source < 0 else f"{entity} sings . {items['text'][source]} ."
            assert text.startswith(start)
            assert text.endswith("the end .") == before[entity].endswith("the end .")
            assert len(text.split()) == len(before[entity].split())
    added = leaks.plant(np.random.default_rng(0), bed, items, forms)
    longer = np.array([len(text.split()) for text in added.texts])[added.source > 0]
    assert (longer >= 8).all(), "chapter 13 adds it: of 5 or 10 words the host's own stay"


def test_planted_leaks_are_the_draw_of_their_seed():
    assert planted(3)[1].texts == planted(3)[1].texts != planted(4)[1].texts


def test_suspicion_sees_no_labels():
    """Neither the order of the items, nor their scale, nor who leaked changes who is suspected."""
    scores = np.random.default_rng(0).normal(size=(6, 30))
    scores[2, 7] = 9.0
    assert suspicion.pooled(scores).argmax() == 7 == suspicion.pooled(scores[[2, 0, 1, 3, 4, 5]]).argmax()
    shift = np.arange(6)[:, None]
    np.testing.assert_allclose(suspicion.pooled(3.0 * scores + shift), suspicion.pooled(scores), rtol=1e-12)


def test_both_pools_by_hand():
    scores = np.array([[0.0, 0, 3, 1], [5, 5, 5, 5], [2, 0, 0, 2]])
    z = [(scores[0] - 1) / np.sqrt(1.5), np.zeros(4), scores[2] - 1]
    np.testing.assert_allclose(suspicion.pooled(scores), np.max(z, axis=0))
    np.testing.assert_allclose(suspicion.pooled(scores, "mean"), np.mean(z, axis=0))


def test_the_bucket_is_a_mean_over_orders_of_ties():
    values, rng = np.array([3.0, 1, 1, 1, 2, 1, 0, 1]), np.random.default_rng(0)
    size, hits = 4, np.zeros(8)
    for _ in range(4000):
        hits[np.lexsort((rng.random(8), -values))[:size]] += 1
    np.testing.assert_allclose(suspicion.in_bucket(values, 0.5), hits / 4000, atol=0.03)
    assert suspicion.in_bucket(values, 0.5).sum() == pytest.approx(size)
    assert suspicion.in_bucket(np.arange(5.0), 0.01).tolist() == [0, 0, 0, 0, 1], "never empty"


def test_shares_above_are_the_area_under_the_curve():
    rng = np.random.default_rng(1)
    values, held = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.3
    copies = np.flatnonzero(held)
    above = suspicion.shares_above(values, copies, ~held)
    assert above.mean() == pytest.approx(roc_auc_score(held, values))
    by_ranks = [(rankdata(np.append(values[~held], v))[-1] - 1) / (~held).sum() for v in values[copies]]
    np.testing.assert_allclose(above, by_ranks)


def test_an_item_has_the_larger_value_of_its_copies():
    assert suspicion.per_item(np.array([0.1, 0.9, 0.4]), np.array([7, 3, 7])).tolist() == [0.9, 0.4]


def test_a_choice_takes_the_largest_and_of_equal_ones_the_first():
    assert selection.chosen(np.array([1.0, 5, 5, 0, 5]), 2).tolist() == [1, 2]
    assert selection.chosen(np.array([1.0, 5, 5, 0]), 4).tolist() == [0, 1, 2, 3]


def test_halves_share_no_query_and_are_about_the_group():
    entity = np.array(list("aabbccaabb"))
    held_out = np.array([True] * 8 + [False] * 2)
    development, evaluation = selection.halves(np.random.default_rng(0), held_out, entity, ["a", "b"])
    assert sorted([*development, *evaluation]) == [0, 1, 2, 3, 6, 7] and len(development) == len(evaluation) == 3


BAD = {
    "leak rate of 0;": lambda: leaks.draw(np.random.default_rng(0), 30, 40, (0,)),
    "leak rate of 1;": lambda: leaks.draw(np.random.default_rng(0), 30, 40, (0.1, 1)),
    "leak rate of nan;": lambda: leaks.draw(np.random.default_rng(0), 30, 40, (float("nan"),)),
    "leak 36 items in 3 forms, and there are 30;": lambda: leaks.draw(np.random.default_rng(0), 30, 40, (0.3,)),
    "3 leaks are to hide in such; lower the rate": lambda: leaks.plant(
        np.random.default_rng(0), corpus(context=25), ITEMS, {form: np.array([i]) for i, form in enumerate(leaks.FORMS)}
    ),
    "no second sentence is left to replace by one of 3 words;": lambda: leaks.plant(
        np.random.default_rng(0),
        corpus(),
        {"text": ["one two three"] * 3, "entity": ["a"] * 3},
        {form: np.array([i]) for i, form in enumerate(leaks.FORMS)},
        replace=True,
    ),
    "a budget of 5 documents from a pool of 4;": lambda: selection.chosen(np.arange(4.0), 5),
    "a budget of 0 documents": lambda: selection.chosen(np.arange(4.0), 0),
    "not finite": lambda: selection.chosen(np.array([1.0, float("nan")]), 1),
    "pooled by 'median' over 3 queries;": lambda: suspicion.pooled(np.eye(3), "median"),
    "over 0 queries;": lambda: suspicion.pooled(np.zeros((0, 3))),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_input_is_refused_in_one_line(said):
    with pytest.raises(ValueError) as error:
        BAD[said]()
    assert said in str(error.value) and "\n" not in str(error.value)
