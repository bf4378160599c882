"""Every registered method against its promise: signs, chunks, explicit references, limits, and refusals."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import join
from scipy.stats import spearmanr

import tda
from tda import classifiers, lm, models
from tda import queries as query_module
from tda.attribution import METHODS as REGISTERED
from tda.attribution import attribute, bgo, logra, representation, stride
from tda.attribution.registry import method
from tda.curvature import empirical
from tda.evaluation import retrieval
from tda.sequences import real_tokens
from tda.task import Task, n_examples, take, tensors
from tda.testbeds.digits import pixels
from tda.tools import projection
from tda.tools.gradients import blocks, flatten, matrix, swept, unflatten
from tda.training import Recipe, train_recorded

# name -> why it cannot run on the tasks of this file; its own file repeats these tests on a recorded SGD run
ELSEWHERE = {"unroll": "it differentiates through SGD: test_unroll.py", "source": "likewise: test_source.py"}
# name -> why it needs a denoiser, which no task of this file is; its own file repeats these tests on one
DENOISERS = {"mucs": "its losses draw noise: test_mucs.py", "abu": "likewise"}
DENOISERS |= dict.fromkeys(("diffusion_trak", "d_trak", "das", "journey_trak"), "test_diffusion_trak.py")
DENOISERS |= {"concept_trak": "it reads tokens of a condition: test_concept_trak.py"}
# name -> why only tasks of images offer what it needs; its own file repeats these tests there
OF_IMAGES = {"nda": "it compares patches of images: test_nda.py"}
# name -> why it is too slow for all tests of this file; its own file repeats those that concern it
TRAINED = {"airrep": "it fine-tunes hundreds of models: test_airrep.py"}
TRAINED |= {"half_influence": "it trains models of its own: test_half_influence.py"}
ABSENT = ELSEWHERE | OF_IMAGES | DENOISERS | TRAINED
METHODS = {name: chosen for name, chosen in REGISTERED.items() if name not in ABSENT}
# name -> why a copy of the query need not come first
NOT_BY_DUPLICATE = {
    "random": "its scores do not look at the data",
    "metadata": "all documents of a person tie with the copy",
}
# name -> why an anti-duplicate need not score below zero, although the method is registered `signed`
NOT_BY_SIGN = {"random": "its signs are coin flips"}
# The sign is a property of the first order; BGO's default step is large, and curvature can outweigh it there. STRIDE's
# Lasso sets weights to zero, which has no sign, and the noise of its descent turns the tiny effects of a sure query.
SIGN_OPTIONS = {"bgo": {"step": 0.02}, "stride": {"recovery": "ridge", "steps": 0}}
# name -> why the order of the documents matters, and why a document and its copy need not score the same
DRAWS = {"random": "its scores do not look at the data", "stride": "documents join random subsets by their position"}
DRAWS |= {"rank_combined": "one of its parts is stride"}
DRAWS |= {"loss_covariance": "documents join random batches by their position"}
# name -> options with which a query's scores do not depend on the other queries (by default they do, as published)
ALONE = {"trackstar": {"mixing": 0.0}}
# scores of a document depend on the others, as with every Fisher
WHOLE_CORPUS = ("bm25", "tfidf", "hidden_cosine", "rank_combined", "representer")
# name -> why its scores may move with the chunk
NOT_BY_CHUNK: dict[str, str] = {}
# name -> why it is not tried on classifiers, although it does not ask for text
NOT_ON_IMAGES = {"trackstar": "it divides by AdamW's second moments, and classifiers are trained with SGD"}
ON_IMAGES = [name for name in METHODS if "text" not in METHODS[name].needs and name not in NOT_ON_IMAGES]


def needs_package(name):
    if name == "minilm" and find_spec(representation.PACKAGE) is None:
        reason = f"minilm is skipped: the optional package {representation.PACKAGE} is not installed"
        print(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def few(queries):
    return take(queries, slice(0, 5))


@pytest.fixture(scope="module")
def scored(task, tiny, queries):
    """name -> scores on all queries with default options, computed once."""
    cache = {}

    def get(name):
        needs_package(name)
        if name not in cache:
            cache[name] = attribute(name, task, tiny.train, queries)
        return cache[name]

    return get


def explicit_gradients(task, examples, params=None):
    """One backward pass an example, no vmap: [n, P] in the order of the task's parameters."""
    rows = []
    for i in range(n_examples(examples)):
        at = {k: v.clone().requires_grad_() for k, v in (params or task.params).items()}
        one = {k: v[i : i + 1] for k, v in tensors(examples).items()}
        task.loss_fn(at, one, "mean").backward()
        rows.append(torch.cat([at[k].grad.flatten() for k in task.params]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def reference(task, tiny, few):
    """(query gradients [5, P], document gradients [N, P]) from explicit loops."""
    return explicit_gradients(task, few), explicit_gradients(task, tiny.train)


# --- over the registry


def test_exemptions_name_registered_methods():
    for exempt in (NOT_BY_DUPLICATE, NOT_BY_SIGN, NOT_BY_CHUNK, NOT_ON_IMAGES, ABSENT, DRAWS):
        assert set(exempt) <= set(REGISTERED) and all(exempt.values())
    assert {"random", "metadata", "bm25", "tfidf", "hidden_cosine", "minilm", "gradient_dot", "gradient_cosine",
            "tracincp", "bgo", "fisher_influence", "trak", "trak_trajectory", "logra", "trackstar",
            "stride", "rank_combined"} <= set(METHODS)  # fmt: skip
    assert tda.attribute is attribute and tda.METHODS is REGISTERED


@pytest.mark.parametrize("name", ELSEWHERE)
def test_methods_that_differentiate_through_sgd_refuse_adamw(name, task, tiny, few):
    with pytest.raises(ValueError, match=f"{name}: the model was trained by 'adamw'; .*people_sgd"):
        attribute(name, task, tiny.train, few)


@pytest.mark.parametrize("name", DENOISERS)
def test_methods_for_denoisers_refuse_a_language_model(name, task, tiny, few):
    with pytest.raises(ValueError, match="denoiser"):
        attribute(name, task, tiny.train, few)


@pytest.mark.parametrize("name", METHODS)
def test_scores_have_the_contract(name, scored, task, tiny, queries):
    scores = scored(name)
    assert scores.dtype == np.float32 and scores.shape == (n_examples(queries), n_examples(tiny.train))
    assert np.isfinite(scores).all() and METHODS[name].cost in ("per query", "amortised")
    if not METHODS[name].signed and name not in ("hidden_cosine", "minilm"):
        assert (scores >= 0).all()
    bgo.moved_losses.forget(), bgo.base_losses.forget(), empirical.diagonal.forget(), empirical.gradients.forget()
    projection._features.forget(), logra._features.forget(), stride.operators.forget()
    again = attribute(name, task, tiny.train, queries)
    np.testing.assert_array_equal(again, scores, err_msg="the same call gives the same scores")


@pytest.mark.parametrize("name", METHODS)
def test_planted_duplicate_ranks_first(name, task, tiny, queries):
    if name in NOT_BY_DUPLICATE:
        pytest.skip(f"{name}: {NOT_BY_DUPLICATE[name]}")
    needs_package(name)
    for q in (0, 3, 7):
        query = take(queries, slice(q, q + 1))
        train = join(tiny, tiny.train, query["text"], query["entity"][0])
        scores = attribute(name, task, train, query)[0]
        assert scores.argmax() == len(scores) - 1, f"{name} ranks {train['text'][scores.argmax()]!r} above the copy"


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].signed])
def test_planted_anti_duplicate_scores_below_zero(name, task, tiny, queries):
    """The same prompt with the wrong value that the model finds most likely, both measured by the answer.

    That value, and no other, is sure to lose: to first order, with p the query's answer distribution, y the answer
    and z the runner-up that takes what p leaves over, the score is -(1 - p_y) |w_z - w_y|^2 times a positive factor.
    """
    if name in NOT_BY_SIGN:
        pytest.skip(f"{name}: {NOT_BY_SIGN[name]}")
    needs_package(name)
    answer, checked = query_module.second(queries), 0
    if "checkpoints" in METHODS[name].needs:  # before the facts are learnt, any value of the attribute helps any other
        task = replace(task, run=replace(task.run, checkpoints=task.run.checkpoints[-1:]))
    for q, row in enumerate(models.query_rows(tiny)):
        query = take(answer, slice(q, q + 1))
        right, wrong, share = runner_up(tiny, task, row)
        if row["query_set"] != "held_out" or right < 0.5 or share < 0.25:
            continue
        texts = [f"{row['prompt']} {value}" for value in (wrong, row["value"])]
        train = join(tiny, take(tiny.train, slice(0, 40)), texts, row["entity"], [f" {wrong}", f" {row['value']}"])
        scores = attribute(name, task, train, query, **SIGN_OPTIONS.get(name, {}))[0]
        assert scores[40] < 0, f"{name}: {texts[0]!r} scored {scores[40]} for {texts[1]!r} (p={right:.2f})"
        assert scores[41] > 0, f"{name}: the right answer scored {scores[41]}"
        checked += 1
    assert checked >= 3


