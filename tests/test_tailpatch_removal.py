"""Tail patch against torch's own AdamW and explicit loops; removals are paired, planned alike, and counted right."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_testbed

from tda import designs, lm, models, retrain
from tda.artefacts import load_arrays
from tda.evaluation import removal, tailpatch
from tda.evaluation.tailpatch import first_adamw_step, tail_patch
from tda.task import take
from tda.training import data_order


def adamw_step(params, gradient):
    """One step of the library's optimiser from fresh state, with gradient clipping."""
    parameter = torch.nn.Parameter(params.clone())
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([parameter], tailpatch.CLIP)
    torch.optim.AdamW(
        [parameter], lr=tailpatch.LEARNING_RATE, weight_decay=tailpatch.WEIGHT_DECAY, eps=tailpatch.EPSILON
    ).step()
    return parameter.detach()


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_first_step_is_adamw(size):
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(300, generator=generator, dtype=torch.float64)
    gradients = size * torch.randn(4, 300, generator=generator, dtype=torch.float64)
    gradients[0, :10] = 0
    stepped = first_adamw_step(params, gradients)
    for row in range(4):
        torch.testing.assert_close(stepped[row], adamw_step(params, gradients[row]), atol=0, rtol=2e-8)
    assert (stepped - params).abs().max() > 0.9 * tailpatch.LEARNING_RATE


def test_clipping_is_per_row():
    params, gradients = torch.zeros(3), torch.tensor([[300.0, 0, 4e-8], [3e-4, 0, 4e-8]])
    moved = first_adamw_step(params, gradients)
    assert abs(moved[0, 2]) < abs(moved[1, 2]), "the large row is scaled down until its last entry is below epsilon"


@pytest.fixture(scope="module")
def small(task, tiny, queries):
    """Four queries, twelve documents, two score rows with different rankings."""
    rng = np.random.default_rng(0)
    train, asked = take(tiny.train, slice(0, 12)), take(queries, slice(0, 4))
    return train, asked, {"a": rng.standard_normal((4, 12)), "b": rng.standard_normal((4, 12))}


def log_p(task, params, query):
    """log p of the query's target tokens, [scalar], in a plain sum over tokens."""
    return -lm.losses(task.loss_fn, params, query, "token").astype(float).sum()


def by_adamw(task, documents):
    """Parameters after one AdamW step on the summed loss of some documents."""
    params = {k: torch.nn.Parameter(v.clone()) for k, v in task.params.items()}
    task.loss_fn(params, {k: documents[k] for k in ("input_ids", "labels")}, "sum").backward()
    torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
    torch.optim.AdamW(params.values(), lr=1e-4, weight_decay=0.01).step()
    return {k: v.detach() for k, v in params.items()}


def test_all_three_forms_are_an_explicit_loop(task, small):
    train, asked, scores = small
    found = tail_patch(task, train, asked, scores, [1, 3])
    for row, values in scores.items():
        for q in range(4):
            query = take(asked, slice(q, q + 1))
            top = np.argsort(-values[q])
            before = log_p(task, task.params, query)
            for k in (1, 3):
                each = np.mean([log_p(task, by_adamw(task, take(train, [i])), query) - before for i in top[:k]])
                joint = log_p(task, by_adamw(task, take(train, top[:k])), query) - before
                assert found[row][f"tailpatch_each_{k}"][q] == pytest.approx(each, abs=2e-3, rel=0.02)
                assert found[row][f"tailpatch_joint_dlogp_{k}"][q] == pytest.approx(joint, abs=2e-3, rel=0.02)
                absolute = 100 * abs(np.exp(joint) - 1)
                assert found[row][f"tailpatch_joint_abs_{k}"][q] == pytest.approx(absolute, abs=0.2, rel=0.02)
    assert set(found["a"]) == {f"tailpatch_{form}_{k}" for form in ("each", "joint_abs", "joint_dlogp") for k in (1, 3)}
    assert max(abs(v).max() for v in found["a"].values()) > 0.05, "the effects are not noise"


def test_a_label_at_the_opening_token_counts_for_nothing(task, small):
    """Nothing predicts the first token, and labels that are copies of the ids name it all the same."""
    train, asked, scores = small
    labels = asked["labels"].clone()
    labels[:, 0] = asked["input_ids"][:, 0]
    found, again = (tail_patch(task, train, one, scores, [2])["a"] for one in (asked, asked | {"labels": labels}))
    assert (asked["labels"][:, 0] == lm.IGNORE).all()
    for metric, values in found.items():
        np.testing.assert_allclose(again[metric], values, rtol=1e-6, err_msg=metric)


