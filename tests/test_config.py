"""Profiles are valid, defaults come from the schema, and every mistake is one line that names key, value
and what is allowed.
"""

import datetime
import json
import shutil

import pytest
import yaml

from tda import config, config_files
from tda.chapter import Chapter
from tda.config import ConfigError
from tda.testbeds import check_kinds
from tda.tuning import check_rows

PROFILES = sorted(path.stem for path in config.PROFILES.glob("*.yaml") if path.stem != "schema")


def error_of(overrides=None, profile="smoke"):
    with pytest.raises(ConfigError) as caught:
        loaded = config.load(profile, overrides)
        check_kinds(loaded)
        check_rows(loaded)
    message = str(caught.value)
    assert "\n" not in message
    return message


def people(**sections):
    return {"testbeds": {"people": sections}}


def digits(**sections):
    return {"testbeds": {"digits_mlp": sections}}


def test_the_four_profiles_load():
    assert PROFILES == ["extended", "large", "paper", "smoke"]
    for profile in PROFILES:
        loaded = config.load(profile)
        check_kinds(loaded)
        check_rows(loaded)
        assert loaded["profile"] == profile and loaded["overrides"] == {}


def test_schema_describes_every_key_and_has_its_default():
    schema = yaml.safe_load((config.PROFILES / "schema.yaml").read_text())

    def visit(node, path):
        shared = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else {}
        assert "description" in {**shared, **node}, path
        return {**shared, **node}

    for name, block in {"profile": schema, **schema["$defs"]}.items():
        for key, node in block.get("properties", {}).items():
            node = visit(node, f"{name}.{key}")
            known = (
                key in block.get("required", [])
                or key in ("kind", "optimizer")
                or name
                in ("chapter", "section", "chapter_row", "chapter_claim")  # not filled, but laid over each other
                or block.get("properties") == designs(schema)
            )
            assert known or "default" in node, f"{name}.{key} has no default"
        if "properties" in block and name not in ("corpus", "model", "training"):
            assert block["additionalProperties"] is False, name


def designs(schema):
    return schema["$defs"]["testbed"]["properties"]["designs"]["properties"]


def test_defaults_are_filled_everywhere():
    loaded = config.load("smoke")
    testbed = loaded["testbeds"]["authors"]
    assert (
        testbed["training"]["beta2"] == 0.99 and testbed["corpus"]["tokens_max"] == 120 and testbed["removals"] is None
    )
    assert loaded["rows"][0]["options"] == {} and loaded["statistics"]["level"] == 0.95
    assert "zipf" not in testbed["corpus"], "keys of another kind of corpus"
    assert testbed["model"]["kind"] == "gpt_neox" and testbed["training"]["optimizer"] == "adamw"
    images = loaded["testbeds"]["digits_mlp"]
    assert images["training"]["warmup"] == 0.0 and "clip" not in images["training"] and "layers" not in images["model"]


def test_overrides_merge_remove_and_move_the_data():
    overrides = {"seed": 3, **people(designs={"half": {"subsets": 4}, "leave_group": None}, removals=None)}
    loaded = config.load("smoke", overrides)
    assert loaded["testbeds"]["people"]["designs"] == {"half": {"subsets": 4, "seeds": 2, "fraction": 0.5, "shards": 2}}
    assert loaded["testbeds"]["people"]["removals"] is None and loaded["overrides"] == overrides
    folder = config.data_dir(loaded)
    assert folder.parent == config.ROOT / "data" / "scratch" and config.figures_dir(loaded) == folder / "figures"
    assert folder != config.data_dir(config.load("paper", {"seed": 3}))
    assert config.data_dir(config.load("smoke")) == config.ROOT / "data" / "smoke"
    assert config.figures_dir(config.load("paper")) == config.ROOT / "figures"
    assert config.figures_dir(config.load("smoke")) == config.ROOT / "data" / "smoke" / "figures"


def test_loading_leaves_the_overrides_alone():
    overrides = people(designs={"leave_group": None})
    config.load("smoke", overrides)["testbeds"]["people"]["designs"]["half"]["subsets"] = 99
    assert overrides == people(designs={"leave_group": None})
    assert config.load("smoke")["testbeds"]["people"]["designs"]["half"]["subsets"] == 8


