"""The notebook runner: parameters are checked before anything runs, failures keep the executed copy, time
is limited.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from run_notebook import NotebookError, ParameterError, check_parameters, declared_parameters, run

from tda import notebook
from tda.config import ROOT

PARAMETERS = 'count = 1  # a number\nrate = 0.5  # a share\nname = "a"  # text\nextra = None  # anything\n'


def make(path, *sources, parameters=PARAMETERS):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    if parameters is not None:
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(book, path)
    return path


def call(notebook, out, *options, **environment):
    command = [sys.executable, "workflow/scripts/run_notebook.py", str(notebook), "--out", str(out), *options]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)


def text_of(out):
    return json.dumps(nbformat.read(out, 4))


def test_runs_from_the_repository_root_with_parameters(tmp_path):
    source = "import os\nprint('got', count, rate, name, extra, os.getcwd(), os.environ['TDA_BATCH'], flush=True)"
    notebook, out = make(tmp_path / "ok.ipynb", source), tmp_path / "logs" / "ok.ipynb"
    given = json.dumps({"count": 3, "rate": 1, "extra": {"a": [1]}})
    with tempfile.TemporaryDirectory(prefix="own", dir="/tmp") as own:  # other runs have their sockets beside it
        done = call(notebook, out, "--parameters", given, "--timeout", "60", TMPDIR=own)
        assert not list(Path(own).glob("tda*")), "the socket folder is removed"
    assert done.returncode == 0, done.stderr
    assert f"got 3 1 a {{'a': [1]}} {ROOT} 1" in done.stdout
    assert "got 3 1" in text_of(out)


def test_failure_keeps_traceback_and_executed_copy(tmp_path):
    notebook, out = (
        make(tmp_path / "fail.ipynb", "print('before')", "raise ValueError('boom\\nmore')"),
        tmp_path / "out.ipynb",
    )
    done = call(notebook, out)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"fail.ipynb: In[3]: ValueError: boom (executed copy: {out})"
    assert "before" in done.stdout and "Traceback" in done.stderr
    assert "ValueError" in text_of(out) and "before" in text_of(out)


def test_time_limit(tmp_path):
    out = tmp_path / "out.ipynb"
    with pytest.raises(NotebookError, match=r"ran longer than the limit of 1 s \(executed copy"):
        run(make(tmp_path / "slow.ipynb", "import time\ntime.sleep(60)"), out, timeout=1)
    assert out.exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"nam": "x"},
            "n.ipynb: unknown parameter 'nam'; it declares count, rate, name, extra; did you mean 'name'?",
        ),
        ({"name": 3}, "n.ipynb: parameter 'name' is 3 (int); its default 'a' is of type str"),
        ({"count": 0.5}, "n.ipynb: parameter 'count' is 0.5 (float); its default 1 is of type int"),
        ({"count": True}, "n.ipynb: parameter 'count' is True (bool); its default 1 is of type int"),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, parameters, message):
    notebook = make(tmp_path / "n.ipynb", "1")
    with pytest.raises(ParameterError) as caught:
        run(notebook, tmp_path / "out.ipynb", parameters)
    assert str(caught.value) == message
    assert not (tmp_path / "out.ipynb").exists()


def test_accepted_types(tmp_path):
    check_parameters(make(tmp_path / "n.ipynb"), {"rate": 1, "name": None, "extra": [1]})


def test_notebooks_that_declare_nothing_usable(tmp_path):
    for parameters, message in [
        (None, "has 0 cells tagged 'parameters'"),
        ("import os", "may only hold lines such as"),
        ("x = f()", "may only hold lines such as"),
    ]:
        with pytest.raises(ParameterError, match=message):
            declared_parameters(make(tmp_path / "n.ipynb", "1", parameters=parameters))
    with pytest.raises(ParameterError, match="no such notebook"):
        declared_parameters(tmp_path / "absent.ipynb")
    (tmp_path / "text.ipynb").write_text("[]")
    with pytest.raises(ParameterError, match="not a notebook"):
        declared_parameters(tmp_path / "text.ipynb")


def test_wrong_calls_exit_with_2_and_one_line(tmp_path):
    notebook = make(tmp_path / "n.ipynb", "1")
    for text, part in [
        ('{"nam": 1}', "did you mean 'name'"),
        ("{nam", "not JSON"),
        ("[1]", "a JSON object is needed"),
    ]:
        done = call(notebook, tmp_path / "out.ipynb", "--parameters", text)
        assert done.returncode == 2 and part in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_progress_is_a_line_at_once_in_a_batch_and_one_bar_otherwise(monkeypatch, capsys):
    monkeypatch.setenv("TDA_BATCH", "1")
    say = notebook.progress()
    say("epoch 1/2")
    assert capsys.readouterr().out == "epoch 1/2\n"
    monkeypatch.delenv("TDA_BATCH")
    notebook.progress()("epoch 2/2")
    shown = capsys.readouterr()
    assert shown.out == "" and "epoch 2/2" in shown.err


def test_what_was_declared_has_to_be_made(tmp_path):
    book = make(tmp_path / "a.ipynb", f"open({str(tmp_path / 'b.txt')!r}, 'w').close()")
    files = [str(tmp_path / name) for name in ("b.txt", "c.txt", "d.txt")]
    assert call(book, tmp_path / "out.ipynb", "--makes", files[0]).returncode == 0
    done = call(book, tmp_path / "out.ipynb", "--makes", *files)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        f"a.ipynb: did not make {files[1]}, {files[2]}; save it in the notebook, or take it out of the figures in "
        "workflow/config/chapters/a.yaml"
    )
