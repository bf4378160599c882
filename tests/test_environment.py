"""Environment files agree with each other, with the imports in the code and with what is installed."""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tda.config import ROOT

MODULE_NAMES = {"yaml": "pyyaml", "sklearn": "scikit-learn", "jupyter_client": "jupyter-client",
                "curvlinops": "curvlinops-for-pytorch", "trak": "traker", "xdist": "pytest-xdist"}  # fmt: skip
OWN = ("tests/**/*.py", "workflow/scripts/*.py")
OURS = {"tda", "exercises"} | {path.stem for pattern in OWN for path in ROOT.glob(pattern)}


def lines_of(name):
    return [line for line in (ROOT / name).read_text().splitlines() if line.strip() and not line.startswith("#")]


ASKED = {
    canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines_of("requirements.in"))
}
ORACLES = {canonicalize_name(line.split("==")[0]) for line in lines_of("tests/requirements-oracles.txt")}
LOCK = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines_of("requirements.lock")}
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_no_job_builds_the_parser_of_web_addresses():
    """A second at the start of every process, through an optional import of jsonschema."""
    code = "import tda.config, sys; print(sorted({'lark', 'jsonschema'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['jsonschema']"


def test_lock_is_exact_and_sorted():
    lines = lines_of("requirements.lock")
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines), (
        "no local suffix, no ranges"
    )
    assert lines == sorted(lines, key=str.casefold) or lines == sorted(lines, key=str.upper)
    assert len(LOCK) == len(lines)
    assert "torch==2.13.0" in lines
    assert not {"torchvision", "torchaudio", "tda", "pip"} & set(LOCK)


def test_lock_satisfies_what_is_asked_for():
    for name, requirement in ASKED.items():
        assert requirement.specifier.contains(LOCK[name]), requirement


def test_installed_versions_equal_the_lock():
    wrong = {name: importlib.metadata.version(name) for name in LOCK}
    wrong = {name: found for name, found in wrong.items() if found.split("+")[0] != LOCK[name]}
    assert not wrong, "run make lock, or remove .venv and run make again"


def test_lock_is_closed():
    """Every package that a locked one needs is locked; torch's own are left out, they differ between its
    builds.
    """
    for name in LOCK:
        for text in (importlib.metadata.requires(name) or []) if name != "torch" else []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in LOCK | {"pip": "", "setuptools": ""}, f"{name} needs {need}"


def test_oracles_are_pinned_and_apart_from_the_environment():
    lines = lines_of("tests/requirements-oracles.txt")
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert {"kronfluence", "curvlinops-for-pytorch", "traker", "captum", "dattri"} <= ORACLES
    assert not ORACLES & (set(LOCK) | {"torch", "torchvision", "torchaudio"})


def test_make_installs_the_oracles_and_keeps_them_out_of_the_lock():
    makefile = (ROOT / "Makefile").read_text()
    assert "$(STAMP): requirements.lock pyproject.toml $(ORACLES)" in makefile
    assert "$(PIP) install --quiet --no-deps --requirement $(ORACLES)" in makefile
    chosen = re.search(r"\$\$\(sed -n '([^']*)' \$\(ORACLES\)\)", makefile)[1]
    command = ["sed", "-n", chosen, "tests/requirements-oracles.txt"]
    excluded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(excluded[::2]) == {"--exclude"} and {canonicalize_name(name) for name in excluded[1::2]} == ORACLES
    for name in ("environment.yml", "README.md"):
        assert "pip install --no-deps -r tests/requirements-oracles.txt" in (ROOT / name).read_text()


def test_torch_and_transformers_are_whole_beside_the_oracles():
    import torch
    from transformers import PreTrainedModel

    assert torch.__version__.split("+")[0] == "2.13.0" and PreTrainedModel is not None


@pytest.mark.parametrize("name", ["torchvision", "torchaudio"])
def test_absent_packages(name):
    """Built for another torch, they fail on import, and transformers with them."""
    assert importlib.util.find_spec(name) is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_conda_front_door():
    assert set(ENVIRONMENT) == {"name", "channels", "dependencies"}
    assert ENVIRONMENT["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = ENVIRONMENT["dependencies"]
    assert [re.match(r"[a-z0-9_-]+", item)[0] for item in conda] == ["python", "pip", "graphviz"]
    assert all(re.fullmatch(r"[a-z0-9_-]+([<>=!]=?[0-9.*]+(,[<>=!]=?[0-9.*]+)*)?", item) for item in conda)
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_python_version_is_stated_once():
    assert "python=3.11" in ENVIRONMENT["dependencies"]
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.12"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert "PYTHON ?= python3.11" in (ROOT / "Makefile").read_text()
    assert sys.version_info[:2] == (3, 11)
    assert "dependencies" not in PROJECT["project"], "pins live in the lock; pip must not resolve again"


def imports(source, name):
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def sources():
    for folder in ("tda", "tests", "workflow"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for path in [ROOT / "Snakefile", *sorted((ROOT / "workflow").rglob("*.smk"))]:
        yield (
            path,
            "\n".join(line for line in path.read_text().splitlines() if re.match(r"(import|from) \w", line)),
        )


def test_every_import_is_asked_for():
    unknown = {
        f"{path.relative_to(ROOT)}: {module}"
        for path, source in sources()
        for module in imports(source, str(path))
        if module not in sys.stdlib_module_names | OURS
        and canonicalize_name(MODULE_NAMES.get(module, module)) not in ASKED.keys() | ORACLES
    }
    assert not unknown, "add them to requirements.in and run make lock"


def test_notebooks_are_stripped_on_commit():
    attributes = (ROOT / ".gitattributes").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^\*\.ipynb .*filter=nbstripout", attributes, flags=re.MULTILINE)
    assert "filter.nbstripout.clean" in makefile and "cell.metadata.papermill" in makefile


@pytest.mark.parametrize(
    ("day", "given", "printed", "passed"),
    [
        (363, None, "default", "default"),
        (364, None, "avx2", "avx2"),
        (365, None, "native", "unset"),
        (363, "avx2", "avx2", "avx2"),
        (363, "native", "native", "unset"),
    ],
)
def test_ci_draws_an_instruction_set_by_date_unless_one_is_given(tmp_path, day, given, printed, passed):
    for name, says in (("date", str(day)), ("make", '"make $* with ${ATEN_CPU_CAPABILITY-unset}"')):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {says}\n")
        (tmp_path / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | ({"ATEN_CPU_CAPABILITY": given} if given else {})
    done = subprocess.run([ROOT / ".ci" / "run"], capture_output=True, text=True, env=environment, check=True)
    wanted = [f"ci: day {day} of the year, ATEN_CPU_CAPABILITY={printed}", f"make test with {passed}"]
    assert done.stdout.splitlines() == wanted


def test_code_is_ruff_clean():
    folders = [name for name in ("tda", "tests", "workflow", "notebooks") if (ROOT / name).exists()]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_systems_without_file_locks_are_told_which_ones_have_them():
    """As on Windows, where Python has no fcntl: one line that names the systems."""
    code = "import sys; sys.modules['fcntl'] = None; import tda; tda.attribute"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and done.stderr.strip().splitlines()[-1] == (
        "ImportError: tda runs on Linux and macOS (on Windows: inside WSL): it locks folders with fcntl."
    )