def test_each_and_joint_agree_at_one_document(task, small):
    train, asked, scores = small
    found = tail_patch(task, train, asked, scores, [1])["a"]
    np.testing.assert_allclose(found["tailpatch_each_1"], found["tailpatch_joint_dlogp_1"], atol=2e-4)


def test_rows_do_not_depend_on_each_other(task, small):
    train, asked, scores = small
    both = tail_patch(task, train, asked, scores, [2])
    alone = tail_patch(task, train, asked, {"b": scores["b"]}, [2])
    for metric, values in alone["b"].items():
        np.testing.assert_allclose(values, both["b"][metric], atol=0.02 if "abs" in metric else 2e-4)


def test_learning_the_query_itself_helps_it_most(task, tiny, queries):
    """A case with a known answer: a copy of the query, against documents of other people."""
    asked = take(queries, slice(0, 3))
    pool = {k: asked[k] for k in ("input_ids", "labels")}
    wide = max(pool["input_ids"].shape[1], tiny.train["input_ids"].shape[1])
    joined = {
        k: torch.cat([F.pad(x[k], (0, wide - x[k].shape[1]), value=fill) for x in (pool, take(tiny.train, slice(9)))])
        for k, fill in (("input_ids", 0), ("labels", lm.IGNORE))
    }  # fmt: skip
    copies = np.zeros((3, 12))
    copies[np.arange(3), np.arange(3)] = 1
    gains = tail_patch(task, joined, asked, {"copy": copies, "anti": -copies}, [1])
    assert (gains["copy"]["tailpatch_each_1"] > 0).all()
    assert (gains["copy"]["tailpatch_each_1"] > gains["anti"]["tailpatch_each_1"]).all()


def test_ties_go_to_the_earlier_document(task, small):
    train, asked, _ = small
    tied = tail_patch(task, train, asked, {"tied": np.zeros((4, 12)), "first": -np.arange(12.0) * np.ones((4, 1))}, [2])
    for metric in tied["tied"]:
        np.testing.assert_array_equal(tied["tied"][metric], tied["first"][metric])


def test_too_large_k_is_refused(task, small):
    train, asked, scores = small
    with pytest.raises(ValueError, match="tailpatch_k=13 exceeds the 12 documents"):
        tail_patch(task, train, asked, scores, [1, 13])


def test_queries_without_scores_are_refused(task, small, removed):
    """Ties would make the first documents of an unscored query its best ones."""
    train, asked, _ = small
    holes = np.zeros((4, 12))
    holes[2] = np.nan
    with pytest.raises(ValueError, match=r"rows \['holes'\] have no scores for some of these queries"):
        tail_patch(task, train, asked, {"whole": np.zeros((4, 12)), "holes": holes}, [2])
    testbed, planned, _ = removed
    holes = models.relevance(testbed).astype(float)
    holes[planned.query[-1]] = np.nan
    with pytest.raises(ValueError, match=r"rows \['holes'\] lack scores"):
        removal.plan(testbed, {"stating": models.relevance(testbed).astype(float), "holes": holes})


# --- removals


@pytest.fixture(scope="module")
def removed(tiny, tmp_path_factory):
    """(testbed, plan, outputs) with everything retrained. Read-only."""
    folder = tmp_path_factory.mktemp("removed") / "people"
    shutil.copytree(tiny.folder, folder)
    testbed = make_testbed(folder)
    planned = removal.plan(testbed, {"stating": models.relevance(testbed).astype(float)})
    for shard in range(2):
        removal.run_shard(testbed, planned, shard)
    return testbed, planned, removal.merge(testbed, planned)


def test_plan_removes_the_top_k(removed):
    testbed, planned, _ = removed
    relevant, n = models.relevance(testbed), len(testbed.documents)
    assert planned.removed.shape == (5, n)
    assert planned.row_id == ["zero_removal", "random_k", "random_k", "stating", "stating"]
    assert planned.k.tolist() == [0, 3, 3, 3, 3] and planned.removed.sum(1).tolist() == planned.k.tolist()
    rows = models.query_rows(testbed)
    for mask, row, q in zip(planned.removed, planned.row_id, planned.query, strict=True):
        if row == "stating":
            assert rows[q]["split"] == "test" and rows[q]["query_set"] == "held_out"
            assert np.flatnonzero(mask).tolist() == np.argsort(-relevant[q].astype(float), kind="stable")[
                :3
            ].tolist() or (
                sorted(np.argsort(-relevant[q].astype(float), kind="stable")[:3]) == np.flatnonzero(mask).tolist()
            )
    assert planned.query[:3].tolist() == [-1] * 3 and len(set(planned.query[3:])) == 2
    assert (planned.removed[1] != planned.removed[2]).any(), "the controls are different draws"
    assert planned.seeds == designs.bank_seeds(testbed, 2)


