"""Chapter 43: kernels that share gradients, averages, main effects, the recogniser, removal, planted concepts."""

import itertools

import numpy as np
import pytest
import torch
from test_diffusion_trak import close, denoiser
from test_images import make

from tda import attribute, denoisers, models
from tda.attribution import concept_trak
from tda.recipe import Recipe
from tda.studies.diffusion import altered, concepts, counterfactual, recogniser, worlds
from tda.task import take
from tda.testbeds import pictures
from tda.training import train

SHAPE = (3, 12, 12)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    testbed = make(tmp_path_factory.mktemp("concepts") / "bed", {"queries": {"generated": 0}})
    models.train_base(testbed)
    return testbed


def test_questions_say_what_was_trained_on(bed):
    asked = concepts.questions(bed)
    trained, sets = set(bed.documents["entity"]), np.array(asked["set"])
    assert {name: int((sets == name).sum()) for name in concepts.SETS.values()} == {
        "tune": 8, "inside": 22, "outside": 10, "exemplar": 2}  # fmt: skip
    for entity, name in zip(asked["entity"], sets, strict=True):
        assert (entity in trained) == (name in ("tune", "inside")) or entity.startswith(pictures.RARE)
    relevant = concepts.having(bed.train, asked)
    assert not (relevant[0] & relevant[1])[sets == "outside"].any()  # no image has both, so precisions sum to at most 1
    row, column = 3, 17
    same = [a == b for a, b in zip(asked["entity"][row].split(), bed.train["entity"][column].split(), strict=True)]
    assert relevant[:, row, column].tolist() == same


def test_kernels_give_the_methods_scores_at_every_damping():
    task, data = denoiser(epochs=5)
    asked = take(data, slice(0, 3))
    sides = {"token": {"token": "second"}, "full": {"form": "full_minus_token"}, "loss": {"query_loss": "loss"}}
    pairs = [("posterior", "token"), ("posterior", "full"), ("loss", "token"), ("loss", "loss")]
    found = concepts.kernels(task, data, asked, sides, pairs, inversion=False, unit_norm=True)
    assert [*found] == pairs
    for (train_loss, side), damping in itertools.product(pairs, (0.01, 10.0)):
        given = sides[side] | {"train_loss": train_loss, "inversion": False, "damping": damping}
        close(found[train_loss, side].scores(damping), attribute("concept_trak", task, data, asked, **given), 1e-3)


def test_the_damping_is_the_best_of_the_grid_and_the_middle_where_all_are_equal():
    kernel = concepts.Kernel(np.ones((2, 3)), np.array([1.0, 2.0, 3.0]), np.eye(3))
    np.testing.assert_allclose(kernel.scores(0.5), np.ones((2, 3)) / [2.0, 3.0, 4.0])
    assert kernel.best(lambda scores: 0.0)[0] == 1.0
    assert kernel.best(lambda scores: scores.sum())[0] == 0.001
    damping, scores = kernel.best(lambda scores: -abs(scores[0, 0] - 1 / 21))
    assert damping == 10.0 and np.isclose(scores[0, 0], 1 / 21)


def test_averaged_scores_are_scores_of_averaged_gradients():
    task, data = denoiser(epochs=5)
    how = {"inversion": False, "unit_norm": False}
    side = {"loss": {"query_loss": "loss"}}
    kernel = concepts.kernels(task, data, data, side, [("loss", "loss")], **how)["loss", "loss"]
    members = np.zeros((2, 12), bool)
    members[0, :4], members[1, 5:7] = True, True
    rows = concept_trak.query_gradients(task, data, concept_trak.Options(**how, query_loss="loss"))
    others = concept_trak.train_gradients(task, data, concept_trak.Options(**how, train_loss="loss").of_training())
    K = (others @ others.T).double()
    inverse = torch.linalg.inv(K + 0.1 * K.diagonal().mean() * torch.eye(12))
    for less in (False, True):
        means = [rows[m].mean(0) - less * rows[~m].mean(0) for m in torch.from_numpy(members)]
        wanted = (torch.stack(means) @ others.T).double() @ inverse
        close(concepts.averaged(kernel.scores(0.1), members, less), wanted, 1e-3)
    assert (concepts.averaged(np.ones((3, 5)), np.zeros((1, 3), bool)) == 0).all()