def runner_up(tiny, task, row):
    """(p of the right value, the next value, its share of what is left) after the query's prompt."""
    ids = [lm.BOUNDARY_ID, *tiny.tokenizer.encode(row["prompt"]).ids]
    p = lm.logits_function(task.model)(task.params, torch.tensor([ids]))[0, -1].softmax(-1)
    right = p[tiny.tokenizer.token_to_id(row["value"])].item()
    p[tiny.tokenizer.token_to_id(row["value"])] = 0
    return right, tiny.tokenizer.id_to_token(int(p.argmax())), (p.max() / p.sum()).item()


@pytest.mark.parametrize("name", METHODS)
def test_chunk_does_not_matter(name, task, tiny, few, scored):
    if name in NOT_BY_CHUNK:
        pytest.skip(f"{name}: {NOT_BY_CHUNK[name]}")
    whole = attribute(name, task, tiny.train, few, **ALONE[name]) if name in ALONE else scored(name)[:5]
    for chunk in (1, 7) if METHODS[name].cost != "per query" else (7,):
        parts = attribute(name, task, tiny.train, few, chunk=chunk, **ALONE.get(name, {}))
        if name == "random":
            assert parts.shape == whole.shape
            continue
        scale = np.abs(whole).max()
        np.testing.assert_allclose(parts, whole, atol=2e-4 * scale, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_order_of_documents_and_queries_does_not_matter(name, task, tiny, queries, scored):
    if name == "random":
        pytest.skip(f"{name}: {DRAWS[name]}")
    documents = np.random.default_rng(0).permutation(n_examples(tiny.train))[:50]
    asked = np.array([4, 0, 2])
    options = ALONE.get(name, {})
    whole = attribute(name, task, tiny.train, queries, **options) if options else scored(name)
    if name in WHOLE_CORPUS or METHODS[name].family in ("unlearning", "curvature"):
        documents = np.random.default_rng(0).permutation(n_examples(tiny.train))  # they look at the whole corpus
    if name in DRAWS:
        documents = np.arange(n_examples(tiny.train))  # only the order of the queries may change
    parts = attribute(name, task, take(tiny.train, documents), take(queries, asked), **options)
    np.testing.assert_allclose(parts, whole[np.ix_(asked, documents)], atol=3e-4 * np.abs(whole).max(), rtol=1e-3)


MODEL_BASED = [n for n in METHODS if METHODS[n].family in ("gradient", "unlearning", "curvature", "simulation")]


@pytest.mark.parametrize("name", MODEL_BASED)
def test_gradient_methods_differ_from_gradient_dot_and_from_lexical_ones(name, scored):
    if name != "gradient_dot":
        gaps = [spearmanr(a, b).statistic for a, b in zip(scored(name), scored("gradient_dot"), strict=True)]
        assert np.mean(gaps) < 0.995, "its ranking is gradient dot's"
    gaps = [spearmanr(a, b).statistic for a, b in zip(scored(name), scored("bm25"), strict=True)]
    assert np.mean(gaps) < 0.95


@pytest.mark.parametrize("name", [n for n in METHODS if n != "random"])
def test_scores_find_stating_documents(name, scored, tiny):
    """Provenance above chance for every real method, and at chance against shuffled labels."""
    relevant = models.relevance(tiny)
    value = retrieval.average_precision(scored(name), relevant).mean()
    rng = np.random.default_rng(0)
    shuffled = [
        retrieval.average_precision(scored(name), relevant[:, rng.permutation(relevant.shape[1])]).mean()
        for _ in range(40)
    ]
    assert value > np.max(shuffled), "a real method finds the documents that state the fact"
    chance = relevant.mean()
    assert abs(np.mean(shuffled) - chance) < 0.08, "with shuffled provenance nothing can find anything"


@pytest.mark.parametrize("name", METHODS)
def test_exact_copies_get_equal_scores(name, scored, tiny):
    """A case where every method must fail: nothing can tell a document from its copy."""
    if name in DRAWS:
        pytest.skip(f"{name}: {DRAWS[name]}")
    groups = np.array(tiny.documents["group"])
    copies = [np.flatnonzero(groups == g) for g in sorted(set(groups)) if g.startswith("exact")]
    assert len(copies) == 2
    for a, b in copies:
        np.testing.assert_allclose(
            scored(name)[:, a], scored(name)[:, b], rtol=1e-4, atol=1e-4 * np.abs(scored(name)).max()
        )


# --- over the registry, on classifiers of images


@pytest.fixture(scope="module", params=["logreg", "mlp", "cnn"])
def images(request):
    """(task, 60 training images, 6 held-out images) of a small net."""
    everything, labels = pixels()
    order = np.random.default_rng(3).permutation(len(labels))
    both = {"inputs": torch.tensor(everything[order]), "labels": torch.tensor(labels[order])}
    both["entity"] = [str(label) for label in labels[order]]
    train, asked = take(both, slice(0, 60)), take(both, slice(60, 66))
    net = {"logreg": classifiers.mlp(0, 0, 0), "mlp": classifiers.mlp(1, 12, 0), "cnn": classifiers.cnn(1, 6, 0)}
    net = net[request.param]
    recipe = Recipe(
        optimizer="sgd",
        epochs=12,
        batch=12,
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-3,
        schedule="constant",
        checkpoints=3,
    )
    loss_fn = classifiers.loss_function(net)
    params, run = train_recorded(loss_fn, classifiers.parameters(net), train, recipe, 0)
    net.load_state_dict(params)
    return (
        Task("images", loss_fn, params, net, run, classifiers.encoders(net, params), classifiers.outputs_function(net)),
        train,
        asked,
    )


def relabelled(examples, labels):
    """The same images with other labels."""
    return examples | {"labels": torch.tensor(labels), "entity": [str(label) for label in labels]}


def with_images(examples, more):
    return {k: torch.cat([v, more[k]]) if isinstance(v, torch.Tensor) else v + more[k] for k, v in examples.items()}


@pytest.mark.parametrize("name", ON_IMAGES)
def test_planted_duplicate_of_an_image_ranks_first(name, images):
    """Asked about images with the label that the model finds least likely: their gradients exceed any document's, so
    that a copy has the largest inner product with them."""
    if name in NOT_BY_DUPLICATE:
        pytest.skip(f"{name}: {NOT_BY_DUPLICATE[name]}")
    task, train, asked = images
    unlikely = task.model(asked["inputs"]).argmin(1).tolist()
    surprising = relabelled(asked, unlikely)
    for q in (0, 2, 5):
        query = take(surprising, slice(q, q + 1))
        scores = attribute(name, task, with_images(train, query), query)[0]
        assert scores.argmax() == 60, f"{name} ranks image {scores.argmax()} above the copy of query {q}"


@pytest.mark.parametrize("name", [name for name in ON_IMAGES if METHODS[name].signed])
def test_planted_anti_duplicate_of_an_image_scores_below_zero(name, images):
    """The same image with the class that comes second: with p the model's distribution, y and z the two classes, the
    product of the gradients in the logits is |p|^2 - p_y - p_z < 0 as soon as y is the most likely one."""
    if name in NOT_BY_SIGN:
        pytest.skip(f"{name}: {NOT_BY_SIGN[name]}")
    task, train, asked = images
    if "checkpoints" in METHODS[name].needs:
        task = replace(task, run=replace(task.run, checkpoints=task.run.checkpoints[-1:]))
    best = task.model(asked["inputs"]).topk(2, dim=1).indices
    query, wrong = relabelled(asked, best[:, 0].tolist()), relabelled(asked, best[:, 1].tolist())
    train = with_images(with_images(train, wrong), query)
    scores = attribute(name, task, train, query, **SIGN_OPTIONS.get(name, {}))
    for q in range(6):
        assert scores[q, 60 + q] < 0 < scores[q, 66 + q], f"{name}: query {q}"


@pytest.mark.parametrize("name", ON_IMAGES)
def test_chunk_does_not_matter_on_images(name, images):
    task, train, asked = images
    if name in NOT_BY_CHUNK or name == "random":
        pytest.skip(f"{name}: {NOT_BY_CHUNK.get(name, 'its scores do not look at the data')}")
    whole = attribute(name, task, train, asked)
    assert whole.shape == (6, 60) and np.isfinite(whole).all()
    parts = attribute(name, task, train, asked, chunk=7)
    np.testing.assert_allclose(parts, whole, atol=2e-4 * np.abs(whole).max(), rtol=1e-3)


def test_gradient_dot_on_images_is_an_explicit_loop(images):
    task, train, asked = images
    wanted = explicit_gradients(task, asked) @ explicit_gradients(task, train).T
    np.testing.assert_allclose(attribute("gradient_dot", task, train, asked), wanted, rtol=1e-3, atol=1e-5)


# --- lexical and metadata


def test_metadata_is_same_label(scored, tiny, queries):
    wanted = np.array([[q == d for d in tiny.train["entity"]] for q in queries["entity"]], np.float32)
    np.testing.assert_array_equal(scored("metadata"), wanted)


def test_bm25_is_the_formula(task, tiny, few):
    """Lucene's BM25 by hand."""
    from tda.words import words

    documents = [words(text) for text in tiny.train["text"]]
    n, mean = len(documents), np.mean([len(d) for d in documents])
    wanted = np.zeros((5, n))
    for q, text in enumerate(few["text"]):
        for word in words(text):
            holding = sum(word in d for d in documents)
            idf = np.log(1 + (n - holding + 0.5) / (holding + 0.5))
            for i, d in enumerate(documents):
                f = d.count(word)
                wanted[q, i] += idf * f / (f + 1.2 * (1 - 0.6 + 0.6 * len(d) / mean))
    np.testing.assert_allclose(attribute("bm25", task, tiny.train, few, k1=1.2, b=0.6), wanted, rtol=1e-4, atol=1e-5)


def test_bm25_cannot_find_a_person_who_is_never_named(task, tiny):
    """A case where it must fail: documents that only use pronouns."""
    names = {part for entity in tiny.train["entity"] for part in entity.split()}
    hidden = [" ".join("she" if w in names else w for w in text.split()) for text in tiny.train["text"]]
    train = dict(tiny.train) | {"text": hidden}
    asked = {"text": [f"{name} was born in Arvik" for name in sorted(set(tiny.train["entity"]))]}
    scores = attribute("bm25", task, train, asked)
    assert (scores == scores[0]).all() and scores.max() > 0
    assert not (attribute("bm25", task, tiny.train, asked) == scores).all()


def test_lexical_methods_give_zero_without_a_common_word(task, tiny):
    for name in ("bm25", "tfidf"):
        scores = attribute(name, task, tiny.train, {"text": ["qqq zzz", "Zeno"]})
        assert (scores[0] == 0).all()


def test_random_depends_on_the_seed_only(task, tiny, queries):
    one, two, other = (attribute("random", task, tiny.train, queries, seed=s) for s in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert abs(one.mean()) < 0.1 and abs(one.std() - 1) < 0.1


def test_hidden_cosine_by_hand(task, tiny, few):
    documents, asked = (lm.hidden_states(task.model, task.params, x) for x in (tiny.train, few))
    d, q = documents - documents.mean(0), asked - documents.mean(0)
    wanted = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in d] for a in q]
    np.testing.assert_allclose(attribute("hidden_cosine", task, tiny.train, few), wanted, atol=1e-5)