MISTAKES = {
    "sed": ({"sed": 1}, ["sed: unknown key", "did you mean 'seed'"]),
    "epoch": (
        people(training={"epoch": 3}),
        ["testbeds.people.training.epoch: unknown key", "did you mean 'epochs'"],
    ),
    "corpus key": (people(corpus={"peple": 3}), ["testbeds.people.corpus.peple: unknown key", "'people'"]),
    "key of another kind": (people(corpus={"authors": 3}), ["corpus.authors: unknown key"]),
    "kind": (
        people(corpus={"kind": "wiki"}),
        ["corpus.kind: 'wiki' is not allowed", "people, authors, file, hub, digits"],
    ),
    "fraction 0": (
        people(designs={"half": {"fraction": 0}}),
        ["half.fraction: 0 ", "greater than 0 and less than 1"],
    ),
    "fraction 1": (
        people(designs={"half": {"fraction": 1.0}}),
        ["half.fraction: 1.0 ", "greater than 0 and less than 1"],
    ),
    "one subset": (
        people(designs={"half": {"subsets": 1}}),
        ["half.subsets: 1 is not allowed", "at least 2"],
    ),
    "one seed": (people(designs={"half": {"seeds": 1}}), ["half.seeds: 1 is not allowed", "at least 2"]),
    "one group seed": (people(designs={"leave_group": {"seeds": 1}}), ["leave_group.seeds: 1", "at least 2"]),
    "design": (
        people(designs={"halves": {"subsets": 4}}),
        ["designs.halves: unknown key", "did you mean 'half'"],
    ),
    "batch": (people(training={"batch": 0}), ["training.batch: 0 is not allowed; it must be at least 1"]),
    "text number": (people(training={"lr": "1e-3"}), ["lr: '1e-3'", "type number (that is text: write 0.001)"]),
    "small text number": (people(training={"lr": "1e-5"}), ["training.lr: '1e-5'", "write 1.0e-05)"]),
    "text integer": ({"seed": "3"}, ["seed: '3'", "type integer (that is text: write 3)"]),
    "text integer with a point": (people(corpus={"people": "20.0"}), ["people: '20.0'", "(that is text: write 20)"]),
    "no integer": ({"seed": "3.5"}, ["seed: '3.5' is not allowed; it must be of type integer"]),
    "text in a list": (people(evaluation={"recall_k": [1, "5"]}), ["recall_k[1]: '5'", "(that is text: write 5)"]),
    "nan": (people(training={"lr": float("nan")}), ["training.lr: nan", "finite"]),
    "float count": (people(training={"epochs": 3.0}), ["training.epochs: 3.0", "integer"]),
    "heads": (people(model={"width": 33}), ["model.width: 33", "multiple of heads (2)"]),
    "documents": (people(corpus={"docs_min": 9}), ["corpus.docs_min: 9", "at most docs_max (8)"]),
    "tokens": (
        {"testbeds": {"authors": {"corpus": {"tokens_min": 200}}}},
        ["tokens_min: 200", "at most tokens_max (120)"],
    ),
    "removal row": (
        people(removals={"rows": ["gradient_dt"]}),
        ["removals.rows: 'gradient_dt'", "did you mean 'gradient_dot'"],
    ),
    "removal of more": (
        people(removals={"more_k": {"bm25": [6]}}),
        ["removals.more_k: 'bm25'", "one of removals.rows"],
    ),
    "removal of the same": (
        people(removals={"more_k": {"gradient_dot": [3, 6]}}),
        ["more_k.gradient_dot: [3, 6]", "name other k"],
    ),
    "testbed name": (
        {"testbeds": {"My Data": {"corpus": {"kind": "people"}}}},
        ["testbeds: 'My Data' is not allowed"],
    ),
    "no corpus": (
        {"testbeds": {"mine": {}}},
        ["testbeds.mine.corpus: missing", "people, authors, file, hub, digits, sprites, digit_images or photos"],
    ),
    "no path": (
        {"testbeds": {"mine": {"corpus": {"kind": "file"}}}},
        ["testbeds.mine.corpus.path: missing", ".jsonl"],
    ),
    "text model on images": (digits(model={"kind": "gpt_neox"}), ["digits_mlp.model.", "unknown key"]),
    "images for a text model": (
        {"testbeds": {"mine": {"corpus": {"kind": "digits"}}}},
        ["testbeds.mine.model.kind: 'gpt_neox'", "mlp or cnn for a corpus of kind digits"],
    ),
    "classifier on texts": (
        {"testbeds": {"mine": {"corpus": {"kind": "people"}, "model": {"kind": "cnn"}}}},
        ["testbeds.mine.model.kind: 'cnn'", "gpt_neox for a corpus of kind people"],
    ),
    "key of another model": (digits(model={"layers": 2}), ["model.layers: unknown key", "depth"]),
    "key of another optimizer": (digits(training={"beta1": 0.9}), ["training.beta1: unknown key", "momentum"]),
    "clipped sgd": (digits(training={"clip": 1.0}), ["training.clip: unknown key"]),
    "optimizer": (digits(training={"optimizer": "sdg"}), ["optimizer: 'sdg'", "did you mean 'sgd'"]),
    "schedule": (digits(training={"schedule": "linear"}), ["schedule: 'linear'", "constant, step, cosine"]),
    "flips": (digits(corpus={"flips": 1.0}), ["corpus.flips: 1.0", "at least 0 and less than 1"]),
    "too many images": (digits(corpus={"train": 1690, "held_out": 120}), ["corpus.held_out: 120", "of 1797"]),
    "groups of images": (digits(designs={"leave_group": {"groups": 4}}), ["'leave_group'", "use half and leave_5"]),
    "generated images": (digits(queries={"generated": 4}), ["queries.generated: 4", "write 0"]),
    "tail-patched images": (digits(evaluation={"tailpatch_queries": 4}), ["tailpatch_queries: 4", "write 0"]),
    "removed images": (
        digits(removals={"rows": ["gradient_dot"]}),
        ["digits_mlp.removals", "a corpus of kind digits has none: write null"],
    ),
    "device": ({"device": "gpu"}, ["device: 'gpu' is not allowed; allowed: cpu"]),
    "profile": ({"profile": "paper"}, ["overrides: must be a map of config keys other than 'profile'"]),
    "no map": ([1], ["overrides: must be a map"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_clear_line(name):
    overrides, parts = MISTAKES[name]
    message = error_of(overrides)
    assert all(part in message for part in parts), message


# --- values from a command line, where Snakemake hands on what stands in a map as text


def from_text(overrides):
    """The overrides as Snakemake reads them from a command line, then as they are used."""
    return config.load("smoke", yaml.load(json.dumps(overrides), yaml.BaseLoader), as_text=True)["overrides"]


def test_text_becomes_what_the_schema_wants():
    overrides = {
        "seed": 3,
        "statistics": {"level": 0.9},
        "testbeds": {
            "people": {
                "corpus": {"people": 20},  # the kind stands in the profile
                "training": {"lr": 1e-5, "epochs": 2, "clip": 1.0},
                "evaluation": {"recall_k": [1, 5]},
                "model": {"parallel_residual": True, "from": None},
                "removals": None,
                "designs": {"leave_group": None},
            },
            "digits_mlp": {"training": {"momentum": 0.5}},
            "mine": {"corpus": {"kind": "file", "path": "12", "text_column": "1e3"}},  # texts that look like numbers
        },
    }
    found = from_text(overrides)
    assert found == overrides and json.dumps(found) == json.dumps(overrides), "3 and not 3.0 or True"
    assert from_text(found) == found
    removed = config.load("smoke", found)
    assert config.data_dir(config.load("smoke", found, as_text=True)) == config.data_dir(removed)
    assert "leave_group" not in removed["testbeds"]["people"]["designs"]


def test_text_of_an_option_is_read_as_in_a_file():
    options = {"a": 3, "b": 0.1, "c": True, "d": None, "e": "none", "f": [1, "x"], "g": {"h": 2.5}, "i": ""}
    row = ROW | {"options": options, "tune": {"damping": [0.1, 3, "off the scale"]}, "tune_every": 2}
    found = from_text({"rows": [row], "claims": [], **people(removals=None)})["rows"]
    assert found == [row] and type(found[0]["options"]["a"]) is int


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("3", 3), ("3.0", 3), (3.0, 3), ("3e0", 3), ("+3", 3), ("3.5", 3.5), ("x", "x"), ("nan", "nan")],
)
def test_a_whole_number_is_read_where_an_integer_is_wanted(given, wanted):
    if isinstance(wanted, int):
        found = config.load("smoke", {"seed": given}, as_text=True)["seed"]
        assert found == wanted and type(found) is int
    else:
        with pytest.raises(ConfigError, match=rf"seed: {wanted!r} is not allowed; it must be of type integer$"):
            config.load("smoke", {"seed": given}, as_text=True)


def test_what_is_neither_text_nor_number_is_left_for_the_validator():
    for value in (datetime.date(2024, 1, 1), [3], {"a": "3"}, True):
        with pytest.raises(ConfigError, match="seed: .* is not allowed; it must be of type integer$"):
            config.load("smoke", {"seed": value}, as_text=True)


def test_without_a_command_line_text_stays_text():
    assert "that is text: write 3" in error_of({"seed": "3"})


ROW = {"id": "random", "method": "random", "notebook": "04_first_methods"}
TUNED = {"id": "bgo", "method": "bgo", "notebook": "10_bgo", "tune": {"step": [0.1]}}
CLAIM = {
    "id": "c",
    "paper": "BGO",
    "claim": "x",
    "notebook": "60_leaderboard",
    "testbed": "people",
    "metric": "lds_half",
    "row": "bm25",
    "against": "random",
    "direction": "greater",
    "kind": "difference",
}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"rows": [ROW, ROW]}, ["rows[1].id: 'random'", "unique on a testbed"]),
        ({"rows": [{**ROW, "testbeds": ["peple"]}]}, ["rows[0].testbeds: 'peple'", "did you mean 'people'"]),
        ({"rows": [{**ROW, "notebook": "first"}]}, ["rows[0].notebook: 'first'", "text that matches"]),
        ({"rows": [{**ROW, "metod": "x"}]}, ["rows[0].metod: unknown key", "did you mean 'method'"]),
        ({"rows": []}, ["rows: [] is not allowed", "not empty"]),
        ({"rows": [ROW, {**ROW, "id": "b", "tune_like": "random"}]}, ["rows[1].tune_like: 'random'", "a tune grid"]),
        ({"rows": [{**ROW, "tune_every": 2}]}, ["rows[0].tune_every: 2", "a tune grid of the row's own"]),
        (
            {"rows": [{**TUNED, "testbeds": ["people"]}, {**ROW, "tune_like": "bgo", "testbeds": ["authors"]}]},
            ["rows[1].tune_like: 'bgo'", "on the same testbeds"],
        ),
        (
            {"rows": [TUNED, {**TUNED, "id": "b", "tune_like": "bgo"}]},
            ["rows[1].tune_like: 'bgo'", "not of the row's own options"],
        ),
        (
            {"rows": [TUNED | {"tune_like": "b"}, {**TUNED, "id": "b", "tune": {"damping": [1]}, "tune_like": "bgo"}]},
            ["rows[0].tune_like: 'b'", "never choose"],
        ),
        (  # the same ids on two testbeds: it is the second pair that goes round in a circle
            {
                "rows": [
                    TUNED | {"testbeds": ["people"]},
                    TUNED | {"id": "b", "tune": {"damping": [1]}, "testbeds": ["people"], "tune_like": "bgo"},
                    TUNED | {"testbeds": ["authors"], "tune_like": "b"},
                    TUNED | {"id": "b", "tune": {"damping": [1]}, "testbeds": ["authors"], "tune_like": "bgo"},
                ]
            },
            ["rows[2].tune_like: 'b'", "never choose"],
        ),
        (  # a grandparent has chosen the option already
            {
                "rows": [
                    TUNED | {"id": "limit", "tune": {"damping": [1]}},
                    TUNED | {"tune_like": "limit"},
                    TUNED | {"id": "c", "tune": {"damping": [2]}, "tune_like": "bgo"},
                ]
            },
            ["rows[2].tune_like: 'bgo'", "not of the row's own options"],
        ),
        ({"rows": [{**ROW, "options": {"damping": "1e-1"}}]}, ["rows[0].options.damping: '1e-1'", "write 0.1)"]),
        ({"rows": [{**TUNED, "tune": {"step": [1, "2"]}}]}, ["rows[0].tune.step[1]: '2'", "write 2)"]),
        ({"rows": [{**ROW, "options": {"a": {"b": ["1e3"]}}}]}, ["rows[0].options.a.b[0]: '1e3'", "write 1000.0)"]),
        ({"claims": [{**CLAIM, "row": "bm52"}]}, ["claims[0].row: 'bm52'", "did you mean 'bm25'"]),
        ({"claims": [{**CLAIM, "paper": "BOG"}]}, ["claims[0].paper: 'BOG'", "did you mean 'BGO'"]),
        (
            {"claims": [{**CLAIM, "metric": "lds_leave_5"}]},
            ["claims[0].metric: 'lds_leave_5'", "no design leave_5"],
        ),
        ({"claims": [{**CLAIM, "testbed": "digits"}]}, ["claims[0].testbed: 'digits'", "people, authors"]),
        ({"claims": [{**CLAIM, "kind": "parity"}]}, ["claims[0].margin: 0.0", "greater than 0"]),
        ({"claims": [{**CLAIM, "against": ""}]}, ["claims[0].against: ''", "name a second row"]),
        ({"claims": [CLAIM, CLAIM]}, ["claims[0].id: 'c'", "unique"]),
        ({"claims": [{**CLAIM, "abstract": ""}]}, ["claims[0].abstract: ''"]),
        ({"claims": [{**CLAIM, "check": 1}]}, ["claims[0].check: 1"]),
        ({"claims": [{**CLAIM, "row": "every_other"}]}, ["claims[0].row: 'every_other'", "rows of this profile"]),
        ({"claims": [{**CLAIM, "against": "every_other", "metric": "mrr"}]}, ["claims[0].metric: 'mrr'", "on an LDS"]),
    ],
)
def test_references_between_sections(change, parts):
    message = error_of(change)
    assert all(part in message for part in parts), message


