"""SQLite files and PostgreSQL drivers of the databases that are derived from the ledger: MLflow's and Optuna's."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from trainables.errors import StudyError, redact

#: URI schemes that MLflow 3.17 opens; its file store (a plain path) refuses to start there.
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
#: Drivers, of which the first that is installed is used; MLflow is tested with psycopg2.
_POSTGRESQL_DRIVERS = ("psycopg2", "psycopg")


def name_driver(uri: str) -> str:
    """Return the URI of a PostgreSQL store with the name of the installed driver, any other URI unchanged.

    Without a name the driver depends on SQLAlchemy: 2.1 uses psycopg where earlier versions used psycopg2.

    Raises:
        StudyError: no driver is installed.
    """
    prefix = "postgresql://"
    if not uri.startswith(prefix):
        return uri
    found = [driver for driver in _POSTGRESQL_DRIVERS if find_spec(driver) is not None]
    if not found:
        raise StudyError(
            f"store {redact(uri)!r}: looked for a driver of PostgreSQL ({', '.join(_POSTGRESQL_DRIVERS)}) and "
            "found none installed; install psycopg2-binary, or robustsweep[cluster]"
        )
    return f"postgresql+{found[0]}://{uri.removeprefix(prefix)}"


def is_database_server(uri: str) -> bool:
    """Return whether MLflow's client itself connects to a database over the network."""
    return uri.startswith(("postgresql", "mysql", "mssql"))


def create_database(uri: str, open_store: Callable[[str], object]) -> None:
    """Create the tables of a SQLite store that does not exist yet, all or nothing.

    MLflow takes a second for its hundred migrations, and refuses a database that a kill has left in between.

    Args:
        uri: URI of any store; nothing is done unless it is that of a SQLite file.
        open_store: opens, and thereby creates, the store of a URI.
    """
    path = find_sqlite_file(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        open_store(f"sqlite:///{temporary}")
        with suppress(FileExistsError):  # another process was faster
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, None for other stores."""
    return Path(uri.partition("://")[2].partition("?")[0][1:]) if uri.startswith("sqlite") else None
