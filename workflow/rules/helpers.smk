# Functions that rules call for their parameters, inputs and outputs.


def as_given(text):
    """A parameter for a rule; Snakemake would take {word} in a plain text for a wildcard."""
    return lambda wildcards: text


def received(**more):
    """The JSON that a notebook receives: profile, overrides and what the stage adds."""
    return json.dumps({"profile": PROFILE, "overrides": OVERRIDES, **more}, sort_keys=True)


def parameters(**more):
    return as_given(received(**more))


def received_by(*names):
    """The same for a rule with wildcards, which are parameters of the notebook."""
    return lambda wildcards: received(**{name: wildcards[name] for name in names})


def section(*keys, testbed=None):
    """Hash of the named config sections (of one testbed, or of the whole config): a rule reruns when it changes."""
    tree = CONFIG["testbeds"][testbed] if testbed else CONFIG
    return key_of({key: tree[key] for key in keys} | {"seed": CONFIG["seed"], "device": CONFIG["device"]})


def notebook(name):
    return f"notebooks/{name}.ipynb"


def modules(name, methods=()):
    """Files of tda that a notebook imports, directly or not, and those of methods that it calls by name or in its rows.

    Snakemake compares their contents, so an edit reruns the stages that use the file and touching it does not.
    """
    if not os.path.exists(notebook(name)):
        sys.exit(f"Error in the configuration: {notebook(name)} does not exist; rows[].notebook must name a chapter")
    files = {path for method in methods for path in method_files(method)}
    return sorted({os.path.relpath(path, ROOT) for path in modules_used(notebook(name), *files)} | files)


def method_files(method):
    """Files of tda/attribution that register a method."""
    files = sorted(Path("tda/attribution").glob("*.py"))
    declared = re.compile(rf'@method\(\s*"{method}"')
    own = [path for path in files if declared.search(path.read_text(encoding="utf-8"))]
    if not own:
        sys.exit(f"Error in the configuration: rows[].method: {method!r} is registered by no module of tda/attribution")
    return [str(path) for path in own]


def methods_of(name, testbed):
    """Methods that a chapter calls: those of its rows on a testbed, and those that its file names."""
    return [row["method"] for row in rows_of(testbed, name)] + chapters().get(name, {}).get("methods", [])


def packages(name):
    """Installed versions of the optional packages that a chapter compares with; missing ones have none."""
    if "packages" not in chapters().get(name, {}):
        return {}
    pinned = re.findall(r"^([\w-]+)==", Path("tests/requirements-oracles.txt").read_text(encoding="utf-8"), re.MULTILINE)
    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    return {name: found.get(name) for name in pinned}


def logs(name):
    """Log files of a job: what it printed, and the executed copy of its notebook (kept when the job fails)."""
    return {"text": f"{LOGS}/{name}.txt", "notebook": f"{LOGS}/{name}.ipynb"}


def figure_paths(name, testbed=None):
    """Paths of a notebook's figures; without a testbed the {testbed} in them stays, as Snakemake's wildcard."""
    return [f"{FIGURES}/{file}" for file in configuration.declared_figures(name, testbed)]


def figures(name, testbed=None):
    """A notebook's figures as outputs, in the report above the captions in the chapter's file."""
    captions = chapters().get(name, {}).get("figures", {}).items()
    files = [caption_file(figure, text) for figure, text in captions]
    return [shown(path, file, name, testbed or "{testbed}") for path, file in zip(figure_paths(name, testbed), files)]


def shown(path, caption, category, testbed=""):
    """An output that the report shows in a row of its own: its file, and the testbed if the file names it."""
    labels = {"file": os.path.relpath(path, FIGURES)} | ({"testbed": testbed} if f"_{testbed}." in path else {})
    return report(path, caption=caption, category=category, labels=labels)


def caption_file(figure, text):
    """The caption of a figure as a file, which is how Snakemake's report takes it: a template, so braces are escaped."""
    path = Path(DATA, "captions", Path(figure).name.replace("_{testbed}", "") + ".rst").absolute()
    content = f"{{% raw %}}{text}{{% endraw %}}\n"
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        with atomic(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return str(path)


def all_figures():
    """Every figure of the profile, in the order of the notebooks."""
    places = [(name, testbed) for name, testbeds in sorted((STAGES | CHAPTERS).items()) for testbed in testbeds]
    return [path for name, testbed in places for path in figure_paths(name, testbed)]


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


def measured_on(testbed, name):
    """The banks of a testbed, and score files of other chapters that this one reads (baselines, and rows that its claims
    or its file name), for a chapter that has rows or claims there, or reads rows.
    """
    reads = chapters().get(name, {}).get("reads")
    if not testbed or not (rows_of(testbed, name) or configuration.claims_of(CONFIG, testbed, name) or reads):
        return []
    wanted = configuration.compared_rows(CONFIG, testbed, name)
    others = [row for row in rows_of(testbed) if row["id"] in wanted and row["notebook"] != name]
    beside = [other for other in chapters().get(name, {}).get("beside", []) if other in TESTBEDS]
    return banks(testbed) + scores(testbed, others) + [path for other in beside for path in banks(other)]


def source_files():
    """Committed text, and the user's own files, that the corpora are made from."""
    kinds = [testbed["corpus"] for testbed in CONFIG["testbeds"].values()]
    paths = [user_file(name) for name in TESTBEDS if CONFIG["testbeds"][name]["corpus"]["kind"] == "file"]
    files = {"authors": "data/sources/index.json", "people": "data/sources/people.yaml"}
    return paths + [file for kind, file in files.items() if any(part["kind"] == kind for part in kinds)]


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


def removal_scores(testbed):
    return scores(testbed, configuration.removal_rows(CONFIG, testbed))


JOBS = {}  # rule -> what it is made of


def stage(rule, name, made, inputs, parameters, priority=0, log=None, methods=(), **settings):
    """A rule that runs notebook ``name``; it also runs again when its code or one of ``settings`` changes."""
    JOBS[rule] = {
        "inputs": {"notebook": notebook(name), "modules": modules(name, methods), **inputs},
        "made": made,
        "params": {"parameters": parameters, **settings},
        "priority": priority,
        "log": log or name,
    }
