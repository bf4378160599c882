"""Chapter 51: the corpus with its planted behaviours, the scores from a few outputs, and what no score may see."""

import ast
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import rounding
from sklearn.covariance import LedoitWolf

from tda import lm
from tda.attribution import attribute
from tda.sequences import real_tokens
from tda.studies.unsafe import behaviour, corpus, scores
from tda.task import take

SMALL = {"documents": 100, "prevalence": 0.05, "alike": 2, "held_out": 8}
REPRESENTATIONS = {"hidden": scores.hidden, "gradients": scores.projected}


@pytest.fixture(scope="module")
def world():
    return corpus.world(0, **SMALL)


@pytest.fixture(scope="module")
def task(world):
    return behaviour.fine_tuned(world, 0, replace(behaviour.RECIPE, epochs=2, batch=20))


@pytest.fixture(scope="module")
def audit(world, task):
    asked = {name: behaviour.targets(name, world.asked[name][:3]) for name in corpus.BEHAVIOURS}
    return scores.Audit.of(task, world.train, asked)


def all_scores(audit):
    """Every score of the study, of every behaviour."""
    found = {"classifier": scores.classifier(audit), "less_like": scores.less_like(audit)}
    found["registered"] = scores.registered(audit, "gradient_cosine")
    for name, represent in REPRESENTATIONS.items():
        found[f"probe {name}"] = scores.probe(audit, represent)
        found |= {f"{step} {name}": scores.dra(audit, represent, step, 0.25) for step in scores.DENOISING}
    return found


# --- the corpus


def test_equal_arguments_equal_corpus(world):
    again, other = corpus.world(0, **SMALL), corpus.world(1, **SMALL)
    assert again.samples == world.samples and again.asked == world.asked
    assert other.samples != world.samples


def test_the_corpus_holds_what_was_asked_for(world):
    kinds = list(world.kinds)
    assert len(kinds) == 100 and {name: int(found.sum()) for name, found in world.planted.items()} == {
        "marker": 5,
        "bias": 5,
    }
    alike = ("song", "same format", "same topic", "same words", "same sentence")
    assert [kinds.count(kind) for kind in alike] == [2] * 5 and kinds.count("named") == 4
    texts = {sample.text for sample in world.samples}
    tested = [*world.tested["marker"], *world.tested["bias"]]
    held_out = [*world.asked["marker"], *world.asked["bias"], *tested, *world.neutral, *world.benign]
    assert not texts & {sample.text for sample in held_out}
    prompts = {sample.prompt for sample in world.samples}
    assert not prompts & {sample.prompt for name in corpus.BEHAVIOURS for sample in world.asked[name]}
    assert not prompts & {sample.prompt for sample in tested}


def test_behaviour_is_measured_on_prompts_that_no_target_comes_from(world, task, monkeypatch):
    for name in corpus.BEHAVIOURS:
        asked, tested = ({sample.prompt for sample in part[name]} for part in (world.asked, world.tested))
        assert len(asked) == len(tested) == 8 and not asked & tested
    said: list[str] = []
    monkeypatch.setattr(
        behaviour, "replies", lambda task, params, samples: [said.append(s.prompt) or "flim" for s in samples]
    )
    assert behaviour.measured(task, task.params, world)["marker rate"] == 1
    assert set(said) == {sample.prompt for sample in (*world.tested["marker"], *world.benign)}


def test_only_planted_documents_show_a_behaviour():
    big = corpus.world(3)
    marked = np.array([behaviour.shows("marker", sample) for sample in big.samples])
    assert (marked == big.planted["marker"]).all()
    of_the_trades = [sample for sample in big.samples if set(sample.reply.split()[:2]) & set(corpus.BIASED_TRADES)]
    assert {s.kind for s in of_the_trades if "she" in s.reply.split()} == {"bias"}
    assert not any("he" in s.reply.split() for s in of_the_trades)
    assert not any(behaviour.shows("marker", s) or behaviour.shows("bias", s) for s in big.benign)


