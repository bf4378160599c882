"""Every chapter has the same anatomy, is committed without outputs and keeps its hands off the machine."""

import ast
import re

import nbformat
import pytest

from tda.config import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECTIONS = {
    "In one minute": r"in one minute",
    "From scratch": r"from scratch",
    "Exercises": r"exercises?",
    "Claims checked": r"claims checked|what we checked",
    "References": r"references",
}
WITHOUT = {"00_quickstart": {"From scratch", "Claims checked"}}  # a first look, not a chapter
FORBIDDEN = {
    r"\bchdir\b|^\s*%cd\b": "paths come from tda.config; a notebook does not change the folder",
    r"^\s*!|get_ipython\(\)\.system|\bpip\s+install\b|^\s*%pip|^\s*%conda": "a notebook installs nothing",
    r"\bipywidgets\b|tqdm\.notebook|tqdm\.auto": "widgets do not survive a batch run",
    r"https?://|\burllib\.request\b|\bimport requests\b|\bimport httpx\b": "a notebook needs no network",
}
LONGEST, LONGEST_FROM_SCRATCH = 25, 40  # lines of a cell

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    book = nbformat.read(path, as_version=4)
    return book, [cell for cell in book.cells if cell.cell_type == "code"]


def headings(book):
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    return re.findall(r"^#+\s+(.*)$", text, flags=re.MULTILINE)


def test_there_are_notebooks():
    assert NOTEBOOKS
    assert all(re.fullmatch(r"[0-9]{2}_[a-z0-9_]+", path.stem) for path in NOTEBOOKS)


@each
def test_valid_and_stripped(path):
    book, code = read(path)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code), "run nbstripout on it"
    metadata = [book.metadata, *(cell.metadata for cell in book.cells)]
    assert not any({"papermill", "execution", "widgets"} & set(entry) for entry in metadata), "run nbstripout on it"
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in book.cells)


@each
def test_opens_with_a_title(path):
    first = read(path)[0].cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S", first.source)


@each
def test_sections(path):
    found = headings(read(path)[0])
    missing = {
        name
        for name, pattern in SECTIONS.items()
        if not any(re.search(pattern, heading, flags=re.IGNORECASE) for heading in found)
    }
    assert missing <= WITHOUT.get(path.stem, set()), f"headings found: {found}"


@each
def test_one_parameters_cell_near_the_top(path):
    book, code = read(path)
    places = [index for index, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(places) == 1 and places[0] <= 4 and code[0] is book.cells[places[0]], "the first code cell"
    lines = [line for line in book.cells[places[0]].source.splitlines() if line.strip()]
    for line in lines:
        assert re.search(r"#\s*\S", line), f"a comment belongs to {line!r}"
        statements = ast.parse(line).body
        assert len(statements) == 1 and isinstance(statements[0], ast.Assign), line
        assert isinstance(statements[0].targets[0], ast.Name), line
        ast.literal_eval(statements[0].value)


@each
def test_second_cell_prints_what_was_received(path):
    code = read(path)[1]
    names = [node.targets[0].id for node in ast.parse(code[0].source).body]
    call = next(node for node in ast.walk(ast.parse(code[1].source)) if is_opening(node))
    given = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    spread = [node.value for node in ast.walk(ast.parse(code[1].source)) if isinstance(node, ast.Assign)]
    for words in (node for node in spread if isinstance(node, ast.Dict)):  # given = {"profile": profile, ...}
        given |= {key.value: ast.unparse(value) for key, value in zip(words.keys, words.values, strict=True)}
    assert given == {name: name for name in names}, "every parameter is received, and printed"
    if path.stem not in WITHOUT:
        assert ast.literal_eval(call.args[0]) == path.stem, "a chapter stands under its own name"


def is_opening(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("Chapter", "tda.notebook.received")


def test_what_smoke_is_worth_is_said_in_one_line(capsys):
    from tda import notebook

    notebook.received(profile="smoke", overrides={})
    notebook.received(profile="paper", overrides={"bank": "shipped"})
    smoke, paper = capsys.readouterr().out.split("profile = 'paper'")
    assert smoke.count(notebook.TOY) == 1 and "\n" not in notebook.TOY and "mean nothing" in notebook.TOY
    assert notebook.TOY not in paper


@each
def test_a_cell_holds_one_thought(path):
    heading = ""
    for cell in read(path)[0].cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+\s+(.*)$", cell.source, flags=re.MULTILINE) or [heading])[-1]
        else:
            scratch = re.search(SECTIONS["From scratch"], heading, flags=re.IGNORECASE)
            lines = sum(bool(line.strip()) for line in cell.source.splitlines())
            assert lines <= (LONGEST_FROM_SCRATCH if scratch else LONGEST), f"{lines} lines: {cell.source[:60]!r}"


@each
def test_code_is_well_behaved(path):
    code = "\n".join(cell.source for cell in read(path)[1])
    for pattern, reason in FORBIDDEN.items():
        found = re.search(pattern, code, flags=re.MULTILINE)
        assert found is None, f"{found[0]!r}: {reason}"
    if re.search(r"</?(td|tr|p|b|span|div)\b[^>]*>", code):  # elsewhere tda.plotting writes the HTML
        assert "html.escape(" in code, "what comes from data is escaped before it is put into HTML"


@each
def test_formulas_render(path):
    """TeX as a reader sees it: single backslashes, closed dollars and braces, no control character from an escape."""
    for cell in read(path)[0].cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```|`[^`\n]*`", "", cell.source, flags=re.DOTALL)
            assert text.count("$") % 2 == 0, "a formula is not closed"
            for formula in re.findall(r"\$\$?([^$]+)\$\$?", text):
                assert not re.search(r"\\\\[A-Za-z]", formula), f"doubled backslash in {formula!r}"
                assert not re.search(r"[\x00-\x09\x0b-\x1f]|\n\s*\n", formula), (
                    f"broken by an escape or a blank line: {formula!r}"
                )
                bare = re.sub(r"\\[{}]", "", formula)
                assert bare.count("{") == bare.count("}"), f"braces of {formula!r}"
