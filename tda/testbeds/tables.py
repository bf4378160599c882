"""Rows of a user's data: a JSONL or Parquet file, or a data set of the hub. Each comes with its place in the source."""

from __future__ import annotations

import json
from pathlib import Path

Rows = list[tuple[str, object]]  # (place, row); rows are counted from 1


def require_file(path: Path) -> None:
    """Refuse a path at which there is no file."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"corpus.path={str(path)!r} {what}. Give a .jsonl or .parquet file with a text column.")


def read_file(path: Path) -> Rows:
    """(place, row) of every row of the file."""
    require_file(path)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(f"corpus.path={str(path)!r}: the suffix must be .jsonl (one JSON object a line) or .parquet.")
    try:
        return readers[path.suffix.lower()](path)
    except OSError as error:
        raise ValueError(f"{path}: could not be read ({error.strerror or error}). Check its permissions.") from None


def _read_jsonl(path: Path) -> Rows:
    rows = []
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # Windows tools write a byte-order mark
                if text.strip():
                    rows.append((f"line {number}", json.loads(text, object_pairs_hook=_unique)))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error}). Save the file as UTF-8.") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}). One object a line is expected.") from None
    return rows


def _unique(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object, refused where it says a column twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name in found if sum(name == other for other, _ in pairs) > 1)
        raise ValueError(f"the column {twice!r} stands twice in one object")
    return found


def _read_parquet(path: Path) -> Rows:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        rows = ParquetFile(path).read().to_pylist()
    except (ArrowException, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a Parquet file whose columns can all be read ({_line(error)}). Write it again with "
            f"the text column and those that are kept."
        ) from None
    return _numbered(rows)


def read_hub(settings: dict) -> Rows:
    import datasets

    try:
        rows = datasets.load_dataset(settings["dataset"], split=settings["split"]).to_list()
    except Exception as error:
        raise ValueError(
            f"corpus.dataset={settings['dataset']!r}, split {settings['split']!r}: could not be loaded "
            f"({_line(error)}). Check both names and the network."
        ) from error
    return _numbered(rows)


def _numbered(rows: list) -> Rows:
    return [(f"row {number}", row) for number, row in enumerate(rows, start=1)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
