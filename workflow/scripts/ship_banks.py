"""Copy the paper profile's retraining banks and their queries to data/banks, where they are committed."""

import shutil
from itertools import product
from pathlib import Path

import tda.config
import tda.testbeds
from tda import bank, models
from tda.artefacts import atomic, file_sha256, read_json, write_json


def ship(testbed: tda.testbeds.Testbed) -> list[Path]:
    """Copy a testbed's banks and the queries they were measured on, and list their checksums."""
    paths = [write_json(bank.shipped_path(testbed, "queries").with_suffix(".json"), models.query_rows(testbed))]
    for name, suffix in product(testbed.settings["designs"], ("", ".json")):
        bank.load(testbed, name)
        paths.append(Path(f"{bank.shipped_path(testbed, name)}{suffix}"))
        with atomic(paths[-1]) as temporary:
            shutil.copyfile(f"{testbed.folder / f'bank_{name}.npz'}{suffix}", temporary)
    return [*paths, pin(paths)]


def pin(paths: list[Path]) -> Path:
    """List the SHA-256 of committed files of one folder in its ``index.json`` (:func:`tda.artefacts.check_pinned`)."""
    index = paths[0].parent / "index.json"
    known = read_json(index) if index.exists() else {}
    return write_json(index, known | {path.name: file_sha256(path) for path in paths})


if __name__ == "__main__":
    for name in tda.config.load("paper")["testbeds"]:
        for path in ship(tda.testbeds.load(name, "paper")):
            print(path.relative_to(tda.config.ROOT), path.stat().st_size, "bytes")
