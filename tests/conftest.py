"""Shared fixtures: a testbed of ten people that trains in about a second, and the repository after the smoke workflow.

Each is built once, in a temporary folder.
"""

import copy
import os
import shutil
import subprocess
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from tda import config, lm, models
from tda.task import use_threads
from tda.testbeds import Testbed

sys.path.append(str(config.ROOT / "workflow" / "scripts"))  # the runner, and what banks are shipped with

CORPUS = {
    "kind": "people", "people": 10, "docs_min": 6, "docs_max": 8, "attributes": 3, "values": 6, "wordings": 5,
    "facts_per_document": 2, "exact_copies": 2, "one_word_edits": 2, "paraphrases": 2,
}  # fmt: skip
TINY = {
    "corpus": CORPUS,
    "model": {"layers": 1, "width": 32, "heads": 2, "context": 48},
    "training": {"seeds": 1, "epochs": 12, "batch": 8, "lr": 0.01, "checkpoints": 3},
    "queries": {"held_out": 12, "generated": 4},
    "designs": {
        "half": {"subsets": 3, "seeds": 2, "fraction": 0.5, "shards": 3},
        "leave_group": {"groups": 6, "seeds": 2, "shards": 1},
    },
    "removals": {"queries": 2, "k": 3, "seeds": 2, "controls": 2, "rows": ["gradient_dot"], "shards": 2},
}


def make_testbed(folder, changes=None, **top):
    """The tiny testbed in ``folder``; ``changes`` maps a section to changed keys, ``top`` holds top-level keys."""
    settings = copy.deepcopy(TINY)
    for section, keys in (changes or {}).items():
        settings[section] = {**settings[section], **keys}
    loaded = config.load("smoke", {"testbeds": {"people": settings}, **top})
    return Testbed("people", loaded, loaded["testbeds"]["people"], folder)


def join(testbed, examples, texts, entity="", targets=None):
    """``examples`` (documents) with further texts appended, encoded together."""
    context = testbed.settings["model"]["context"]
    both = list(examples["text"]) + list(texts)
    encoded = lm.encode(testbed.tokenizer, both, context)
    if targets is not None:
        only = lm.encode(testbed.tokenizer, both, context, list(examples["text"]) + list(targets))
        encoded["labels"] = only["labels"]
    return encoded | {"entity": list(examples["entity"]) + [entity] * len(texts)}


def rounding(values, times=16):
    """How far two float32 evaluations of ``values``, or of differences or means of them, may lie apart.

    ``values`` are logits, or losses of single tokens, which have the size of logits. The processor and the shape of the
    batch decide in which order they are summed: a few roundings a layer, ``times`` in all, each 2^-24 of the largest.
    """
    return times * 2.0**-24 * float(np.abs(np.asarray(values)).max())


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Bit-equal results need a fixed thread count; the same call as in every entry point of the package."""
    use_threads()
    yield
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A trained tiny testbed. Read-only: tests that write take ``own``."""
    testbed = make_testbed(tmp_path_factory.mktemp("tiny") / "people")
    models.train_base(testbed)
    return testbed


@pytest.fixture(scope="session")
def task(tiny):
    return models.load_task(tiny)


@pytest.fixture(scope="session")
def queries(tiny):
    return models.query_examples(tiny)


@pytest.fixture
def own(tiny, tmp_path):
    """A copy of the trained tiny testbed that a test may write to or damage."""
    shutil.copytree(tiny.folder, tmp_path / "people")
    return make_testbed(tmp_path / "people")


def bytes_of(folder):
    """Relative path -> content of every file of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(one, other):
    """Equal to the bit, for dicts of tensors."""
    return set(one) == set(other) and all(np.array_equal(one[k].numpy(), other[k].numpy()) for k in one)


def pytest_collection_modifyitems(items):
    """What reads the finished copy comes first, as the smoke run takes longest."""
    items.sort(key=lambda item: "copy" not in item.fixturenames)


def pytest_xdist_make_scheduler(config, log):
    """Two processes share the tests (`make test`): those of a file stay together, and one of the two makes the copy."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = nodeid.split("::")[0]
            return "copy" if name.endswith(("test_smoke_workflow.py", "test_exercises.py")) else name

    return Files(config, log)


TAKEN = ("tda", "notebooks", "workflow", "profiles", "Snakefile", "environment.yml", "pyproject.toml",
         "requirements.lock", "requirements.in", "tests/requirements-oracles.txt", "tests/exercises", "README.md",
         "data/sources", "data/banks")  # fmt: skip
UNUSED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.egg-info")


@pytest.fixture(scope="session", name="copy")
def finished_copy(tmp_path_factory):
    """The repository as a fresh clone would hold it, with the smoke profile run once on two cores. To be left as it is:
    a test that runs chapters in it takes a copy of its own.
    """
    root = tmp_path_factory.mktemp("clone")
    for name in TAKEN:
        source = config.ROOT / name
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            (root / name).symlink_to(os.readlink(source))
        elif source.is_dir():
            shutil.copytree(source, root / name, ignore=UNUSED)
        elif source.exists():
            shutil.copy(source, root / name)
    done = snakemake(root, "--cores", "2")
    logs = "\n".join(f"--- {p.name}\n{p.read_text()[-1500:]}" for p in sorted((root / "data/smoke/logs").glob("*.txt")))
    assert done.returncode == 0, f"{done.stderr[-3000:]}\n{logs if 'Error in rule' in done.stderr else ''}"
    return root


def python(root, *command, timeout=2400):
    """This interpreter in a copy of the repository, whose own ``tda`` comes first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout, env=environment)


def snakemake(root, *options, config="profile=smoke"):
    """This interpreter's Snakemake on a copy."""
    return python(root, "-m", "snakemake", *options, "--config", *config.split())


def data(root):
    return root / "data" / "smoke"