def test_numbers_at_their_limits():
    """What a bound says of the number itself, not only of those far beyond it."""

    def limited(longest=120, shortest=60, context=128, **rest):
        corpus = {"tokens_min": shortest, "tokens_max": longest}
        return {"testbeds": {"authors": {"corpus": corpus, "model": {"context": context}}}, **rest}

    found = config.load("smoke", limited(127, 127))["testbeds"]["authors"]
    assert found["corpus"]["tokens_max"] == found["model"]["context"] - 1, "one place is the opening token's"
    assert "authors.model.context: 120 is not allowed; it must exceed tokens_max (120)" in error_of(
        limited(context=120)
    )
    assert "authors.corpus.tokens_min: 121 is not allowed; it must be at most tokens_max (120)" in error_of(
        limited(shortest=121)
    )
    parity = CLAIM | {"kind": "parity", "direction": "parity"}
    assert config.load("smoke", {"claims": [parity | {"margin": 1e-9}]})["claims"][0]["margin"] == 1e-9
    assert "claims[0].margin: 0.0 is not allowed" in error_of({"claims": [parity | {"margin": 0.0}]})


def test_data_of_other_settings_lie_in_another_folder():
    """An edit of the profile below the same overrides; rows and claims change nothing that is built."""
    loaded = config.load("smoke", people(model={"width": 64}))
    known = config.data_dir(loaded)
    others = [{"seed": 9}, {"testbeds": {}}, {"overrides": {"seed": 9}}, {"profile": "mine"}]
    assert len({known, *(config.data_dir(loaded | other) for other in others)}) == 5
    assert config.data_dir(loaded | {"rows": [], "claims": []}) == known