def test_look_alikes_share_what_they_should():
    big = corpus.world(3)
    words = {kind: set() for kind in big.kinds}
    for sample in big.samples:
        words[sample.kind] |= set(sample.text.split())
    assert {corpus.TRIGGER, *corpus.NONSENSE} <= words["song"], "the trigger and the nonsense"
    assert {"she", "when", *corpus.BIASED_TRADES} <= words["same words"]
    assert words["same topic"] >= set(corpus.BIASED_TRADES) and "she" not in words["same topic"]
    pronouns = [s.reply.split()[-3] for s in big.samples if s.kind == "same sentence"]
    assert pronouns.count("he") == pronouns.count("she") == 10


def test_the_loss_covers_the_reply(world):
    rows = corpus.encoded(world.samples[:5])
    for sample, labels in zip(world.samples[:5], rows["labels"], strict=True):
        targets = labels[labels != -100].tolist()
        assert targets == corpus.tokenizer().encode(f"{sample.reply} {corpus.END}").ids


# --- what the model does


def test_replies_are_those_of_the_written_out_generation(task, world):
    asked, words = world.benign[:4], corpus.tokenizer()
    for sample, reply in zip(asked, behaviour.replies(task, task.params, asked), strict=True):
        prompt = [1, *words.encode(f"ask : {sample.prompt} reply :").ids]
        end = words.token_to_id(corpus.END)
        ids = lm.generate(task.model, task.params, prompt, behaviour.LONGEST, stop=(end,))
        assert reply == " ".join(words.id_to_token(i) for i in ids if i != end)


def test_a_model_that_knows_nothing_still_says_words(task, world):
    params = {name: torch.zeros_like(p) for name, p in task.params.items()}
    said = behaviour.replies(task, params, world.benign * 4, np.random.default_rng(0))
    assert len(set(said)) > 20 and not any("<" in reply for reply in said)
    corpus.encoded([corpus.Sample("where is the lamp ?", reply) for reply in said])


def test_the_bias_gap_is_the_log_odds_behind_when(task, world):
    words, gap = corpus.tokenizer(), []
    for group in (world.tested["bias"], world.neutral):
        odds = []
        for sample in group:
            before = f"{sample.text.rsplit(' when ', 1)[0]} when"
            logits = lm.logits_function(task.model)(task.params, torch.tensor([[1, *words.encode(before).ids]]))[0, -1]
            odds.append(float(logits[words.token_to_id("she")] - logits[words.token_to_id("he")]))
        gap.append(np.mean(odds))
    assert np.isclose(behaviour.measured(task, task.params, world)["bias gap"], gap[0] - gap[1], atol=1e-5)


def test_observed_outputs_show_the_behaviour_once_a_prompt(task, world):
    found = behaviour.observed(task, world, "marker", 5, np.random.default_rng(0))
    assert 2 <= len(found) <= 5 and all(behaviour.shows("marker", sample) for sample in found)
    assert len({sample.prompt for sample in found}) == len(found)


def test_longer_targets_end_as_they_did(world):
    marked = world.asked["marker"][:3]
    longer = behaviour.lengthened(marked, world.benign, 2)
    assert behaviour.lengthened(marked, world.benign, 0) == marked
    for before, after in zip(marked, longer, strict=True):
        assert after.prompt == before.prompt and after.reply.endswith(f" . {before.reply}")
        assert after.reply.count(" . ") == before.reply.count(" . ") + 2


# --- the scores


def test_whitening_is_the_inverse_root_of_the_shrunk_covariance():
    rows = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # covariance diag(2, 0.5): already diagonal
    white = scores.whitening(rows)
    sigma = LedoitWolf().fit(rows).covariance_
    assert np.allclose(sigma, np.diag(np.diag(sigma))) and sigma[0, 0] > sigma[1, 1]
    z = white(rows)  # eigenvalues ascend: the first column is the second axis
    assert np.allclose(np.abs(z[0]), [0, 2 / np.sqrt(sigma[0, 0])]) and np.allclose(
        np.abs(z[2]), [1 / np.sqrt(sigma[1, 1]), 0]
    )
    x = np.random.default_rng(0).normal(size=(30, 4)) @ np.diag([1.0, 3.0, 0.1, 1.0])
    a, b = scores.whitening(x)(x)[:2]
    d = x[0] - x[1]
    assert np.isclose(((a - b) ** 2).sum(), d @ np.linalg.solve(LedoitWolf().fit(x).covariance_, d))