def test_plan_is_deterministic_and_rows_do_not_move_the_controls(removed):
    testbed, planned, _ = removed
    scores = {"stating": models.relevance(testbed).astype(float)}
    again = removal.plan(make_testbed(testbed.folder), scores)
    np.testing.assert_array_equal(planned.removed, again.removed)
    more = removal.plan(testbed, {"other": -scores["stating"], **scores})
    for row in ("stating", "random_k", "zero_removal"):
        masks = [p.removed[[i for i, r in enumerate(p.row_id) if r == row]] for p in (planned, more)]
        np.testing.assert_array_equal(*masks)


def test_zero_removal_is_the_full_run_exactly(removed):
    testbed, planned, outputs = removed
    base = retrain.retrained(testbed, np.ones(len(testbed.documents), bool), planned.seeds[0], "mask").outputs[0]
    np.testing.assert_array_equal(outputs[0, 0], base)
    nothing = removal.Removals(
        np.zeros((2, len(testbed.documents)), bool),
        ["zero_removal", "nothing"],
        np.array([-1, 0]),
        np.array([0, 0]),
        planned.seeds,
    )
    both = np.stack(
        [[retrain.retrained(testbed, ~m, s, "mask").outputs[0] for s in nothing.seeds] for m in nothing.removed]
    )
    changes = removal.loss_changes(nothing, both, 0)
    assert changes["nothing"].tolist() == [0.0], "removing nothing changes nothing, exactly"


def test_a_document_removed_in_vain_changes_only_through_training(removed):
    """Paired: removing three documents moves the losses, by less than another seed does."""
    testbed, planned, outputs = removed
    moved = np.abs(outputs[1:] - outputs[:1]).mean()
    assert 0 < moved
    assert data_order(5, 1, planned.seeds[0]).tolist() != data_order(5, 1, planned.seeds[1]).tolist()


def test_loss_changes_by_hand():
    planned = removal.Removals(
        np.zeros((4, 5), bool), ["zero_removal", "a", "b", "a"], np.array([-1, 2, 2, 0]), np.array([0, 1, 1, 1]), [7, 8]
    )
    outputs = np.zeros((4, 2, 3))
    outputs[0] = [[1, 2, 3], [3, 4, 5]]  # control means: 2, 3, 4
    outputs[1, :, 2] = 6, 8  # mean 7, minus 4
    outputs[2, :, 2] = 4, 4
    outputs[3, :, 0] = 0, 1  # 0.5 - 2
    changes = removal.loss_changes(planned, outputs, 1)
    assert changes["a"].tolist() == [3.0, -1.5] and changes["b"].tolist() == [0.0] and set(changes) == {"a", "b"}


def test_random_documents_are_a_control_of_every_query_by_hand():
    """Two draws, two queries: each query's control is the mean over both draws, in the order of the rows' queries."""
    rows = ["zero_removal", "random_k", "random_k", "a", "a"]
    of, k = np.array([-1, -1, -1, 2, 0]), np.array([0, 1, 1, 1, 1])
    planned = removal.Removals(np.zeros((5, 9), bool), rows, of, k, [7, 8])
    outputs = np.array([[1, 9, 2], [2, 9, 4], [5, 9, 2], [0, 0, 7], [3, 0, 0]], np.float32)[:, None]
    outputs = outputs + np.array([[[-1.0]], [[1.0]]])[:, 0] * np.arange(5)[:, None, None]  # the seeds differ
    drawn = removal.control_changes(planned, outputs, 1)
    assert drawn.tolist() == [[2.0, 1.0], [0.0, 4.0]], "draw by query; query 2 comes first"
    changes = removal.loss_changes(planned, outputs, 1)
    assert changes["random_k"].tolist() == [1.0, 2.5] and changes["a"].tolist() == [5.0, 2.0]
    assert removal.claimed(planned, outputs, "a", "removal_1").tolist() == [5.0 - 1.0, 2.0 - 2.5]
    assert removal.control_changes(planned, outputs, 2).shape == (0, 2)