# --- gradients


def test_gradient_dot_is_an_explicit_loop(task, tiny, few, reference):
    asked, documents = reference
    scores = attribute("gradient_dot", task, tiny.train, few)
    np.testing.assert_allclose(scores, (asked @ documents.T).numpy(), rtol=1e-3, atol=1e-4 * np.abs(scores).max())


def test_gradient_dot_is_the_effect_of_one_step(task, tiny, few):
    """The sign convention: a small step on document i lowers the loss of q by eta * score."""
    scores = attribute("gradient_dot", task, tiny.train, few).astype(float)
    documents = matrix(task, take(tiny.train, slice(0, 12)))
    eta = 1e-3
    before = lm.losses(task.loss_fn, task.params, few).astype(float)
    for i in range(12):
        stepped = {k: task.params[k] - eta * d for k, d in unflatten(documents[i], task.params).items()}
        drop = before - lm.losses(task.loss_fn, stepped, few).astype(float)
        sure = np.abs(scores[:, i]) > 0.1 * np.abs(scores).max()
        np.testing.assert_allclose(drop[sure] / eta, scores[sure, i], rtol=0.2)


def test_gradient_cosine_is_an_explicit_loop(task, tiny, few, reference):
    asked, documents = (torch.nn.functional.normalize(x, dim=1) for x in reference)
    scores = attribute("gradient_cosine", task, tiny.train, few)
    np.testing.assert_allclose(scores, (asked @ documents.T).numpy(), atol=1e-4)
    assert np.abs(scores).max() <= 1 + 1e-5
    own = attribute("gradient_cosine", task, few, few)
    np.testing.assert_allclose(np.diag(own), 1, atol=1e-4)


