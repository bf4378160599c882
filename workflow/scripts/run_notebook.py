"""Execute a notebook with parameters, as every rule of the workflow does.

python workflow/scripts/run_notebook.py notebooks/02_training.ipynb --out data/smoke/logs/02.ipynb --parameters
'{"profile": "smoke"}'

Beyond Papermill: parameters that the notebook does not declare are refused, kernels talk over private sockets (parallel
jobs cannot race for ports), and declared files have to be made. Exit codes: 0 done, 1 a cell failed or ran out of time,
2 the call was wrong.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 180  # seconds; a busy machine needs more than Papermill's 60
SOCKET_FOLDER_LIMIT = 60  # characters; a socket's whole path is limited to about 100
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ENVIRONMENT = {  # for the kernel, where the caller has not set them
    "MALLOC_MMAP_THRESHOLD_": "1073741824",  # glibc keeps freed buffers: training is some 5 % faster
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "TDA_BATCH": "1",  # notebooks print one line per epoch instead of drawing a bar
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


class ParameterError(ValueError):
    """The notebook cannot be run with these parameters."""


class NotebookError(RuntimeError):
    """A cell failed, ran out of time or lost its kernel; the message ends with the path of the executed copy."""


def declared_parameters(notebook: str | os.PathLike) -> dict[str, Any]:
    """Names and default values of a notebook's ``parameters`` cell; :class:`ParameterError` without one."""
    path = Path(notebook)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    except FileNotFoundError as error:
        raise ParameterError(f"{path}: no such notebook") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ParameterError(f"{path}: not a notebook (JSON with a list of cells)") from error
    if len(tagged) != 1:
        raise ParameterError(f"{path}: has {len(tagged)} cells tagged 'parameters'; a notebook needs exactly one")
    try:
        statements = ast.parse("".join(tagged[0]["source"])).body
        return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ParameterError(f"{path}: its parameters cell may only hold lines such as 'seed = 0'") from error


def check_parameters(notebook: str | os.PathLike, parameters: dict[str, Any]) -> None:
    """Refuse parameters that ``notebook`` does not declare or whose type differs from the default's.

    A default of ``None`` takes any value, and ``None`` is taken everywhere; a float takes an integer.
    """
    declared, name = declared_parameters(notebook), Path(notebook).name
    for key, value in parameters.items():
        if key not in declared:
            match = difflib.get_close_matches(key, declared, n=1)
            hint = f"; did you mean {match[0]!r}?" if match else ""
            allowed = ", ".join(declared) or "none"
            raise ParameterError(f"{name}: unknown parameter {key!r}; it declares {allowed}{hint}")
        given, default = type(value), type(declared[key])
        if None not in (value, declared[key]) and given is not default and (default, given) != (float, int):
            problem = f"is {value!r} ({given.__name__}); its default {declared[key]!r} is of type {default.__name__}"
            raise ParameterError(f"{name}: parameter {key!r} {problem}")


def run(
    notebook: str | os.PathLike,
    out: str | os.PathLike,
    parameters: dict[str, Any] | None = None,
    timeout: float | None = None,
) -> Path:
    """Execute ``notebook`` from the repository root and write the executed copy to ``out``, also when it fails.

    ``timeout`` is a limit per cell in seconds. Raises :class:`ParameterError` before anything runs and
    :class:`NotebookError`, with the traceback on stderr, afterwards.
    """
    parameters = dict(parameters or {})
    check_parameters(notebook, parameters)
    notebook, out = Path(notebook).absolute(), Path(out).absolute()
    if out == notebook or out.is_dir():
        raise ParameterError(f"--out {out}: give a file other than the notebook itself, which would be lost")
    if set("{}") & set(f"{notebook}{out}"):
        raise ParameterError(f"{notebook}, {out}: Papermill reads braces in a path as parameters; rename the folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    base = tempfile.gettempdir()
    base = base if len(base) < SOCKET_FOLDER_LIMIT else "/tmp"
    sockets = tempfile.TemporaryDirectory(prefix="tda", dir=base, ignore_cleanup_errors=True)
    with sockets as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        settings = Config({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/k.json"}})
        try:
            papermill.execute_notebook(
                str(notebook),
                str(out),
                parameters=parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                start_timeout=START_TIMEOUT,
                execution_timeout=timeout,
                cwd=str(ROOT),
                config=settings,
            )
        except papermill.PapermillExecutionError as error:
            problem = f"In[{error.exec_count}]: {error.ename}: {str(error.evalue).strip() or 'no message'}"
            print(ANSI.sub("", "\n".join(error.traceback)), file=sys.stderr)
        except CellTimeoutError:
            problem = f"a cell ran longer than the limit of {timeout:g} s"
        except (DeadKernelError, RuntimeError) as error:
            problem = f"the kernel stopped or did not start ({error}); most often memory ran out"
        else:
            return out
    raise NotebookError(f"{notebook.name}: {problem.splitlines()[0]} (executed copy: {out})")


def check_made(notebook: str | os.PathLike, declared: list[str]) -> None:
    """Refuse a run that left out a file which was declared to come from it."""
    missing = [path for path in declared if not Path(path).exists()]
    if missing:
        raise NotebookError(
            f"{Path(notebook).name}: did not make {', '.join(missing)}; save it in the notebook, or take it out of the "
            f"figures in workflow/config/chapters/{Path(notebook).stem}.yaml"
        )


def _stop(signum: int, _: object) -> None:
    raise KeyboardInterrupt(signal.Signals(signum).name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute a notebook with parameters.")
    parser.add_argument("notebook", help="the notebook to execute")
    parser.add_argument("--out", required=True, help="where the executed copy is written")
    parser.add_argument("--parameters", default="{}", help="JSON object with values for the notebook's parameters cell")
    parser.add_argument("--timeout", type=float, default=None, help="limit per cell in seconds (default: none)")
    parser.add_argument("--makes", nargs="*", default=[], help="files that have to be there when the notebook has run")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    try:
        try:
            parameters = json.loads(options.parameters)
        except json.JSONDecodeError as error:
            raise ParameterError(f"--parameters: not JSON ({error}): {options.parameters}") from error
        if not isinstance(parameters, dict):
            raise ParameterError(f"--parameters: a JSON object is needed, got {options.parameters}")
        run(options.notebook, options.out, parameters, options.timeout)
        check_made(options.notebook, options.makes)
    except ParameterError as error:
        print(error, file=sys.stderr)
        return 2
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{Path(options.notebook).name}: stopped (executed copy: {options.out})", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