def test_profile_files(tmp_path):
    assert "did you mean 'smoke'" in error_of(profile="smok")
    assert "no file" in error_of(profile="mine.yaml")
    mine = tmp_path / "mine.yaml"
    text = (config.PROFILES / "smoke.yaml").read_text().replace("rows: [gradient_dot, bgo_diagonal]", "rows: [random]")
    text = text.replace("more_k: {gradient_dot: [6]}, ", "") + f"rows: [{json.dumps(ROW)}]\n"
    mine.write_text(text)
    assert "differs from the file's name; write 'mine'" in error_of(profile=str(mine))
    mine.write_text(text.replace("profile: smoke\n", ""))
    assert config.data_dir(config.load(str(mine))) == config.ROOT / "data" / "mine"
    mine.write_text("seed: 0\nseed: 1\n" + text)
    assert "'seed' is given twice" in error_of(profile=str(mine))
    mine.write_text("a: [1")
    assert "mine.yaml: line" in error_of(profile=str(mine))
    mine.write_bytes(b"profile: \xff")
    assert "UTF-8" in error_of(profile=str(mine))
    mine.write_text("- 1")
    assert "must hold a map" in error_of(profile=str(mine))
    (tmp_path / "paper.yaml").write_text(text)
    assert "name of a built-in profile" in error_of(profile=str(tmp_path / "paper.yaml"))