def test_tracincp_is_an_explicit_sum(task, tiny, few):
    wanted = 0
    for checkpoint in task.run.checkpoints:
        params, _ = checkpoint.load()
        asked, documents = (explicit_gradients(task, x, params) for x in (few, tiny.train))
        wanted = wanted + checkpoint.lr_sum * (asked @ documents.T)
    scores = attribute("tracincp", task, tiny.train, few)
    np.testing.assert_allclose(scores, wanted.numpy(), rtol=1e-3, atol=1e-4 * np.abs(scores).max())
    one = replace(task, run=replace(task.run, checkpoints=task.run.checkpoints[-1:]))
    last = attribute("tracincp", one, tiny.train, few) / task.run.checkpoints[-1].lr_sum
    dot = attribute("gradient_dot", task, tiny.train, few)
    np.testing.assert_allclose(last, dot, rtol=1e-4, atol=1e-5 * np.abs(dot).max())


def test_flatten_and_unflatten_are_inverse(task):
    tree = {k: torch.randn(3, *v.shape) for k, v in task.params.items()}
    back = unflatten(flatten(tree), task.params)
    assert list(back) == list(tree) and all(torch.equal(back[k], tree[k]) for k in tree)
    order = list(reversed(list(task.params)))
    assert not torch.equal(flatten({k: tree[k] for k in order}), flatten(tree))


