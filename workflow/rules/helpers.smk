# Functions that rules call for their parameters, inputs and outputs.


def as_given(text):
    """A parameter for a rule; Snakemake would take {word} in a plain text for a wildcard."""
    return lambda wildcards: text


def received(**more):
    """The JSON that a notebook receives: profile, overrides and what the stage adds."""
    return json.dumps({"profile": PROFILE, "overrides": OVERRIDES, **more}, sort_keys=True)


def parameters(**more):
    return as_given(received(**more))


def section(*keys, testbed=None):
    """Hash of the named config sections (of one testbed, or of the whole config): a rule reruns when it changes."""
    tree = CONFIG["testbeds"][testbed] if testbed else CONFIG
    return key_of({key: tree[key] for key in keys} | {"seed": CONFIG["seed"], "device": CONFIG["device"]})


def notebook(name):
    return f"notebooks/{name}.ipynb"


def modules(name, rows=()):
    """Files of tda that a notebook imports, directly or not, and those of the methods of its rows.

    Snakemake compares their contents, so an edit reruns the stages that use the file and touching it does not.
    """
    if not os.path.exists(notebook(name)):
        sys.exit(f"Error in the configuration: {notebook(name)} does not exist; rows[].notebook must name a chapter")
    files = {path for row in rows for path in method_files(row["method"])}
    return sorted({os.path.relpath(path, ROOT) for path in modules_used(notebook(name), *files)} | files)


def method_files(method):
    """Files of tda/attribution that register a method."""
    files = sorted(Path("tda/attribution").glob("*.py"))
    declared = re.compile(rf'@method\(\s*"{method}"')
    own = [path for path in files if declared.search(path.read_text(encoding="utf-8"))]
    if not own:
        sys.exit(f"Error in the configuration: rows[].method: {method!r} is registered by no module of tda/attribution")
    return [str(path) for path in own]


def oracles():
    """Installed versions of the optional packages: chapters 62 and 63 rerun when one comes, goes or changes."""
    pinned = re.findall(r"^([\w-]+)==", Path("tests/requirements-oracles.txt").read_text(encoding="utf-8"), re.MULTILINE)
    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    return {name: found.get(name) for name in pinned}


def logs(name):
    """Log files of a job: what it printed, and the executed copy of its notebook (kept when the job fails)."""
    return {"text": f"{LOGS}/{name}.txt", "notebook": f"{LOGS}/{name}.ipynb"}


def figure_paths(name, testbed=None):
    """Paths of a notebook's figures; without a testbed the {testbed} in them stays, as Snakemake's wildcard."""
    names = [f"{FIGURES}/{file}" for file in FIGURE_NAMES.get(name, [])]
    return [path.replace("{testbed}", testbed) for path in names] if testbed else names


def figures(name, testbed=None):
    """A notebook's figures as outputs, in the report."""
    return shown(figure_paths(name, testbed), name, testbed or "{testbed}")


def shown(paths, category, testbed=""):
    """Outputs that the report shows, each in a row of its own and above a caption, a file of workflow/report."""

    def one(path):
        text = f"../report/{caption(path, testbed)}.rst"
        return report(path, caption=text, category=category, labels=labels(path, testbed))

    return [one(path) for path in paths]


def caption(path, testbed):
    """A result's name without its testbed and suffix: 10_bgo for 10_bgo_people.png, so that testbeds share a caption."""
    return Path(path).stem.removesuffix(f"_{testbed}")


def labels(path, testbed):
    """What tells a result from every other: its file, and the testbed if the file names it."""
    return {"file": os.path.relpath(path, FIGURES)} | ({"testbed": testbed} if f"_{testbed}." in path else {})


def all_figures():
    """Every figure of the profile, in the order of the notebooks."""
    with_designs = [name for name in TESTBEDS if CONFIG["testbeds"][name]["designs"]]
    stages = {"02_training": TESTBEDS, "03_retraining_bank": with_designs, "05_removal": REMOVAL_TESTBEDS} | CHAPTERS
    stages |= {"62_cost_of_curvature": COST_TESTBEDS}
    paths = figure_paths("01_corpora") + figure_paths("60_leaderboard") + figure_paths("63_conformance")
    paths += [path for name in WITHOUT_TESTBED for path in figure_paths(name)]
    for name, testbeds in sorted(stages.items()):
        paths += [path for testbed in testbeds for path in figure_paths(name, testbed)]
    return paths


