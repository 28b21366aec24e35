"""Address of the MLflow store that a study is projected to; messages show it without its secrets."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from orchestrator.ledger.databases import SCHEMES, find_sqlite_file, name_driver
from orchestrator.ledger.ledger import Ledger
from trainables.errors import StorageError, StudyError, redact

#: Answers of a server, or of a proxy in front of it, to somebody who may not do what was asked for.
DENIALS = {401: "who asks is unknown", 403: "who asks may not do that"}


class TrackingError(StorageError):
    """MLflow could not be reached, or failed internally; trying again later makes sense."""


class RefusedError(TrackingError):
    """MLflow understood the request and refused it; sending it again does not help."""


class DeniedError(TrackingError):
    """MLflow, or a proxy in front of it, does not accept who asks; waiting does not help, other credentials may."""


def resolve_tracking_uri(
    ledger: Ledger, *, flag: str | None, study_value: str | None, environment: Mapping[str, str] | None = None
) -> str:
    """Return the absolute tracking URI of a study, so that every process uses the same store.

    Args:
        ledger: ledger of the study, which gives the default, ``sqlite:///<ledger>/mlflow.db``.
        flag: value of ``--mlflow``; takes precedence over everything else.
        study_value: ``execution.mlflow`` of the study file; used if the environment has no address.
        environment: variables in which ``MLFLOW_TRACKING_URI`` is looked up; None for those of this process.

    Raises:
        StudyError: MLflow cannot open such a URI, a password is missing in it, or the ledger is remote and no URI was
            given.
    """
    variable = (os.environ if environment is None else environment).get("MLFLOW_TRACKING_URI")
    uri = flag or variable or study_value
    if uri and "***" in uri:  # ``redact``
        raise StudyError(
            f"MLflow's address is known as {uri}, without the password: no ledger keeps one; give the address with "
            "--mlflow, in MLFLOW_TRACKING_URI, or the study file"
        )
    if uri:
        return make_absolute(uri)
    if not ledger.root.is_local:
        raise StudyError(
            f"looked for an MLflow store beside the ledger {ledger.root.uri} and a database cannot lie there; "
            "give one with --mlflow URI (an http address of a server, or a database such as postgresql://…)"
        )
    return f"sqlite:///{ledger.root.uri}/mlflow.db"


def make_absolute(uri: str) -> str:
    """Return ``uri`` with a relative SQLite path made absolute.

    Raises:
        StudyError: MLflow cannot open it, its driver is missing, or another process could not find the same store.
    """
    scheme = uri.split(":", 1)[0].split("+", 1)[0].lower()
    if scheme not in SCHEMES or (":" not in uri and scheme != "databricks"):
        raise StudyError(
            f"MLflow cannot track to {redact(uri)!r}; expected an address starting with one of {', '.join(SCHEMES)}, "
            "for a file for example sqlite:///runs/mlflow.db"
        )
    if scheme != "sqlite":
        return name_driver(uri.rstrip("/"))
    prefix, _, rest = uri.partition("://")
    path, mark, query = rest.partition("?")
    if not path.startswith("/") or path == "/" or ":memory:" in path:
        raise StudyError(
            f"MLflow store {uri!r}: expected a database file, such as sqlite:///runs/mlflow.db (relative) or "
            "sqlite:////data/mlflow.db (absolute); a database in memory would be lost with this process"
        )
    try:
        file = Path(path[1:]).expanduser().absolute()
    except RuntimeError as error:  # ~nobody/…
        raise StudyError(f"MLflow store {uri!r}: {error}; give the path of a database file") from error
    return f"{prefix}:///{file}{mark}{query}"


def has_run(uri: str, run_id: str) -> bool:
    """Return whether a SQLite store has the run, without importing MLflow; True for a server, which is not queried."""
    path = find_sqlite_file(uri)
    if path is None:
        return True
    if not path.is_file():  # opening it would create it
        return False
    query = "SELECT count(*) FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
    try:
        with closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute(query, [run_id]).fetchone()[0])
    except sqlite3.Error:
        return False  # not a database of the MLflow that we know: opening it reports the error


def strip_credentials(uri: str) -> str:
    """Return the address of a server without the user name and password in it."""
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".rstrip("/")