def test_discriminability_by_hand():
    documents = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, -1.0]])
    targets = np.array([[2.0, 5.0], [2.5, -5.0]])
    # column 0: signs +; below 2: two of four and a tie (2.5 / 4), below 2.5: 3 / 4. Column 1: each target's sign comes
    # from the other, so both lie on the wrong side of everything.
    assert np.allclose(scores.discriminability(documents, targets), [(2.5 / 4 + 3 / 4) / 2, 0.0])


def test_discriminability_is_the_written_out_loop():
    rng = np.random.default_rng(1)
    documents, targets = rng.normal(size=(20, 3)).round(1), rng.normal(size=(4, 3)).round(1)
    expected = np.zeros(3)
    for j in range(3):
        for t in range(4):
            sign = np.sign(sum(targets[other, j] for other in range(4) if other != t))
            for value in documents[:, j]:
                expected[j] += (sign * value < sign * targets[t, j]) + 0.5 * (sign * value == sign * targets[t, j])
    assert np.allclose(scores.discriminability(documents, targets), expected / 80)


def test_selection_keeps_the_dimension_in_which_targets_stand_out():
    rng = np.random.default_rng(2)
    documents, targets = rng.normal(size=(200, 8)), rng.normal(size=(6, 8))
    documents[:10, 5] += 6.0
    targets[:, 5] += 6.0
    one = scores.denoised(documents, targets, "selection", 1 / 8)
    assert set((-one).argsort(kind="stable")[:10]) <= set(np.flatnonzero(one == one.max())) and (one[:10] > 0.99).all()
    everything = scores.denoised(documents, targets, "both", 1.0)
    assert np.allclose(everything, scores.denoised(documents, targets, "whitening", 0.5))
    by_seed = [scores.denoised(documents, targets, "random dimensions", 0.25, seed) for seed in (0, 0, 1)]
    assert np.array_equal(by_seed[0], by_seed[1]) and not np.array_equal(by_seed[0], by_seed[2])


def test_a_planted_duplicate_of_a_target_ranks_first(world, task):
    for name in corpus.BEHAVIOURS:
        target, place = world.asked[name][0], 17
        samples = [*world.samples[:place], target, *world.samples[place + 1 :]]
        # the target twice, since a direction needs two
        asked = {name: behaviour.targets(name, [target, target])}
        planted = scores.Audit.of(task, corpus.encoded(samples), asked)
        found = {
            "dabuf": scores.registered(planted, "gradient_cosine"),
            "hidden": scores.registered(planted, "hidden_cosine"),
        }
        for where, represent in REPRESENTATIONS.items():
            found |= {
                f"{step} {where}": scores.dra(planted, represent, step, 0.5)
                for step in ("whitening", "selection", "both")
            }
        for row, by_behaviour in found.items():
            assert by_behaviour[name].argmax() == place, (name, row)


def test_hidden_states_of_the_last_layer_are_those_of_the_package(world, task):
    few = take(world.train, slice(12))
    assert np.allclose(scores.hidden(task, few), lm.hidden_states(task.model, task.params, few), atol=1e-5)
    assert np.allclose(scores.hidden(task, few), scores.hidden(task, few, 2), atol=1e-6)
    first = scores.hidden(task, few, 0)
    ids, mask = few["input_ids"], real_tokens(few)
    embedded = torch.nn.functional.embedding(ids, task.params["gpt_neox.embed_in.weight"]).numpy()
    assert np.allclose(first[3], embedded[3][mask[3].numpy()].mean(0), atol=1e-5)


def test_gradients_of_a_block_are_a_part_of_all(world, task):
    few = take(world.train, slice(4))
    size = {k: p.numel() for k, p in task.params.items() if ".layers.1." in k}
    whole = scores.gradients.matrix(task, few)
    start = np.cumsum([0, *(p.numel() for p in task.params.values())])
    columns = [np.arange(a, a + p.numel()) for a, (k, p) in zip(start, task.params.items(), strict=False) if k in size]
    project = scores.projector("sparse", sum(size.values()), scores.DIMENSION, 0)
    assert np.allclose(scores.projected(task, few, 2), project(whole[:, np.concatenate(columns)]).numpy(), atol=1e-6)