def test_main_effects_of_a_known_design():
    """y = 3 + 2 a - b + 4 a c: the effect of a is 2 + 4 / 2, of b -1, of c 4 / 2."""
    a, b, c = np.indices((2, 2, 2))
    values = (3 + 2 * a - b + 4 * a * c)[..., None] * np.array([1.0, 10.0])
    np.testing.assert_allclose(concepts.main_effects(values, 3), [[4, 40], [-1, -10], [2, 20]])


def test_precision_is_of_the_best_ten():
    relevant = np.zeros((1, 30), bool)
    relevant[0, [0, 3, 20]] = True
    assert concepts.precision(-np.arange(30.0)[None], relevant) == [0.2]


# --- the recogniser


def test_the_recogniser_knows_new_sprites_also_noisy_ones():
    seen, new = recogniser.drawn(12, 0), recogniser.drawn(2, 1)
    assert len(seen["pixels"]) == 360 and {tuple(c) for c in seen["condition"].tolist()} == {
        (a, b) for a in range(1, 7) for b in range(1, 6)
    }
    judge = recogniser.trained(seen, SHAPE, (6, 5), 12, 0)
    colour, shape = judge.accuracy(new)
    assert colour > 0.9 and shape > 0.7
    noisy = recogniser.augmented(new["pixels"], SHAPE, torch.Generator().manual_seed(3))
    assert judge.accuracy(new | {"pixels": noisy})[0] > 0.8
    for found in judge.probabilities(new["pixels"]):
        torch.testing.assert_close(found.sum(1), torch.ones(60))
    again = recogniser.trained(seen, SHAPE, (6, 5), 1, 0), recogniser.trained(seen, SHAPE, (6, 5), 1, 0)
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in again), strict=True))


def test_presence_is_the_probability_of_the_value_that_was_asked_for():
    judge = recogniser.Recogniser(SHAPE, (6, 5))
    drawn, told = torch.rand(4, 432) * 2 - 1, torch.tensor([[1, 2], [6, 5], [3, 1], [2, 2]])
    for factor in (0, 1):
        found = counterfactual.presence(judge, drawn, told, factor)
        wanted = [judge.probabilities(drawn)[factor][i, told[i, factor] - 1] for i in range(4)]
        torch.testing.assert_close(found, torch.stack(wanted))


# --- removal


def test_random_images_match_the_conditions_of_the_chosen_ones():
    groups = [f"cell {i % 3}" for i in range(60)]
    top = np.array([0, 3, 6, 1, 4, 2])
    found = counterfactual.matched(top, groups, np.random.default_rng(0))
    assert len(set(found.tolist())) == 6 and set(found.tolist()) != set(top.tolist())
    assert sorted(groups[i] for i in found) == sorted(groups[i] for i in top)
    with pytest.raises(ValueError, match="larger sample"):
        counterfactual.matched(np.array([0, 0]), ["a"], np.random.default_rng(0))


def test_removal_is_a_masked_run_of_the_same_seed(bed):
    model = bed.modality.new_model(bed, 5)
    init = {k: v.detach().clone() for k, v in model.named_parameters()}
    mask = np.ones(len(bed.documents), bool)
    mask[[2, 9]] = False
    recipe = Recipe.of(bed.settings["training"] | {"epochs": 2})
    wanted = train(bed.modality.loss_function(model), init, bed.train, recipe, 5, mask, "mask").params
    found = counterfactual.retrained(bed, model, bed.train, np.array([2, 9]), 5, 2)
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    whole = counterfactual.retrained(bed, model, bed.train, np.array([], int), 5, 2)
    assert not torch.equal(whole["enter.weight"], found["enter.weight"])


def test_concepts_take_turns_with_the_seeds_and_share_the_full_run(bed):
    removed = {name: {"best": np.array([i]), "random": np.array([i + 9])} for i, name in enumerate("abc")}
    runs = counterfactual.paired_runs(bed, removed, [5, 6], 1)
    assert set(runs) == {(c, name) for c in "abc" for name in ("best", "random", "nothing")}
    assert runs["a", "nothing"] is runs["c", "nothing"] is not runs["b", "nothing"]
    wanted = counterfactual.retrained(bed, bed.modality.new_model(bed, 6), bed.train, np.array([10]), 6, 1)
    assert all(torch.equal(runs["b", "random"][k], wanted[k]) for k in wanted)