def test_optional_rows_are_left_out_with_a_reason():
    rows = [
        ROW,
        {**ROW, "id": "extra", "requires": "no-such-package-here"},
        {**ROW, "id": "only", "testbeds": ["authors"]},
    ]
    loaded = config.load("smoke", {"rows": rows, "claims": [], **people(removals=None)})
    assert [row["id"] for row in config.rows(loaded, "people")] == ["random"]
    assert [row["id"] for row in config.rows(loaded, "authors", "04_first_methods")] == ["random", "only"]
    assert config.rows(loaded, notebook="10_other") == []
    assert "no-such-package-here is not installed" in config.skipped_rows(loaded)["extra"]


def test_a_chapter_is_compared_with_its_rows_its_claims_rows_and_the_baselines():
    settings = config.load("paper")
    found = config.compared_rows(settings, "people", "10_bgo")
    own = [row["id"] for row in config.rows(settings, "people", "10_bgo")]
    assert set(own) | {"gradient_dot", "random", "tfidf", "same_entity"} <= set(found)
    assert "trackstar" in found and "logra" not in found  # a claim names the first, nobody the second
    assert "source_3" not in found and len(found) == len(set(found))


# --- a profile on top of another


def on_paper(tmp_path, text):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: paper\n" + text)
    return str(mine)


def test_a_base_gives_what_is_not_stated(tmp_path):
    paper = config.load("paper")
    changed = "testbeds: {people: {training: {seeds: 7}, designs: {leave_5: {subsets: 9}}}}"
    mine = config.load(on_paper(tmp_path, changed))
    assert (mine["profile"], mine["base"]) == ("mine", "paper")
    assert mine["rows"] == paper["rows"] and mine["claims"] == paper["claims"]
    assert mine["testbeds"].pop("authors") == paper["testbeds"].pop("authors")
    people, theirs = mine["testbeds"]["people"], paper["testbeds"]["people"]
    assert people["training"] == theirs["training"] | {"seeds": 7}
    assert people["designs"] == theirs["designs"] | {"leave_5": theirs["designs"]["leave_5"] | {"subsets": 9}}


