"""Working directory of a job: the files that are uploaded, as one zip file, and what may go along as variables."""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster import connection  # noqa: F401 - first: it sets what Ray reads when it is imported
from trainables.errors import StudyError

# isort: split
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE
from ray._private.thirdparty.pathspec import PathSpec

#: Patterns, as in a .gitignore, of what is not uploaded; the last line is where secrets usually lie.
EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "results", "data", "mlruns",
    ".env", ".env.*", ".netrc", ".ssh", ".aws", "*.pem", "*.key",
)  # fmt: skip
#: Files of a folder with further patterns, as Ray's own uploads heed them.
IGNORE_FILES = (".gitignore", ".rayignore")
#: Number of the largest entries that an error names.
_NUM_NAMED = 5
_SECRET_NAME = re.compile(
    r"KEY|TOKEN|PASS|PWD|SECRET|CREDENTIAL|AUTH|COOKIE|SESSION|PRIVATE|DSN|WEBHOOK|NOTIFY", re.IGNORECASE
)
_SECRET_VALUE = re.compile(
    r"://[^/\s@]*:[^/\s]*@|https?://[^/\s]*@"  # a password in a URI; a name alone is a token where HTTP is spoken
    r"|(?i:password|passwd|pwd|token|secret)\w*=[^&\s]"
    r"|-----BEGIN|\bA(?:KIA|SIA)[A-Z0-9]{12,}\b|\bgh[pousr]_\w{20,}|\beyJ[\w-]{10,}\."
)


@dataclass(frozen=True)
class Upload:
    """Files below ``root``, as sorted paths relative to it, and their size together."""

    root: Path
    files: tuple[Path, ...]
    num_bytes: int

    def describe(self) -> str:
        """Return a line about it."""
        return f"{_count(self.files)}, {describe_size(self.num_bytes)}, of {self.root}"

    def pack(self, target: Path) -> None:
        """Write the files into a zip file that depends on nothing but names, contents and permissions."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in self.files:
                path = self.root / file
                entry = zipfile.ZipInfo(file.as_posix())
                entry.external_attr = (path.stat().st_mode & 0xFFFF) << 16
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def find_upload(root: Path, excludes: Sequence[str] = (), *, max_bytes: int = int(GCS_STORAGE_MAX_SIZE)) -> Upload:
    """Return what is uploaded of a folder: all but ``EXCLUDES``, ``excludes`` and what ``IGNORE_FILES`` name.

    Links to files are followed; links to folders, which can form a circle, are left out.

    Args:
        root: the folder.
        excludes: further patterns.
        max_bytes: what is accepted, before compression; by default Ray's limit for a message, 512 MiB.

    Raises:
        StudyError: it is more than ``max_bytes``; the message names the largest entries.
    """
    root = root.absolute()
    files = tuple(sorted(_walk(root, [(root, _compile((*EXCLUDES, *excludes)))])))
    sizes = {file: (root / file).stat().st_size for file in files}
    total = sum(sizes.values())
    if total > max_bytes:
        entries: Counter[str] = Counter()
        for file, size in sizes.items():
            entries[file.parts[0]] += size
        largest = ", ".join(f"{name} {describe_size(size)}" for name, size in entries.most_common(_NUM_NAMED))
        raise StudyError(
            f"wanted to upload {_count(files)} of {root} and found {describe_size(total)}, expected at most "
            f"{describe_size(max_bytes)}, which is Ray's limit; the largest entries are {largest}. Leave out what the "
            "job does not need (--exclude, or a .gitignore), or give another folder with --working-dir; data belong "
            "on the cluster's disks or in its object store"
        )
    return Upload(root, files, total)


def _compile(patterns: Sequence[str]) -> Any:
    """Return Ray's object that compares paths with the patterns of a .gitignore."""
    return PathSpec.from_lines("gitwildmatch", patterns)


def _walk(folder: Path, rules: list[tuple[Path, Any]]) -> Iterator[Path]:
    """Yield the files below ``folder``, relative to the root, that no rule (folder, patterns) excludes."""
    root = rules[0][0]
    lines = [line for name in IGNORE_FILES if (folder / name).is_file() for line in _read_lines(folder / name)]
    rules = [*rules, (folder, _compile(lines))] if lines else rules
    for entry in os.scandir(folder):
        path = folder / entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        # A pattern that ends in a slash means folders alone.
        if any(spec.match_file(path.relative_to(base).as_posix() + "/" * is_folder) for base, spec in rules):
            continue
        if is_folder:
            yield from _walk(path, rules)
        elif entry.is_file():
            yield path.relative_to(root)


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def read_variables(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of these names, which the job and its workers get.

    Ray writes them into log files that everybody on the cluster can read, and shows them on its dashboard.

    Raises:
        StudyError: one is not set, or looks like a secret by its name or its value.
    """
    for name in names:
        value = environment.get(name)
        if "=" in name:
            raise StudyError(
                f"got --env {name.partition('=')[0]}=…, expected a name alone: its value is taken from here"
            )
        if value is None:
            raise StudyError(f"got --env {name}, which is not set here; set it, or leave it out")
        if _SECRET_NAME.search(name) or is_secret(value):
            by = "name" if _SECRET_NAME.search(name) else "value"
            raise StudyError(
                f"got --env {name}, which looks like a secret by its {by}; "
                "Ray writes what a job gets into log files that everybody on the cluster can read. Set it on the "
                "cluster's nodes, before `ray start`, or give them a role of their own"
            )
    return {name: environment[name] for name in names}


def is_secret(text: str) -> bool:
    """Return whether a text has a password in a URI, or looks like a token or key."""
    return _SECRET_VALUE.search(text) is not None


def _count(files: Sequence[Path]) -> str:
    return f"{len(files)} file{'s' * (len(files) != 1)}"


def describe_size(num_bytes: int) -> str:
    """Return a size in words: ``12.3 MiB``."""
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"