def test_blocks_are_bounded_and_cover(task, tiny):
    """Every document once, at most 30 together, short ones first; and what is swept is in the documents' order."""
    seen, few = list(blocks(task, tiny.train, 30)), take(tiny.train, slice(0, 7))
    parts = [part for part, _ in seen]
    assert [len(part) for part in parts] == [len(block) for _, block in seen] and max(map(len, parts)) == 30
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n_examples(tiny.train)))
    lengths = real_tokens(tiny.train).sum(1).numpy()
    assert all(lengths[one].max() <= lengths[two].min() for one, two in zip(parts, parts[1:], strict=False))
    swept_norms = swept(task, few, lambda block: block.norm(dim=1), 3).numpy()
    assert np.allclose(swept_norms, explicit_gradients(task, few).norm(dim=1).numpy(), rtol=1e-4)


def test_repeated_parameters_of_another_order_give_the_same_scores(task, tiny, few):
    shuffled = replace(task, params=dict(sorted(task.params.items(), reverse=True)))
    for name in ("gradient_dot", "bgo"):
        one, two = (attribute(name, t, tiny.train, few) for t in (task, shuffled))
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-4 * np.abs(one).max())


# --- refusals


def test_unknown_method_and_option_are_refused(task, tiny, few):
    with pytest.raises(ValueError, match=r"method 'gradient_dott' is unknown; .*Did you mean 'gradient_dot'\?"):
        attribute("gradient_dott", task, tiny.train, few)
    with pytest.raises(ValueError, match=r"'bgo' has no option 'dampng'; it accepts .*Did you mean 'damping'\?"):
        attribute("bgo", task, tiny.train, few, dampng=1)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_methods_of_images_refuse_texts(name, task, tiny, few):
    with pytest.raises(ValueError, match=f"'{name}' needs '.*', which the task 'people' does not offer"):
        attribute(name, task, tiny.train, few)


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].needs])
def test_method_refuses_a_task_without_what_it_needs(name, task, tiny, few):
    """The registry is the door: a task that lacks a field is refused by the name of that field."""
    bare = {
        "params": {"params": {}},
        "outputs": {"outputs_fn": None},
        "checkpoints": {"run": None},
        "text": {"encode": {}},
        "group": {"encode": {}},
        "features": {"encode": {}},
    }
    for need in METHODS[name].needs:
        with pytest.raises(ValueError, match=f"'{name}' needs '{need}', which the task 'people' does not offer"):
            attribute(name, replace(task, **bare[need]), tiny.train, few)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_uses_only_what_it_declares(name, task, tiny, few):
    """With every undeclared field removed it still works: `needs` is complete, so access levels can rely on it."""
    needs_package(name)
    chosen = METHODS[name]
    kept = {k: v for k, v in task.encode.items() if k in chosen.needs}
    less = replace(task, encode=kept)
    if "outputs" not in chosen.needs:
        less = replace(less, model=None, outputs_fn=None)
    if "params" not in chosen.needs:
        less = replace(less, params={}, loss_fn=None)
    if "checkpoints" not in chosen.needs:
        less = replace(less, run=None)
    np.testing.assert_array_equal(attribute(name, less, tiny.train, few), attribute(name, task, tiny.train, few))


