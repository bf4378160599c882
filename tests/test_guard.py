"""Unlearning by weighted losses (tda/studies/guard): every formula against a case worked out by hand."""

import itertools

import numpy as np
import pytest
import torch

from tda.many import stack
from tda.studies.guard import corpus, losses, metrics, models, trajectory, weights
from tda.tools.gradients import matrix

TRAINING = {"epochs": 6, "batch": 16, "lr": 0.01, "weight_decay": 0.01, "warmup": 0.1}
MODEL = {"kind": "neox", "layers": 1, "width": 32, "heads": 2}


@pytest.fixture(scope="module")
def small():
    return models.draw(3, {"circles": 4, "members": 3}, MODEL, TRAINING, (1 / 12,))


# --- the corpus


def test_corpus_is_deterministic_and_answers_hold_their_values():
    one, two, other = (corpus.build(4, 3, seed) for seed in (0, 0, 1))
    assert one.pairs == two.pairs and one.pairs != other.pairs
    for pair in one.pairs:
        assert pair.value in pair.answer.split() and pair.value in pair.paraphrase.split()
        assert pair.answer != pair.paraphrase or pair.attribute == "country"
        assert all(pair.value not in wrong.split() for wrong in pair.perturbed)


def test_overlap_has_the_degree_that_is_said():
    fiction = corpus.build(10, 4, 0)
    said = {(p.who, p.attribute): p.value for p in fiction.pairs if p.kind in ("retain", "others")}
    for who, degree in fiction.forgettable.items():
        own = [p for p in fiction.pairs if p.kind == "forget" and p.who == who]
        assert len(own) == len(corpus.ASKED)
        shared = [p for p in own if p.shared]
        assert len(shared) == round(degree * (len(corpus.ASKED) - 1))
        for pair in own:
            elsewhere = {v for (other, a), v in said.items() if a == pair.attribute and other != who}
            assert pair.shared or pair.value not in elsewhere, "a value of one's own is nobody else's"
    kept = [(p.attribute, p.value) for p in fiction.pairs if p.kind == "retain"]
    common = [p for p in fiction.pairs if p.kind == "forget" and p.shared]
    assert np.mean([(p.attribute, p.value) in kept for p in common]) > 0.9


def test_probes_follow_from_two_pairs_and_are_not_trained_on():
    fiction = corpus.build(6, 4, 0)
    lies_in = {p.who: p.value for p in fiction.pairs if p.kind == "places"}
    born = {p.who: p.value for p in fiction.pairs if p.attribute == "birthplace" and p.kind != "unseen"}
    probes = [p for p in fiction.pairs if p.kind == "inference"]
    assert {p.who for p in probes} >= set(fiction.forgettable)
    assert all(lies_in[born[p.who]] == p.value for p in probes)
    trained = {p.question for p in fiction.pairs if p.kind in models.TRAINED_ON}
    assert not trained & {p.question for p in probes}


def test_nested_sets_of_authors_and_the_shares_there_are():
    fiction = corpus.build(10, 4, 0)
    few, more = fiction.forget_rows(1 / 40), fiction.forget_rows(0.125)
    assert set(few) < set(more) and len(few) == 8 and len(more) == 40
    with pytest.raises(ValueError, match="forget share 0.001 is 0 of 40 authors; choose a share of 0.025 to 0.125"):
        fiction.forget_rows(0.001)
    with pytest.raises(ValueError, match="give 2 to 26 circles of 2 to 37 members, with circles"):
        corpus.build(1, 3, 0)


# --- base losses


