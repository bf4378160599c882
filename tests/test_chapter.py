"""What a notebook stands in: rows that are tuned, run and compared, and files under the chapter's name."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import make_testbed

import tda.chapter
from tda import attribution, bank, config, models, tuning
from tda.chapter import Chapter
from tda.evaluation.intervals import Interval, lds_intervals
from tda.tools.summed import trajectory, unit_scale

ROWS = [
    {"id": "gradient_dot", "method": "gradient_dot", "notebook": "04_first_methods"},
    {"id": "fisher", "method": "fisher_influence", "notebook": "10_bgo", "options": {"preconditioner": "diagonal"},
     "tune": {"damping": [0.1, 1.0]}},
    {"id": "summed", "method": "fisher_influence", "notebook": "10_bgo", "checkpoints": 2, "options": {"damping": 1.0}},
]  # fmt: skip
CLAIMS = [
    {"id": "better", "paper": "BGO", "notebook": "10_bgo", "testbed": "people", "metric": "lds_half", "row": "fisher",
     "against": "gradient_dot", "direction": "greater", "kind": "difference", "claim": "It is better."},
]  # fmt: skip


@pytest.fixture
def chapter(own, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TDA_BATCH", "1")  # progress is printed, a line a row
    bed = make_testbed(own.folder, {"removals": {"rows": ["gradient_dot"]}}, rows=ROWS, claims=CLAIMS)
    monkeypatch.setattr(tda.chapter, "load", lambda name, profile, overrides: bed)
    monkeypatch.setattr(config, "figures_dir", lambda settings: tmp_path / "figures")
    opened = Chapter("10_bgo", profile="smoke", testbed="people", overrides={})
    said = capsys.readouterr().out
    assert "profile = 'smoke'" in said and "testbed = 'people'" in said and "torch" in said
    return opened


def test_rows_are_tuned_run_and_shown_with_what_they_cost(chapter, capsys):
    table = chapter.run()
    assert list(table.index) == ["fisher", "summed"] == chapter.row_ids
    assert "summed: {}" in capsys.readouterr().out
    chosen = tuning.tuned(chapter.bed, chapter.row("fisher"))["options"]["damping"]
    assert table.damping["fisher"] == chosen == chapter.options("fisher")["damping"]
    assert table["at the edge"]["fisher"] == "damping" and table["at the edge"]["summed"] == ""
    assert table.preconditioner["fisher"] == "diagonal", "options that nobody chose are shown as well"
    assert (table["queries [s]"] >= 0).all() and table["tuning [s]"]["fisher"] > 0


EDGES = [  # method, option, values, LDS of each (None: the step broke the model), whether the end matters
    ("fisher_influence", "damping", [0.1, 1.0, 10.0], [0.3, 0.2, 0.1], True),
    ("fisher_influence", "damping", [10.0, 1.0, 0.1], [0.1, 0.2, 0.3], True),
    ("fisher_influence", "damping", [1, 10], [0.3, 0.2], True),  # 0 is not allowed, but 0.5 is
    ("fisher_influence", "damping", [0.1, 1.0, 10.0], [0.3, 0.297, 0.1], False),  # levelled off
    ("fisher_influence", "damping", [0.1, 1.0, 10.0], [0.1, 0.3, 0.2], False),
    ("stride", "penalty", [0.0, 0.1], [0.3, 0.2], False),  # no penalty is below 0
    ("stride", "steps", [0, 30], [0.3, 0.2], False),
    ("stride", "steps", [0, 30], [0.2, 0.3], True),
    ("bgo", "step", [1.0, 2.0, 4.0], [0.2, 0.3, None], False),  # beyond it the model breaks
    ("bgo", "step", [1.0, 2.0], [None, 0.3], True),
    ("stride", "recovery", ["lasso", "ridge"], [0.3, 0.2], False),  # no order
]


@pytest.mark.parametrize(("method", "option", "values", "reached", "matters"), EDGES)
def test_an_end_of_a_grid_matters_where_the_lds_still_rises_and_the_option_goes_on(
    method, option, values, reached, matters
):
    row = {"method": method, "tune": {"other": [1], option: values}}
    trials = [{"other": 1, "lds_tune": 0.0}]
    trials += [{"other": 1, option: value, "lds_tune": lds} for value, lds in zip(values, reached, strict=True)]
    assert tuning.at_the_edge(row, trials) == [option] * matters


def test_scores_are_a_rows_own_or_with_other_options(chapter):
    bed, given = chapter.bed, {"preconditioner": "diagonal", "seed": 0}
    for damping in (chapter.options("fisher")["damping"], 7.0):
        wanted = attribution.attribute(
            "fisher_influence", chapter.task, bed.train, chapter.queries, damping=damping, **given
        )
        other = {} if damping != 7.0 else {"damping": 7.0}
        np.testing.assert_array_equal(chapter.scores("fisher", **other), wanted)


def test_a_row_is_summed_over_the_checkpoints_of_the_run(chapter):
    parts = [
        weight
        * unit_scale(attribution.attribute("fisher_influence", part, chapter.bed.train, chapter.queries, damping=1.0))
        for part, weight in trajectory(chapter.task, 2)
    ]
    assert len(parts) == 2
    np.testing.assert_allclose(chapter.scores("summed"), sum(parts), rtol=1e-4, atol=1e-6 * np.abs(sum(parts)).max())
    metrics = chapter.metrics().set_index("row_id")
    assert metrics.method["summed"].iloc[0] == "fisher_influence_trajectory"
    assert '"checkpoints": 2' in metrics.options_json["summed"].iloc[0]
    assert '"models_used": 2' in metrics.options_json["summed"].iloc[0]


def test_queries_and_comparisons_are_of_the_held_out_test_queries(chapter):
    rows = models.query_rows(chapter.bed)
    assert [rows[q]["split"] for q in np.flatnonzero(chapter.test)] == ["test"] * chapter.test.sum()
    assert (
        not (chapter.test & chapter.which("tune")).any() and (chapter.which("test", "generated") != chapter.test).any()
    )
    assert len(chapter.clusters) == chapter.test.sum() == len(chapter.test_queries["query_id"])
    half, scores = (
        chapter.bank("half"),
        {name: chapter.scores(name)[chapter.test] for name in ("fisher", "gradient_dot")},
    )
    wanted = lds_intervals(
        scores, half.subsets, half.outputs[:, :, chapter.test], chapter.clusters, 0.95, ["gradient_dot"]
    )
    found = chapter.compare("lds_half", ["fisher"], ["gradient_dot"])["fisher"].difference["gradient_dot"]
    assert tuple(found) == tuple(wanted["fisher"].difference["gradient_dot"])
    line = chapter.claims().iloc[0]
    assert line.claim == "It is better." and line.value == round(found.value, 3) and line["true if"] == "> 0"
    assert bank.load(chapter.bed, "half").subsets.shape == half.subsets.shape


def test_files_stand_under_the_chapters_name_and_only_where_they_are_declared(chapter, tmp_path):
    figure, _ = plt.subplots()
    chapter.save(figure, "premise")
    chapter.save_table(pd.DataFrame({"a": [1]}), "bgo_grid")
    assert (tmp_path / "figures/10_premise_people.png").stat().st_size > 1000
    assert (tmp_path / "figures/tables/bgo_grid_people.csv").exists()
    for attempt in (lambda: chapter.save(figure, "prelude"), lambda: chapter.save_table(pd.DataFrame(), "bgo_gird")):
        with pytest.raises(
            ValueError, match=r"is not declared: workflow/config/chapters/10_bgo\.yaml lists .*10_premise"
        ):
            attempt()
    for name in ("10_findings", "10_cost"):
        with pytest.raises(ValueError, match=f"{name} is a table that save_findings writes"):
            chapter.save_table(pd.DataFrame({"a": [1]}), name)
    assert sorted(p.name for p in (tmp_path / "figures").glob("*.png")) == ["10_premise_people.png"]


def test_a_chapter_without_a_testbed(capsys):
    opened = Chapter("30_newton_vs_influence", profile="smoke", overrides={})
    assert opened.bed is None and "testbed =" not in capsys.readouterr().out
    assert opened.path("30_laws.png").name == "30_laws.png" and opened.level == 0.95


def test_an_interval_as_text():
    interval = Interval(0.125, -0.25, 1.0)
    assert f"{interval:+.2f}" == "+0.12 [-0.25, +1.00]" and f"{interval}" == "0.125 [-0.25, 1]"