@pytest.mark.parametrize("name", METHODS)
def test_empty_input_is_refused(name, task, tiny, few):
    for train, asked, what in (
        (take(tiny.train, slice(0, 0)), few, "train"),
        (tiny.train, take(few, slice(0, 0)), "queries"),
    ):
        with pytest.raises(ValueError, match=f"{what} is empty"):
            attribute(name, task, train, asked)
    with pytest.raises(ValueError, match="train is empty"):
        attribute(name, task, {}, few)


def test_columns_of_different_length_are_refused(task, tiny, few):
    with pytest.raises(ValueError, match="queries: its columns differ in length"):
        attribute("gradient_dot", task, tiny.train, few | {"text": few["text"][:2]})


def test_query_without_targets_is_refused(task, tiny, few):
    blank = few | {"labels": few["labels"].clone()}
    blank["labels"][2] = lm.IGNORE
    for name in ("gradient_dot", "bgo", "bm25", "random"):
        with pytest.raises(ValueError, match=r"queries: rows \[2\] have no target tokens"):
            attribute(name, task, tiny.train, blank)
        with pytest.raises(ValueError, match=r"train: rows \[2\] have no target tokens"):
            attribute(name, task, blank, few)


@pytest.mark.parametrize("name", [n for n in METHODS if "params" in METHODS[n].needs])
def test_a_model_that_is_not_finite_is_refused(name, task, tiny, few):
    broken = {k: v.clone() for k, v in task.params.items()}
    broken["lm_head.weight"][5] = float("nan")
    last = task.run.checkpoints[-1].optimizer
    run = replace(task.run, checkpoints=tuple(replace(c, load=lambda: (broken, last)) for c in task.run.checkpoints))
    with pytest.raises(ValueError, match="not finite"):
        attribute(name, replace(task, params=broken, run=run), tiny.train, few)