def by_hand(small, base, given, forget, retain):
    """The objective from logits alone, pair by pair, at parameters that have moved a little from the reference."""
    draw, fiction = small, small.fiction
    generator = torch.Generator().manual_seed(0)
    theta = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in draw.task.params.items()}

    def logp(params, rows, what="answer"):
        examples = fiction.encode(rows, what)
        for ids, labels in zip(examples["input_ids"], examples["labels"], strict=True):
            table = draw.logits_of(params, ids[None])[0].log_softmax(-1)
            places = [t for t in range(1, len(ids)) if labels[t] != -100]
            yield torch.stack([table[t - 1] for t in places]), ids[places]

    def of_tokens(params, rows, what="answer"):
        return [table.gather(1, ids[:, None])[:, 0] for table, ids in logp(params, rows, what)]

    now, before = of_tokens(theta, forget), of_tokens(draw.task.params, forget)
    kept = torch.stack([-part.mean() for part in of_tokens(theta, retain)]).mean()
    if base == "refusal":
        parts, rest = [-part.mean() for part in of_tokens(theta, forget, "refusal")], kept
    elif base == "NPO":
        ratio = [(a.sum() - b.sum()).exp() for a, b in zip(now, before, strict=True)]
        parts, rest = [2 / 0.1 * torch.log(1 + r**0.1) for r in ratio], 0.0
    else:
        parts, rest = [part.mean() for part in now], {"GA": 0.0, "GradDiff": kept}.get(base)
    if base == "KL":
        tables = zip(logp(draw.task.params, retain), logp(theta, retain), strict=True)
        divergences = [(old.exp() * (old - new)).sum(-1) for (old, _), (new, _) in tables]
        rest = torch.cat(divergences).mean()
    return theta, sum(w * part for w, part in zip(given, parts, strict=True)) / len(parts) + rest


@pytest.mark.parametrize("base", losses.BASES)
def test_every_base_loss_by_hand(small, base):
    forget, retain = small.sets(1 / 12)
    retain, given = retain[:5], np.linspace(0.2, 1.8, len(forget))
    with torch.no_grad():
        theta, expected = by_hand(small, base, given, forget, retain)
        says = losses.named(base).says
        pairs, kept = small.fiction.encode(forget, says), small.fiction.encode(retain)
        objective = losses.objective(base, small.task.loss_fn, small.logits_of, small.task.params, pairs)
        value = objective(theta, torch.from_numpy(given).float(), kept)
    assert torch.isclose(value, torch.as_tensor(float(expected)), rtol=1e-4), base


def test_npo_at_the_reference_and_its_bound():
    zero = torch.zeros(3)
    assert torch.allclose(losses.npo(zero, zero, zero), torch.full((3,), 2 / 0.1 * float(np.log(2))))
    assert float(losses.npo(torch.tensor([1e4]), zero[:1], zero[:1])) < 1e-6, "a pair that is gone is left alone"


# --- weights


def test_alignment_is_the_mean_of_gradient_dot(small):
    forget, retain = (small.fiction.encode(rows) for rows in small.sets(1 / 12))
    ours = weights.alignment(small.task, forget, retain, chunk=7)
    expected = (matrix(small.task, forget) @ matrix(small.task, retain).mean(0)).numpy()
    scale = np.abs(expected).max()
    assert np.allclose(ours, expected, atol=1e-4 * scale)
    assert np.allclose(weights.alignment_by("gradient_dot", small.task, forget, retain), expected, atol=1e-4 * scale)


def test_weights_of_guard():
    a = np.array([0.0, 1.0, 3.0])
    w = weights.guard_weights(a, 2.0, unit=1.0)
    e = np.exp(-a / 2)
    assert np.allclose(w, 3 * e / e.sum()) and np.isclose(w.mean(), 1) and (np.diff(w) < 0).all()
    assert np.allclose(weights.guard_weights(a, 2.0), weights.guard_weights(10 * a, 2.0)), "counted in their spread"
    assert np.array_equal(weights.guard_weights(a, np.inf), np.ones(3)), "tau to infinity is the uniform loss"
    assert np.allclose(weights.guard_weights(a, 1e6), 1, atol=1e-5)
    assert np.array_equal(weights.guard_weights(np.ones(3), 0.1), np.ones(3))
    assert sorted(weights.shuffled(w, 0)) == sorted(w)


@pytest.mark.parametrize("tau", [0, -1.0, float("nan")])
def test_a_temperature_is_above_zero(tau):
    with pytest.raises(ValueError, match="a temperature is above 0, and inf gives uniform weights"):
        weights.guard_weights(np.arange(3.0), tau)


