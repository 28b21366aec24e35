"""Command that a job runs on the head's machine, and what must hold of it: a storage that both sides see, no secret."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.cluster.exit_codes import WRONG_REQUEST
from orchestrator.cluster.jobs.attempts import JOBS, Attempt, name_file
from orchestrator.cluster.jobs.upload import Upload, is_secret
from orchestrator.ledger.ledger import Ledger
from orchestrator.study.study_file import Study
from trainables.errors import StudyError


def check_storage(ledger: Ledger, address: str, *, is_shared: bool) -> None:
    """Raise ``StudyError`` if the ledger lies in a folder of this machine, and the job server is on another one.

    Args:
        ledger: ledger of the study.
        address: address of the job server.
        is_shared: whether the user says that the cluster has that folder under the same path.
    """
    host = urlsplit(address).hostname or ""
    if not ledger.root.is_local or is_shared or is_this_machine(host):
        return
    raise StudyError(
        f"wanted to run the study on the cluster of {host} with the storage {ledger.storage}, a folder of this "
        "machine, which the cluster does not see; give one that both see, --storage s3://… (gs://…, az://…), or add "
        "--shared-storage if the cluster has that folder under the same path"
    )


def is_this_machine(host: str) -> bool:
    """Return whether ``host`` is a name or an address of this machine: one to which a socket can be bound."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, where in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(where)
                return True
        except OSError:
            continue
    return False


def check_no_secret(study: Study, flags: Mapping[str, str | Sequence[str] | None]) -> None:
    """Raise ``StudyError`` if a flag, or the study file, which is uploaded, has a password in it."""
    said = {"execution.mlflow": study.execution.mlflow, "execution.optuna": study.execution.optuna} | dict(flags)
    for name, value in said.items():
        for text in [value] if isinstance(value, str) else value or ():
            if is_secret(text):
                raise StudyError(
                    f"got {name} with a password, token or key in it; the job's command and files can be read by "
                    "everybody on the cluster. Leave it out, and set it on the head's machine before `ray start` "
                    "(MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, PGPASSWORD, AWS_…)"
                )


def find_in_upload(study: Path, upload: Upload) -> Path:
    """Return the path of the study file in the job's working directory.

    Raises:
        StudyError: it is not uploaded.
    """
    try:
        file = study.absolute().relative_to(upload.root)
    except ValueError as error:
        raise StudyError(
            f"wanted to submit {study}, which does not lie in {upload.root}, the folder that is uploaded; start from a "
            "folder above it, or give one with --working-dir"
        ) from error
    if file not in upload.files:
        raise StudyError(f"wanted to submit {study}, which is left out of the upload; see --exclude and .gitignore")
    return file


def build_entrypoint(ledger: Ledger, words: Sequence[str], *, program: str) -> Callable[[Attempt], str]:
    """Return a function that returns the shell command of an attempt.

    If the ledger is in a folder, the command first looks for the attempt in it: a folder of the same name on another
    disk would be a second, empty ledger.

    Args:
        ledger: ledger of the study.
        words: words of the command after the program.
        program: how robustsweep is called on the head's machine, as a shell reads it.
    """
    command = f"exec {program} {shlex.join(words)}"

    def build(attempt: Attempt) -> str:
        if not ledger.root.is_local:
            return command
        file = shlex.quote(f"{ledger.root.uri}/{JOBS}/{name_file(attempt.number)}")
        complaint = shlex.quote(
            f"error: looked for {ledger.root.uri}, where the study was submitted, and found another or no folder on "
            "this machine; give a --storage that both see"
        )
        return f"test -e {file} || {{ echo {complaint}; exit {WRONG_REQUEST}; }}; {command}"

    return build
