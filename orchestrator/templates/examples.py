"""The shipped study files, wherever the package is installed."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from trainables.errors import StorageError, StudyError

#: Where a wheel puts them, below the environment's folder (``data-files`` in pyproject.toml).
_SHARED = "share/robustsweep/configs"


def find_examples() -> list[Path]:
    """Return the shipped study files by name.

    Raises:
        StorageError: they are not there.
    """
    beside = Path(__file__).parents[2] / "configs"  # a checkout, or an editable install of one
    if (beside.parent / "pyproject.toml").is_file():
        return sorted(beside.glob("*.yaml"))
    found = [file for file in metadata.files("robustsweep") or () if _SHARED in file.as_posix()]
    if not found:
        raise StorageError("looked for the shipped study files and found none; install robustsweep again")
    return sorted(Path(str(file.locate())) for file in found)


def copy_examples(folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy the shipped study files into ``folder``, which is made if it is missing; return the copies.

    Raises:
        StudyError: a file of that name is there, and is not to be overwritten; nothing has been copied.
    """
    examples = find_examples()
    there = [folder / each.name for each in examples if (folder / each.name).exists()]
    if there and not overwrite:
        raise StudyError(f"examples: {there[0]} is there already; name another folder, or give --force to overwrite it")
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(each, folder / each.name)) for each in examples]