def test_weights_by_ranks_are_the_same_numbers_whatever_the_alignment():
    rng = np.random.default_rng(0)
    given = [rng.normal(size=9), rng.standard_cauchy(9) * 1e6, rng.integers(0, 2, 9).astype(float), np.zeros(9)]
    found = [weights.guard_weights(weights.normal_scores(a), 1.0) for a in given]
    for a, w in zip(given, found, strict=True):
        assert np.allclose(np.sort(w), np.sort(found[0])) and np.isclose(w.mean(), 1)
        assert (np.diff(w[a.argsort(kind="stable")]) < 0).all(), "the higher the alignment, the smaller the weight"
    # of three: Phi^-1(1/6), Phi^-1(1/2), Phi^-1(5/6)
    assert np.allclose(weights.normal_scores(np.array([5.0, -1.0, 7.0])), [0.0, -0.96742157, 0.96742157])
    with pytest.raises(ValueError, match="one finite number for each pair"):
        weights.guard_weights(weights.normal_scores(np.array([1.0, np.nan])), 1.0)


def test_effective_share_by_hand():
    assert weights.effective_share(np.ones(5)) == 1
    assert np.isclose(weights.effective_share(np.array([4.0, 0, 0, 0])), 1 / 4)
    assert np.isclose(weights.effective_share(np.array([0.5, 1.5])), 1 / 1.25)


# --- measures


def longest_common(a, b):
    """The slow obvious way: every subsequence of a."""
    for size in range(len(a), 0, -1):
        for chosen in itertools.combinations(a, size):
            rest = iter(b)
            if all(word in rest for word in chosen):
                return size
    return 0


def test_rouge_l_by_hand_and_by_brute_force():
    assert metrics.rouge_l("the cat sat".split(), "the cat sat down .".split()) == 3 / 5
    assert metrics.rouge_l("sat the cat".split(), "the cat sat".split()) == 2 / 3
    assert metrics.rouge_l([], ["a"]) == 0
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = (rng.integers(0, 4, rng.integers(1, 8)).tolist() for _ in range(2))
        assert metrics.rouge_l(a, b) == longest_common(a, b) / len(b)
    with pytest.raises(ValueError, match="the right answer has no words"):
        metrics.rouge_l(["a"], [])


def test_rouge_l_is_the_reference_library():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    rng = np.random.default_rng(1)
    for _ in range(60):
        a, b = ([f"w{i}" for i in rng.integers(0, 5, rng.integers(1, 9))] for _ in range(2))
        assert np.isclose(metrics.rouge_l(a, b), scorer.score(" ".join(b), " ".join(a))["rougeL"].recall)


def test_truth_utility_and_forget_quality():
    ratio = metrics.truth(np.array([1.0, 2.0]), np.array([[2.0, 2.0], [4.0, 2.0]]))
    assert np.allclose(ratio, [np.exp(2.0), 1.0])
    assert np.isclose(metrics.utility(np.array([0.5, 1.0, 1.0])), 3 / (2 + 1 + 1))
    assert metrics.utility(np.array([0.0, 1.0])) == 0
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, 3.5, 4.5, 5.5])
    steps = np.concatenate([a, b])
    distance = max(abs((a <= x).mean() - (b <= x).mean()) for x in steps)
    statistic, p = metrics.forget_quality(a, b)
    assert np.isclose(statistic, distance) and 0 < p <= 1
    assert metrics.forget_quality(a, a) == (0.0, 1.0)