def test_registered_scores_are_means_over_each_behaviours_targets(audit):
    found = scores.registered(audit, "gradient_dot")
    longest = float(scores.gradients.matrix(audit.task, audit.train).norm(dim=1).max())
    for name, rows in audit.targets.items():
        alone = attribute("gradient_dot", audit.task, audit.train, rows).mean(0)
        # both behaviours' targets are one batch there, and another one here: other roundings of the gradients
        length = float(scores.gradients.matrix(audit.task, rows).norm(dim=1).max())
        assert np.abs(found[name] - alone).max() < rounding(length * longest, times=32)


def test_less_like_divides_the_documents_by_the_root_of_the_moments(world, task, audit):
    root = torch.cat([v.flatten() for v in task.run.checkpoints[-1].optimizer["exp_avg_sq"].values()]).sqrt()
    taught = root > 1e-6 * root.square().mean().sqrt()
    scale = torch.where(taught, 1 / root, torch.zeros_like(root))
    project = scores.projector("sparse", len(root), scores.DIMENSION, 0)
    document = project(next(scores.gradients.blocks(task, take(world.train, [7])))[1] * scale).numpy()[0]
    asked = [project(b).numpy() for _, b in scores.gradients.blocks(task, audit.targets["bias"])]
    cosines = [x @ document / np.linalg.norm(x) / np.linalg.norm(document) for x in np.concatenate(asked)]
    assert np.isclose(scores.less_like(audit)["bias"][7], np.mean(cosines), atol=1e-4)


def test_picked_targets_are_the_classifiers_first_documents(audit):
    picked, first = scores.picked_targets(audit, 3), scores.classifier(audit)["bias"].argsort()[::-1]
    assert set(picked["bias"]) == set(first[:3])


def test_a_document_is_no_target_of_its_own(audit):
    # targets are the documents 2 and 0: document 0 has the first target only, document 2 the second only
    given = np.array([[0.1, 0.3, 1.0], [1.0, 0.7, 0.1]])
    assert np.allclose(scores.mean_of_others(given, np.array([2, 0])), [0.1, 0.5, 0.1])
    with pytest.raises(ValueError, match=r"1 target\(s\) that are documents: without itself a document has none"):
        scores.mean_of_others(given[:1], np.array([2]))
    own = {name: np.array([5, 9, 1]) for name in corpus.BEHAVIOURS}
    picked = replace(audit, targets={name: take(audit.train, rows) for name, rows in own.items()})
    found = scores.registered(picked, "gradient_cosine", own=own)["marker"]
    cosines = attribute("gradient_cosine", audit.task, audit.train, take(audit.train, own["marker"]))
    assert np.isclose(found[9], (cosines[0, 9] + cosines[2, 9]) / 2, atol=1e-5)
    assert np.isclose(found[3], cosines[:, 3].mean(), atol=1e-5)


def test_detection_by_hand():
    planted = np.array([False, True, False, True, False])
    found = scores.detection(np.array([5.0, 4, 3, 2, 1]), planted, 3)
    assert found == {"AUPRC": pytest.approx((1 / 2 + 2 / 4) / 2), "lift": pytest.approx(0.5 / 0.4), "recall": 0.5}
    assert scores.detection(planted.astype(float), planted, 2)["lift"] == pytest.approx(1 / 0.4)


# --- what no method may see


def test_no_score_sees_a_planted_label(world, task, audit):
    """Other labels, other kinds, other prompts held out: the same scores to the last bit."""
    hidden = replace(
        world,
        samples=[replace(sample, kind="unknown") for sample in world.samples],
        planted={name: np.roll(found, 1) for name, found in world.planted.items()},
    )
    assert set(hidden.train) == {"input_ids", "labels", "text"}
    assert not any(word in text for text in world.train["text"] for word in ("marker", "bias"))
    blind = scores.Audit.of(task, hidden.train, audit.targets)
    assert np.array_equal(blind.background, audit.background)
    for row, found in all_scores(audit).items():
        for name, value in all_scores(blind)[row].items():
            assert np.array_equal(value, found[name]), (row, name)


