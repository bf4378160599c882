"""The house has floors: an import runs to the same floor or a lower one, as the import statements say."""

import ast
from pathlib import Path

import pytest

from tda.config import ROOT

# From the ground up. A name is a module of tda or a package with all that it holds.
FLOORS = (
    ("files", "artefacts", "config_checks", "config_files", "config_schema", "config", "provenance", "words"),
    ("task", "access", "output_loss", "saved", "sequences", "lm", "classifiers", "denoiser_nets", "denoisers")
    + ("recipe", "training", "many"),
    ("testbeds", "designs", "queries", "models", "retrain", "bank", "notebook", "plotting"),
    ("tools",),
    ("curvature",),
    ("steering", "encoding"),
    ("attribution",),
    ("evaluation",),
    ("tuning", "scores", "measures", "evidence"),
    ("chapter",),
    ("studies",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted((ROOT / "tda").rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of tda that a file imports, also inside of functions; those for type checking only do not run."""
    tree, package = ast.parse(path.read_text(encoding="utf-8")), dotted(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {constant.value for constant in node.args if isinstance(constant, ast.Constant)}  # by its name
    return {name for name in names if name == "tda" or name.startswith("tda.")}


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOOR[parts[1]] if len(parts) > 1 else FLOOR["attribution"]  # tda itself offers attribute


def test_every_module_has_a_floor():
    names = {path.relative_to(ROOT / "tda").parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert names == set(FLOOR), "a new module belongs to a floor"


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_run_downwards(path):
    climbing = [name for name in imports(path) if floor(name) > floor(dotted(path))]
    assert not climbing, f"{dotted(path)} imports {climbing} from a higher floor"


def test_studies_do_not_import_each_other():
    for path in FILES:
        parts = dotted(path).split(".")
        if parts[:2] == ["tda", "studies"] and len(parts) > 2:
            studies = [name.split(".") for name in imports(path) if name.startswith("tda.studies.")]
            others = [name for name in studies if name[2] != parts[2]]
            assert not others, f"{dotted(path)} imports another study: {others}"


def test_every_file_of_attribution_registers_a_method():
    for path in sorted((ROOT / "tda" / "attribution").glob("*.py")):
        if path.stem not in ("__init__", "registry"):
            decorators = [
                ast.unparse(decorator)
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.FunctionDef)
                for decorator in node.decorator_list
            ]
            assert any(name.startswith("method(") for name in decorators), f"{path.name} registers no method"


def test_a_study_serves_chapters():
    """What no notebook imports, directly or through its study, is not needed."""
    used = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    for path in sorted((ROOT / "tda" / "studies").iterdir()):
        name = path.name.removesuffix(".py")
        if not name.startswith("__"):
            assert f"tda.studies.{name}" in used or f"import {name}" in used, f"no notebook imports the study {name}"