def corpus(testbed):
    return f"{DATA}/{testbed}/corpus/record.json"


def model(testbed):
    return f"{DATA}/{testbed}/model/record.json"


def banks(testbed):
    return [f"{DATA}/{testbed}/bank_{design}.npz" for design in CONFIG["testbeds"][testbed]["designs"]]


def scores(testbed, rows):
    return [f"{DATA}/{testbed}/scores/{row['id']}.npz" for row in rows]


def metrics(testbed, rows):
    return [f"{DATA}/{testbed}/metrics/{row['id']}.csv" for row in rows]


def records(paths):
    return [f"{path}.json" for path in paths]


def rows_of(testbed, name=None):
    return configuration.rows(CONFIG, testbed, name)


def references(testbed, name):
    """Score files of other chapters that a chapter reads: baselines, and rows that its claims name."""
    wanted = configuration.compared_rows(CONFIG, testbed, name)
    return scores(testbed, [row for row in rows_of(testbed) if row["id"] in wanted and row["notebook"] != name])


def source_files():
    """Committed text, and the user's own files, that the corpora are made from."""
    kinds = [testbed["corpus"] for testbed in CONFIG["testbeds"].values()]
    paths = [user_file(name) for name in TESTBEDS if CONFIG["testbeds"][name]["corpus"]["kind"] == "file"]
    return paths + (["data/sources/index.json"] if any(part["kind"] == "authors" for part in kinds) else [])


def user_file(testbed):
    """The path of a user's corpus, which must be there and hold no braces: Snakemake takes {word} for a wildcard."""
    path = os.path.normpath(os.path.expanduser(CONFIG["testbeds"][testbed]["corpus"]["path"]))
    if set(path) & set("{}"):
        problem = "is not allowed; Snakemake reads braces as wildcards: rename the file or folder"
    elif not os.path.exists(path):
        problem = f"does not exist; give the path of a .jsonl or .parquet file, absolute or relative to {ROOT}"
    else:
        return path
    sys.exit(f"Error in the configuration: testbeds.{testbed}.corpus.path: {path!r} {problem}")


def training_parameters(wildcards):
    return received(testbed=wildcards.testbed)


def training_config(wildcards):
    return section("model", "training", "queries", testbed=wildcards.testbed)


def bank_parameters(wildcards):
    return received(testbed=wildcards.testbed, design=wildcards.design, shard=wildcards.shard)


def bank_config(wildcards):
    return key_of(CONFIG["testbeds"][wildcards.testbed]["designs"][wildcards.design])


def bank_parts(testbed):
    """What the merge of a testbed starts from: markers of all shards, or the shipped files."""
    designs = CONFIG["testbeds"][testbed]["designs"]
    if CONFIG["bank"] == "shipped":
        paths = [f"data/banks/{testbed}_{design}.npz" for design in designs]
        paths += records(paths) + ["data/banks/index.json"]
        for path in paths:
            if not os.path.exists(path):
                sys.exit(f"Error in the configuration: bank: 'shipped' needs {path}, which does not exist; use bank=rebuild")
        return paths
    return [
        f"{DATA}/{testbed}/bank_{name}.parts/shard{shard}.json"
        for name, design in designs.items()
        for shard in range(design["shards"])
    ]


def removal_parameters(wildcards):
    return received(testbed=wildcards.testbed, shard=wildcards.shard)


def removal_scores(wildcards):
    return scores(wildcards.testbed, configuration.removal_rows(CONFIG, wildcards.testbed))


def removal_config(wildcards):
    return section("removals", testbed=wildcards.testbed)


def other_figures():
    """Figures of the other notebooks: the manifest lists them, so they come first."""
    return [path for path in all_figures() if path not in figure_paths("60_leaderboard")]