def test_zero_fisher_is_refused(task, tiny, few):
    flat = replace(task, loss_fn=lambda p, b, r="mean": 0.0 * task.loss_fn(p, b, r), outputs_fn=None)
    with pytest.raises(ValueError, match="Fisher is zero"):
        attribute("bgo", flat, tiny.train, few)


@pytest.mark.parametrize("name", [n for n in METHODS if "params" in METHODS[n].needs])
def test_chunk_below_one_is_refused(name, task, tiny, few):
    with pytest.raises(ValueError, match="chunk=0"):
        attribute(name, task, tiny.train, few, chunk=0)


def test_method_with_a_wrong_shape_or_a_taken_name_is_refused(task, tiny, few):
    with pytest.raises(ValueError, match="named 'bm25' is registered already"):
        method("bm25", family="x", paper="", signed=False)(lambda *a, **k: None)
    try:
        method("transposed", family="x", paper="", signed=False)(
            lambda task, train, queries, *, seed=0, chunk=0: np.zeros((n_examples(train), n_examples(queries)))
        )
        with pytest.raises(ValueError, match=r"'transposed' returned shape .*\[n_queries, n_train\]"):
            attribute("transposed", task, tiny.train, few)
    finally:
        del REGISTERED["transposed"]


def test_minilm_without_its_package_says_how_to_get_it(task, tiny, few, monkeypatch):
    monkeypatch.setattr("tda.encoding.encoders.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the optional package .*pip install"):
        attribute("minilm", task, tiny.train, few)