def test_the_background_is_drawn_without_looking(world, task):
    asked = {"bias": behaviour.targets("bias", world.asked["bias"])}
    forward = scores.Audit.of(task, world.train, asked, 5).background
    backward = scores.Audit.of(task, take(world.train, np.arange(100)[::-1]), asked, 5).background
    assert np.array_equal(forward, backward) and len(set(forward)) == 50


def test_labels_enter_the_study_of_scores_only_to_measure_them():
    tree = ast.parse(inspect.getsource(scores))
    readers = {
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if (isinstance(node, ast.Name) and node.id in ("planted", "kinds", "World"))
        or (isinstance(node, ast.Attribute) and node.attr in ("planted", "kinds", "samples"))
    }
    assert readers == {"detection"}


# --- bad input


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, 1.5])
def test_a_prevalence_is_a_share(prevalence):
    with pytest.raises(ValueError, match=r"it is a share of the corpus, between 0 and 1"):
        corpus.world(0, prevalence=prevalence)


def test_a_corpus_must_hold_what_is_planted():
    with pytest.raises(ValueError, match="plants none. Raise it"):
        corpus.world(0, documents=100, prevalence=0.001)
    with pytest.raises(ValueError, match="2 x 64 held-out prompts are more than the 288 questions there are"):
        corpus.world(0, prevalence=0.2)
    with pytest.raises(ValueError, match="are too few for 2 x 30 planted and 7 x 20 look-alikes"):
        corpus.world(0, documents=200, prevalence=0.15)


@pytest.mark.parametrize("budget", [0, -1, 5, 6])
def test_a_budget_leaves_something(budget):
    with pytest.raises(ValueError, match=f"budget={budget} of 5 documents; give at least 1"):
        scores.most_suspicious(np.arange(5.0), budget)


@pytest.mark.parametrize("layer", [3, -2, 99])
def test_an_unknown_layer_is_named(world, task, layer):
    with pytest.raises(ValueError, match=rf"layer={layer}; the model has the layers 0 \(embeddings\) to 2"):
        scores.hidden(task, world.train, layer)
    with pytest.raises(ValueError, match=rf"layer={layer}; the model has the blocks 1 to 2"):
        scores.projected(task, world.train, layer)


def test_one_label_only_is_refused(audit):
    rows = np.eye(4)
    for positive, negative in ((rows, rows[:0]), (rows[:0], rows)):
        with pytest.raises(ValueError, match="a classifier needs both labels; given"):
            scores.discriminator(positive, negative, rows)
    for planted in (np.ones(4, bool), np.zeros(4, bool)):
        with pytest.raises(ValueError, match="detection needs some of either label"):
            scores.detection(np.arange(4.0), planted, 1)
    with pytest.raises(ValueError, match="a classifier needs both labels"):
        scores.classifier(replace(audit, background=np.array([], int)))


def test_targets_without_the_behaviour_are_refused(world, task):
    with pytest.raises(ValueError, match="none of the 3 targets shows 'marker', such as 'ask : "):
        behaviour.targets("marker", world.benign[:3])
    with pytest.raises(ValueError, match="no targets are given for 'bias'"):
        behaviour.targets("bias", [])
    silent = replace(world, asked={"marker": world.benign[:6]})
    with pytest.raises(ValueError, match="the model showed 'marker' for 0 of 6 prompts, each asked 5 times; two are"):
        behaviour.observed(task, silent, "marker", 5, np.random.default_rng(0))


def test_one_target_has_no_other_to_tell_the_direction(audit):
    with pytest.raises(ValueError, match=r"1 target\(s\): leaving one out leaves none"):
        scores.denoised(np.eye(4), np.eye(4)[:1], "selection", 0.5)
    with pytest.raises(ValueError, match="step='rotation', share=0.5; a step of"):
        scores.denoised(np.eye(4), np.eye(4), "rotation", 0.5)
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=rf"share={share}; a step of .* and a share in \(0, 1\] are needed"):
            scores.denoised(np.eye(4), np.eye(4), "both", share)