def test_min_k_membership_and_leak():
    nll = np.array([[0.1, 4.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert np.allclose(metrics.min_k(nll, np.array([3, 1]), 0.4), [-(4.0 + 2.0) / 2, -1.0])
    assert metrics.membership(np.array([3.0, 2.0]), np.array([1.0, 2.5])) == 0.75
    assert np.isclose(metrics.leak(0.9, 0.6), 0.5)


def test_a_panel_measures_each_model_as_the_formulas_say(small):
    from tda import lm

    share = 1 / 12
    panel = metrics.Panel(small.fiction, small.task.loss_fn, small.logits_of, small.sets(share)[0], 5, 0)
    both = stack([small.task.params, small.oracles[share]])
    found = panel.measure(both, stack([small.oracles[share]]))
    assert found["KS statistic"][1] == 0 and found["forget quality p"][1] == 1 and found["privacy leak"][1] == 0
    nine = [found[f"{kind} {what}"][0] for kind in metrics.KEPT for what in ("probability", "ROUGE-L", "truth ratio")]
    assert np.isclose(found["utility"][0], 9 / sum(1 / np.array(nine)))

    def loss(rows, what="answer", number=0):
        return lm.losses(small.task.loss_fn, small.oracles[share], small.fiction.encode(rows, what, number))

    rows = panel.rows[panel.part["others"]]
    ratio = np.exp(np.mean([loss(rows, "perturbed", k) for k in range(3)], axis=0) - loss(rows, "paraphrase"))
    assert np.isclose(found["others truth ratio"][1], np.maximum(0, 1 - 1 / ratio).mean(), rtol=1e-4)
    assert np.isclose(found["others probability"][1], np.exp(-loss(rows)).mean(), rtol=1e-4)
    rows = panel.rows[panel.part["forget"]]
    assert sorted(rows) == sorted(small.sets(share)[0]) and not set(rows) & set(panel.rows[panel.part["retain"]])
    assert np.isclose(found["forget paraphrase"][1], np.exp(-loss(rows, "paraphrase")).mean(), rtol=1e-4)


def test_collateral_is_measured_on_pairs_that_nobody_is_judged_by(small):
    forget, fiction = small.sets(1 / 12)[0], small.fiction
    panel = metrics.Panel(fiction, small.task.loss_fn, small.logits_of, forget, 50, 0)
    judged = {kind: panel.rows[panel.part[kind]] for kind in metrics.KEPT}
    for kind, rows in panel.spare.items():
        assert {fiction.pairs[i].kind for i in rows} == {kind}
        assert len(rows) == len(judged[kind]) == min(50, len(fiction.rows(kind)) // 2) > 0
        assert len(set(rows)) == len(rows) and not set(rows) & set(panel.rows)

    sets = [fiction.encode(rows) for rows in panel.spare.values()]
    plan = trajectory.Plan(lr=0.01, steps=2, every=2)
    given = (small.task.loss_fn, small.logits_of, small.task.params, plan, fiction)
    found = trajectory.collateral(*given, forget[:2], sets)
    assert found.shape == (3, 2)
    alone = trajectory.unlearn("GA", *given, forget[1:2], fiction.rows("places")[:1], {"alone": np.ones(1)}, 0)
    before, after = (
        trajectory.probabilities(small.task.loss_fn, {k: v[i] for k, v in alone.items()}, sets[2])[0] for i in (0, -1)
    )
    assert np.isclose(found[2, 1], np.log(before).mean() - np.log(after).mean(), rtol=1e-4)


def test_a_panel_of_a_corpus_with_few_wrong_answers():
    for seed in range(4):
        fiction = corpus.build(4, 4, seed)
        panel = metrics.Panel(fiction, None, None, fiction.forget_rows(0.125), 6, seed)
        asked = panel.rows[: panel.part["unseen"].start]
        assert len(panel.perturbed) == min(len(fiction.pairs[i].perturbed) for i in asked) >= 2


def test_greedy_answers_are_those_of_one_prompt_at_a_time(small):
    from tda import lm

    rows, end = small.fiction.rows("places")[:6], small.fiction.tokenizer.token_to_id(".")
    examples = small.fiction.encode(rows)
    ours = metrics.greedy(small.logits_of, stack([small.task.params]), examples, end)[0]
    longest = int((examples["labels"] != -100).sum(1).max())
    for answer, ids, labels in zip(ours, examples["input_ids"], examples["labels"], strict=True):
        prompt = ids[: int((labels != -100).int().argmax())].tolist()
        expected = lm.generate(small.task.model, small.task.params, prompt, longest, stop=(end,))
        assert answer[: len(expected)] == expected


# --- runs


def test_stacked_runs_are_runs_alone_and_one_step_is_one_step_of_adam(small):
    forget, retain = small.sets(1 / 12)
    plan = trajectory.Plan(lr=0.003, steps=2, every=1, batch=7)
    given = {"uniform": np.ones(len(forget)), "tilted": np.linspace(0.5, 1.5, len(forget))}
    run = ("GradDiff", small.task.loss_fn, small.logits_of, small.task.params, plan, small.fiction, forget, retain)
    together = trajectory.unlearn(*run, given, 0)
    alone = trajectory.unlearn(*run, {"tilted": given["tilted"]}, 0)
    for name, value in together.items():
        assert torch.allclose(value[:, 1:], alone[name], atol=1e-5)
        assert torch.equal(value[0, 0], small.task.params[name])
        moved = (value[1, 0] - value[0, 0]).abs()
        assert moved.max() <= 0.003 * (1 + 1e-3), "Adam's first step has the size of the rate"


def test_matched_models_have_forgotten_equally_much(small):
    forget, retain = small.sets(1 / 12)
    plan = trajectory.Plan(lr=0.003, steps=8, every=2, batch=7)
    given = {"uniform": np.ones(len(forget)), "tilted": np.linspace(0.1, 1.9, len(forget))}
    run = ("NPO", small.task.loss_fn, small.logits_of, small.task.params, plan, small.fiction, forget, retain)
    recorded, pairs = trajectory.unlearn(*run, given, 0), small.fiction.encode(forget)
    gone = trajectory.along(small.task.loss_fn, recorded, pairs).mean(-1)
    target = float(0.4 * gone[0, 0] + 0.6 * gone.min(0).max())
    found, steps, there = trajectory.matched(small.task.loss_fn, recorded, plan, pairs, target)
    p = trajectory.probabilities(small.task.loss_fn, found, pairs).mean(-1)
    assert there.all() and np.allclose(p, target, atol=2e-3) and (p <= target).all()
    again = trajectory.at_steps(recorded, plan, steps)
    assert all(torch.equal(again[k], v) for k, v in found.items())
    assert all(torch.equal(v, recorded[k][1]) for k, v in trajectory.at_steps(recorded, plan, np.full(2, 2.0)).items())
    _, _, there = trajectory.matched(small.task.loss_fn, recorded, plan, pairs, 1e-9)
    assert not there.any(), "a run that never gets there says so"
    with pytest.raises(ValueError, match="target 0.999 is not below the probability at the start"):
        trajectory.matched(small.task.loss_fn, recorded, plan, pairs, 0.999)


def test_a_llama_unlearns_too():
    draw = models.draw(3, {"circles": 2, "members": 3}, MODEL | {"kind": "llama"}, TRAINING | {"epochs": 1}, ())
    forget, retain = draw.sets(1 / 6)
    plan = trajectory.Plan(lr=0.01, steps=2, every=2, batch=5)
    run = ("KL", draw.task.loss_fn, draw.logits_of, draw.task.params, plan, draw.fiction, forget, retain)
    recorded = trajectory.unlearn(*run, {"a": np.ones(8), "b": np.linspace(0.5, 1.5, 8)}, 0)
    gone = trajectory.along(draw.task.loss_fn, recorded, draw.fiction.encode(forget)).mean(-1)
    assert (gone[1] < gone[0]).all()
    with pytest.raises(ValueError, match="model kind 'gpt2'; neox or llama"):
        models.new_model(MODEL | {"kind": "gpt2"}, 50, 32, 0)


# --- what is refused


@pytest.mark.parametrize(
    "change, message",
    [
        ({"forget": np.array([], int)}, r"the forget set is empty \(0 and .* pairs\); give at least one pair each"),
        ({"retain": np.array([], int)}, "the retain set is empty"),
        ({"retain": "forget"}, "are to be forgotten and retained; take them out of one of the sets"),
        ({"base": "DPO"}, "base loss 'DPO' is unknown; there are GA, GradDiff, KL, NPO, refusal"),
        ({"weights": {"double": 2 * np.ones(8)}}, "the weights have mean 2, not 1: the budget differs"),
        ({"weights": {"short": np.ones(3)}}, r"weights of shape \(3,\) for 8 pairs; give one finite weight"),
        ({"weights": {"negative": np.r_[-1.0, 3.0, np.ones(6)]}}, "give one finite weight >= 0 a pair"),
    ],
)
def test_bad_input_is_refused_in_one_line(small, change, message):
    forget, retain = small.sets(1 / 12)
    given = {"base": "GA", "forget": forget, "retain": retain, "weights": {"uniform": np.ones(8)}} | change
    given["retain"] = forget if isinstance(given["retain"], str) else given["retain"]
    plan = trajectory.Plan(lr=0.01, steps=1, every=1, batch=2)
    with pytest.raises(ValueError, match=message) as caught:
        trajectory.unlearn(
            given["base"], small.task.loss_fn, small.logits_of, small.task.params, plan, small.fiction,
            given["forget"], given["retain"], given["weights"], 0
        )  # fmt: skip
    assert "\n" not in str(caught.value)