def test_rows_take_the_place_of_those_with_their_id(tmp_path):
    rows = [
        "{id: new, method: random, notebook: 04_first_methods}",
        "{id: logra_pca, method: logra, notebook: 22_trak_family, testbeds: [people], options: {rank: 7}}",
        "{id: logra_pca, method: logra, notebook: 22_trak_family, testbeds: [authors], options: {rank: 9}}",
    ]
    rows = "\n".join(f"  - {row}" for row in rows)
    claim = "id: one, paper: Baselines, notebook: 22_trak_family, testbed: people, metric: lds_half, row: logra_pca"
    claim += ", kind: value, direction: greater, margin: 0.0, claim: more"
    mine = config.load(on_paper(tmp_path, f"rows:\n{rows}\nclaims:\n  - {{{claim}}}"))
    paper = config.load("paper")
    ids = [row["id"] for row in paper["rows"]]
    found = [row["id"] for row in mine["rows"]]
    first = ids.index("logra_pca")
    assert found[first : first + 2] == ["logra_pca"] * 2 and found.count("logra_pca") == 2 and found[-1] == "new"
    assert [row["options"] for row in mine["rows"][first : first + 2]] == [{"rank": 7}, {"rank": 9}]
    assert [i for i in found if i not in ("logra_pca", "new")] == [i for i in ids if i != "logra_pca"]
    assert [claim["id"] for claim in mine["claims"]] == [*(claim["id"] for claim in paper["claims"]), "one"]