def test_the_error_that_queries_share_is_told_from_the_one_they_do_not():
    rng = np.random.default_rng(5)
    draws, queries, runs = 4, 6, 4000
    common, own = rng.normal(0, 0.3, (runs, draws, 1)), rng.normal(0, 0.5, (runs, draws, queries))
    found = np.array([removal.shared_error(one) for one in common + own])
    assert abs(np.sqrt((found**2).mean()) - 0.3 / np.sqrt(draws)) < 0.03
    assert np.median([removal.shared_error(one) for one in own]) < 0.06
    assert removal.shared_error(np.array([[1.0, 2.0], [3.0, 4.0]])) == pytest.approx(np.sqrt(2.0 / 2)), "no interaction"


def test_merge_writes_the_contract_and_repeats_its_bytes(removed):
    testbed, planned, outputs = removed
    path = testbed.folder / "removals.npz"
    arrays, record = load_arrays(path, "removals", ("removed", "outputs", "row_id", "query", "k", "seeds"))
    np.testing.assert_array_equal(arrays["outputs"], outputs)
    assert arrays["outputs"].shape == (5, 2, len(models.query_rows(testbed))) and arrays["outputs"].dtype == np.float32
    assert record["kind"] == "removals" and arrays["removed"].dtype == bool
    before = path.read_bytes()
    removal.merge(testbed, planned)
    assert path.read_bytes() == before
    counts = [json.loads((testbed.folder / f"removals.parts/shard{k}.json").read_text())["models"] for k in (0, 1)]
    assert counts == [5, 5]


def test_impossible_removals_are_refused(removed):
    testbed, planned, _ = removed
    with pytest.raises(ValueError, match="shard=2; removals have 2 shards, numbered from 0"):
        removal.run_shard(testbed, planned, 2)
    scores = {"a": np.zeros(models.relevance(testbed).shape)}
    for change in ({"k": len(testbed.documents)}, {"queries": 1}):
        changed = make_testbed(testbed.folder)
        changed.settings["removals"] |= change
        with pytest.raises(ValueError, match="at least 2 queries and 0 < k < N are needed"):
            removal.plan(changed, scores)


def test_further_k_extend_the_same_ranking_and_the_same_random_draw(removed):
    testbed, planned, _ = removed
    changed = make_testbed(testbed.folder)
    changed.settings["removals"] |= {"more_k": {"stating": [5, 8]}, "controls": 3}
    scores = {"stating": models.relevance(testbed).astype(float), "other": -models.relevance(testbed).astype(float)}
    more = removal.plan(changed, scores)
    for q in sorted(set(more.query[more.query >= 0])):
        of = {(r, k): m for r, k, p, m in zip(more.row_id, more.k, more.query, more.removed, strict=True) if p == q}
        assert set(of) == {("other", 3)} | {("stating", k) for k in (3, 5, 8)}
        assert [int(of["stating", k].sum()) for k in (3, 5, 8)] == [3, 5, 8]
        assert (of["stating", 3] <= of["stating", 5]).all() and (of["stating", 5] <= of["stating", 8]).all()
    draws = [m for r, m in zip(more.row_id, more.removed, strict=True) if r == "random_k"]
    assert [int(m.sum()) for m in draws] == [3, 5, 8] * 3
    for three, five, eight in zip(draws[::3], draws[1::3], draws[2::3], strict=True):
        assert (three <= five).all() and (five <= eight).all()


def test_claims_on_removals_stand_above_random_by_hand():
    rows = ["zero_removal", "a", "a", "random_k", "random_k"]
    of = np.array([-1, 0, 0, -1, -1])
    planned = removal.Removals(np.zeros((5, 4), bool), rows, of, np.array([0, 2, 4, 2, 4]), [7])
    outputs = np.array([1.0, 4.0, 9.0, 1.5, 2.5])[:, None, None]
    assert removal.claimed(planned, outputs, "a", "removal_2").tolist() == [3.0 - 0.5]
    assert removal.claimed(planned, outputs, "a", "removal_growth").tolist() == [(8.0 - 1.5) - (3.0 - 0.5)]
    with pytest.raises(ValueError, match=r"row 'a' was removed with k in \[2, 4\]; 'removal_3' needs other k"):
        removal.claimed(planned, outputs, "a", "removal_3")
    with pytest.raises(ValueError, match="removal_growth"):
        removal.claimed(planned, outputs, "zero_removal", "removal_growth")


def test_a_merged_plan_is_read_and_another_one_is_not(removed, monkeypatch):
    testbed, planned, outputs = removed
    removal.merge(testbed, planned)
    with monkeypatch.context() as patch:
        patch.setattr(removal, "merge", lambda *arguments: "merged")
        np.testing.assert_array_equal(removal.load(testbed, planned), outputs)
        for other in (replace(planned, seeds=planned.seeds[:1]), replace(planned, removed=~planned.removed)):
            assert removal.load(testbed, other) == "merged"