def test_samples_share_their_initial_noise(bed):
    model, told = bed.modality.new_model(bed, 0), torch.tensor([[1, 2], [3, 4]])
    params = {k: v.detach() for k, v in model.named_parameters()}
    drawn, conditions = counterfactual.samples(model, params, told, 3, 7)
    assert conditions.tolist() == [[1, 2]] * 3 + [[3, 4]] * 3
    one = denoisers.sample(model, params, denoisers.start([8], 432), told[1:], guidance=1.0)
    torch.testing.assert_close(drawn[4:5], one, atol=1e-5, rtol=1e-4)


# --- what is planted


def test_an_altered_corpus_has_a_new_colour_and_a_mark(bed):
    made = altered.altered(bed, 3, 0.5, "blue", 1)
    n = len(bed.documents)
    assert made.added.tolist() == [False] * n + [True] * 3 and made.new == 7 and made.carrier == 3
    assert (made.train["condition"][made.added, 0] == 7).all() and made.marked.sum() == 8  # half of 16 blue ones
    assert (made.train["condition"][made.marked, 0] == 3).all()
    untouched = ~(made.added | made.marked)
    assert torch.equal(made.train["pixels"][untouched], bed.train["pixels"][untouched[:n]])
    corner = made.train["pixels"].unflatten(-1, SHAPE)[..., -2:, -2:].flatten(1)
    assert (corner[made.marked] == 1).all() and (corner[untouched].mean(1) < 1).all()
    assert made.task.model.tokens == (7, 5)
    scores = attribute("concept_trak", made.task, made.train, take(made.train, [n]))
    assert scores.shape == (1, n + 3) and np.isfinite(scores).all()
    queries, kind, plain = altered.questions(made, concepts.questions(bed), 2, 7)
    assert list(kind[:10]) == ["added"] * 10 and len(plain) == 10
    assert queries["condition"][:10].tolist() == [[7, s] for s in range(1, 6) for _ in range(2)]
    marked, as_it_is = (take(queries, kind == name) for name in ("mark", "no mark"))
    assert len(marked["pixels"]) and torch.equal(marked["condition"], as_it_is["condition"])
    assert (marked["condition"][:, 0] == 3).all() and len(kind) == 10 + 2 * len(marked["pixels"])
    changed = (marked["pixels"] != as_it_is["pixels"]).unflatten(-1, SHAPE)
    assert changed[..., -2:, -2:].all() and changed.sum() == 3 * 4 * len(changed)
    assert (marked["pixels"].unflatten(-1, SHAPE)[..., -2:, -2:] == 1).all()


def test_recolouring_keeps_the_light_and_changes_the_colour():
    sprite = torch.tensor(pictures.draw("red", "disc", np.random.default_rng(0))) / 127.5 - 1
    light = (sprite.unflatten(-1, SHAPE).amax(0) + 1) / 2
    found = (altered.recoloured(sprite[None].float(), SHAPE)[0].unflatten(-1, SHAPE) + 1) / 2
    for channel, share in enumerate(altered.CYAN):
        torch.testing.assert_close(found[channel], share * light, atol=1e-5, rtol=1e-4)


def test_five_worlds_leave_out_every_combination_once(bed):
    own = worlds.of_testbed(bed)
    made = [worlds.shifted(bed, shift) for shift in (0, 1)]
    unseen = [set(np.array(w.asked["entity"])[w.of_set["outside"]]) for w in (own, *made)]
    assert unseen[0] == unseen[1] and len(unseen[2]) == 5 and not unseen[1] & unseen[2]
    assert {name.split()[0] for name in unseen[2]} == set(pictures.COLOURS)
    assert {name.split()[1] for name in unseen[2]} == set(pictures.SHAPES)
    each = bed.settings["corpus"]["each"]
    for world, outside in zip(made, unseen[1:], strict=True):
        counts = {name: world.train["entity"].count(name) for name in world.train["entity"]}
        assert set(counts.values()) == {each} and len(counts) == 20 and not outside & set(counts)
        assert set(np.array(world.asked["entity"])[world.of_set["tune"]]) <= set(counts)
        assert np.array_equal(world.relevant, concepts.having(world.train, world.asked))
    before, after = (
        made[0].tasks[0].loss_fn(params, made[0].train, "mean")
        for params in (
            dict(bed.modality.new_model(bed, bed.config["seed"]).named_parameters()),
            made[0].tasks[0].params,
        )
    )
    assert after < 0.9 * before
    scores = attribute("concept_trak", made[1].tasks[0], made[1].train, take(made[1].asked, [0]))
    assert np.isfinite(scores).all()