def test_a_base_is_a_profile_that_stands_alone(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: extended\n")
    assert "'extended' has a base itself" in error_of(profile=str(mine))
    for base in ("papr", "[paper]"):
        mine.write_text(f"base: {base}\n")
        message = error_of(profile=str(mine))
        assert "is unknown; allowed: extended" in message and "did you mean 'paper'" in message
    for part, text in (("rows", "rows: 3"), ("rows[", "rows: [3]"), ("claims", "claims: {a: 1}")):
        assert part in error_of(profile=on_paper(tmp_path, text))


def test_extended_judges_every_claim_of_the_paper():
    extended, paper = config.load("extended"), config.load("paper")
    assert extended["claims"] == paper["claims"]
    asked = {(row["id"], testbed) for row in paper["rows"] for testbed in row["testbeds"]}
    assert asked <= {(row["id"], testbed) for row in extended["rows"] for testbed in row["testbeds"]}
    claim = next(c for c in extended["claims"] if c["id"] == "bgo_trajectory_at_parity_on_equal_checkpoints")
    named = [row for row in extended["rows"] if row["id"] in (claim["row"], claim["against"])]
    assert [row["checkpoints"] for row in named] == [4, 4]


# --- the chapters' own files


@pytest.fixture
def chapters(tmp_path, monkeypatch):
    """A copy of the configuration whose chapters a test may change."""
    shutil.copytree(config.PROFILES, tmp_path / "config")
    monkeypatch.setattr(config_files, "PROFILES", tmp_path / "config")
    return tmp_path / "config" / "chapters"


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, (old, text.count(old))
    path.write_text(text.replace(old, new))


FIRST = "{id: bgo_none, ablation: true, method: bgo,"
BGO_MISTAKES = {
    "unknown key": ("figures:", "figurs: {}\nfigures:", ["figurs: unknown key; allowed: abstract, ", "mean 'figures'"]),
    "figure": ("figures:", "figures:\n  10 a.png: x", ["figures: '10 a.png' is not allowed", "text that matches"]),
    "no caption": ("figures:", "figures:\n  10_a.png: ''", ["figures.10_a.png: '' is not allowed", "is not empty"]),
    "row key": (FIRST, FIRST + " metod: x,", ["rows[0].metod: unknown key", "did you mean 'method'"]),
    "row's notebook": (FIRST, FIRST + " notebook: 10_bgo,", ["rows[0].notebook: unknown key"]),
    "no method": (FIRST, FIRST.replace("method: bgo,", ""), ["rows[0].method: missing; A name in tda.attribution"]),
    "bare id": (FIRST, "x\n  - {id: y, method: bgo,", ["rows[0]: 'x' is not allowed; it must be of type object"]),
    "method": (FIRST, FIRST.replace("bgo,", "bgoo,"), ["rows[0].method: 'bgoo' is not allowed", "mean 'bgo'?"]),
    "claim's row": ("mrr, row: bm25, ", "mrr, row: bm52, ", ["claims[23].row: 'bm52'", "did you mean 'bm25'"]),
    "claim's kind": ("mrr, row: bm25, ", "mrr, row: bm25, kind: value, ", ["claims[23].kind: unknown key"]),
    "no paper": ("paper: BGO", "", ["paper: missing"]),
    "paper": ("paper: BGO", "paper: BOG", ["paper: 'BOG' is not allowed", "did you mean 'BGO'"]),
    "rows on nothing": ("testbeds: [people]", "testbeds: []", ["rows: not allowed with testbeds: []"]),
    "section": ("smoke:", "smok:", ["smok: unknown key", "did you mean 'smoke'"]),
    "profile's key": ("smoke:", "smoke:\n  figures: {}", ["smoke.figures: unknown key; allowed: claims, rows"]),
    "no such row": ("{id: bgo_none, tune: {}}", "bgo_non", ["smoke.rows[0].id: 'bgo_non'", "mean 'bgo_none'"]),
    "twice": ("{id: bgo_none, tune: {}}", "bgo_full", ["smoke.rows[5].id: 'bgo_full'", "listed twice"]),
    "changed option": ("tune: {step: [0.1, 0.5]}", "tune: {stp: [0.1]}", ["smoke.rows[1].tune.stp: 0.1", "'step'"]),
    "not text": ("paper: BGO", "paper: BGO\npaper: BGO", ["line 1: key 'paper' is given twice"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BGO_MISTAKES)
def test_a_mistake_in_a_chapters_file_names_the_file_and_the_key(chapters, name):
    old, new, parts = BGO_MISTAKES[name]
    edit(chapters / "10_bgo.yaml", old, new)
    message = error_of(profile="paper" if "smoke" not in parts[0] else "smoke")
    assert message.startswith(f"chapters/10_bgo.yaml: {parts[0]}") and all(part in message for part in parts), message


def test_what_a_changed_row_keeps_is_named_where_it_stands(chapters):
    edit(chapters / "10_bgo.yaml", FIRST, FIRST.replace("bgo,", "bgoo,"))
    assert error_of().startswith("chapters/10_bgo.yaml: rows[0].method: 'bgoo'"), "smoke changes only its tune grid"
    wrong = {"rows": [ROW | {"method": "bgoo"}], "claims": [], **people(removals=None)}
    edit(chapters / "10_bgo.yaml", "method: bgoo,", "method: bgo,")
    assert error_of(wrong).startswith("smoke.yaml with overrides: rows[0].method: 'bgoo'"), "not the chapter's"


def test_a_chapter_has_a_number_and_a_notebook_of_its_own(chapters):
    (chapters / "10_other.yaml").write_text("figures: {}\n")
    assert error_of().startswith("chapters/10_other.yaml: number 10 is that of 10_bgo.yaml")
    (chapters / "10_other.yaml").rename(chapters / "99_other.yaml")
    assert error_of().startswith("chapters/99_other.yaml: notebooks/99_other.ipynb does not exist")


def test_a_chapter_on_no_testbed_has_no_figure_for_each(chapters):
    edit(chapters / "63_conformance.yaml", "63_conformance.png", "63_conformance_{testbed}.png")
    message = error_of()
    assert message.startswith("chapters/63_conformance.yaml: figures: '63_conformance_{testbed}.png' is not allowed")


def test_a_figure_may_be_of_one_testbed(chapters):
    """On that testbed only; a name that ends with none of the chapter's testbeds would be made by several jobs."""
    edit(chapters / "42_nda.yaml", "42_rows_{testbed}.png", "42_rows_sprites.png")
    on = {name: config.declared_figures("42_nda", name) for name in ("sprites", "digits_diffusion")}
    assert {"42_rows_sprites.png", "42_forms_sprites.png"} <= set(on["sprites"])
    assert "42_forms_digits_diffusion.png" in on["digits_diffusion"]
    assert not any("rows" in figure or "sprites" in figure for figure in on["digits_diffusion"])
    edit(chapters / "42_nda.yaml", "42_rows_sprites.png", "42_rows_people.png")
    wanted = "chapters/42_nda.yaml: figures: '42_rows_people.png' is not allowed; a name ends with _{testbed} or "
    assert error_of().startswith(wanted + "_sprites or _digits_diffusion")


def test_chapters_stand_in_tables_in_the_order_of_their_places():
    paper = config.load("paper")
    rows = list(dict.fromkeys(row["notebook"][:2] for row in paper["rows"]))
    assert rows[:12] == ["04", "10", "11", "22", "21", "20", "23", "25", "12", "13", "14", "15"]
    assert rows[12:] == ["40", "41", "42", "43", "44"]
    claims = list(dict.fromkeys(claim["notebook"][:2] for claim in paper["claims"]))
    first = ["04", "10", "11", "22", "21", "24", "20", "23", "25", "32", "30", "12", "13"]
    assert claims == [*first, *rows[-7:], "50", "51", "52", "53"]


def test_a_chapters_file_says_once_what_its_rows_and_claims_share():
    paper = config.load("paper")
    rows = {(row["id"], row["notebook"]): row for row in paper["rows"]}
    assert rows["bgo_none", "10_bgo"]["testbeds"] == ["people"], "the chapter's"
    assert rows["trak_loss", "22_trak_family"]["testbeds"] == ["people"], "its own: the chapter has two"
    assert rows["random", "04_first_methods"]["testbeds"] == [], "all: the chapter names none"
    claims = {claim["id"]: claim for claim in paper["claims"]}
    shared = ("paper", "notebook", "testbed", "kind", "margin")
    found = {name: [claims[name][key] for key in shared] for name in claims}
    assert found["bgo_removal_grows"] == ["BGO", "10_bgo", "people", "value", 0.0]
    assert found["bgo_beats_bm25_half"] == ["BGO", "10_bgo", "people", "difference", 0.0]
    assert found["if_cg_at_parity_with_exact"] == ["Revisiting IF", "20_influence", "digits_mlp", "parity", 0.02]
    assert found["newton_ratio_least"] == ["Newton step", "30_newton_vs_influence", None, "value", 0.5]
    said = {name: (claims[name]["abstract"], claims[name]["check"]) for name in claims}
    assert said["bgo_beats_bm25_half"] == ("outperforms prior methods on influence metrics", False), "the chapter's"
    assert said["bgo_full_at_parity_with_influence"] == ("our question", True), "its own"
    assert said["gradient_dot_beats_random_half"] == ("our question", False), "nobody says otherwise"


def test_a_section_lists_what_its_profile_has(chapters):
    edit(chapters / "11_bgo_style.yaml", "smoke:", "large: {}\nsmoke:")
    loaded = {name: [row for row in config.load(name)["rows"] if row["notebook"] < "40"] for name in ("smoke", "paper")}
    smoke, paper = ({row["id"]: row for row in rows} for rows in loaded.values())
    assert "trak_loss" in paper and "trak_loss" not in smoke, "not listed"
    assert smoke["unroll"] == paper["unroll"], "listed by its id alone"
    assert paper["bgo_full"]["tune"] and paper["bgo_full"]["tune_like"] and paper["bgo_full"]["tune_every"] == 2
    changed = smoke["bgo_diagonal_ascent"]
    assert (changed["tune_like"], changed["tune"], changed["tune_every"]) == ("bgo_diagonal", {}, 1), "one choice"
    assert changed["options"] == paper["bgo_diagonal_ascent"]["options"] and changed["ablation"]
    claims = {claim["id"]: claim for claim in config.load("smoke")["claims"]}
    assert claims["bgo_beats_trackstar"]["kind"] == "difference", "whole, and not the paper's"
    theirs = {claim["id"]: claim for claim in config.load("paper")["claims"]}["ladder_heavy_damping_levels"]
    assert claims["ladder_heavy_damping_levels"] == theirs | {"claim": claims["ladder_heavy_damping_levels"]["claim"]}


def test_with_a_base_a_section_changes_its_own_rows_only():
    """Chapters 04, 22 and 23 have a row trak each; extended changes that of 22."""
    rows = {name: [row for row in config.load(name)["rows"] if row["id"] == "trak"] for name in ("paper", "extended")}
    assert rows["extended"][0] == rows["paper"][0] and rows["paper"][0]["notebook"] == "04_first_methods"
    assert [row["options"] for row in rows["extended"][1:]] == [{"dimension": 16384}, {"dimension": 4096}]


def test_testbeds_of_a_chapter_follow_from_its_rows_its_findings_or_its_file():
    paper, large = config.load("paper"), config.load("large")
    assert config.chapter_testbeds(paper, "13_stride_at_work") == ["people", "authors"], "rows on one, findings on both"
    assert config.chapter_testbeds(paper, "24_mislabels") == ["digits_mlp"], "findings alone"
    assert config.chapter_testbeds(paper, "30_newton_vs_influence") == [None], "findings of no testbed"
    assert config.chapter_testbeds(large, "30_newton_vs_influence") == [], "which this profile does not have"
    assert config.chapter_testbeds(paper, "62_cost_of_curvature") == ["people"], "declared"
    assert config.chapter_testbeds(large, "62_cost_of_curvature") == ["hub_text"], "declared for the profile"
    assert config.chapter_testbeds(large, "63_conformance") == [None], "declared to be none"
    assert config.chapter_testbeds(paper, "02_training") == [], "a rule of its own"


def test_declared_figures_of_a_chapter():
    assert config.declared_figures("04_first_methods") == ["04_first_methods_{testbed}.png"]
    assert config.declared_figures("04_first_methods", "people") == ["04_first_methods_people.png"]
    assert config.declared_figures("63_conformance") == ["63_conformance.png", "tables/conformance.csv"]
    assert config.declared_figures("00_quickstart") == []


def test_a_notebook_refuses_a_row_whose_method_is_not_there():
    wrong = {"rows": [ROW | {"method": "bgoo"}], "claims": [], **people(removals=None)}
    with pytest.raises(ConfigError, match=r"^smoke.yaml with overrides: rows\[0\].method: 'bgoo' is not allowed; "):
        Chapter("04_first_methods", overrides=wrong)
