"""Location of a study's artifacts: beside the ledger that is open, also after ledger and store were moved or copied.

MLflow stores absolute addresses and has no call that changes them. Without a change everything would be written to, and
read from, the place where the ledger lay when the experiment was made.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import column, func, select, table, update
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.ledger.databases import find_sqlite_file
from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.addresses import TrackingError
from orchestrator.tracking.client import connect_database

_FOLDER = "mlartifacts"
_EXPERIMENTS = table("experiments", column("experiment_id"), column("artifact_location"))
_RUNS = table("runs", column("run_uuid"), column("experiment_id"), column("artifact_uri"))


def choose_artifact_location(uri: str, ledger: Ledger) -> str | None:
    """Return the location of artifacts: beside the ledger for a database, None (the server decides) for a server.

    MLflow's own default for a database is ``./mlruns`` in the working directory of the calling process.
    """
    if uri.startswith(("http:", "https:", "databricks")):
        return None
    location = f"{ledger.root.uri}/{_FOLDER}"
    return Path(location).as_uri() if ledger.root.is_local else location


def move_artifacts(uri: str, ledger: Ledger, experiment_id: str, *, old: str, new: str) -> None:
    """Replace the location of an experiment's artifacts, and of those of its runs below it, if the ledger has moved.

    A store may serve several ledgers with a study of this name; then the location stays that of the first.

    Args:
        uri: of the store, a database.
        ledger: the ledger that is open.
        experiment_id: of the study.
        old: location that the store has.
        new: location beside the ledger.

    Raises:
        TrackingError: the store cannot be read or changed.
    """
    number = int(experiment_id)
    try:
        with connect_database(uri) as connection:
            runs = connection.execute(select(_RUNS.c.run_uuid).where(_RUNS.c.experiment_id == number)).scalars()
            if not _has_moved(uri, ledger, old, runs.all()):
                return
            of_study = _RUNS.c.experiment_id == number
            connection.execute(
                update(_EXPERIMENTS).where(_EXPERIMENTS.c.experiment_id == number).values(artifact_location=new)
            )
            connection.execute(
                update(_RUNS)
                .where(of_study, _RUNS.c.artifact_uri.startswith(f"{old}/", autoescape=True))
                .values(artifact_uri=func.replace(_RUNS.c.artifact_uri, f"{old}/", f"{new}/"))
            )
    except SQLAlchemyError as error:
        raise TrackingError(
            f"could not change the location of artifacts from {old} to {new}: {str(error).splitlines()[0]}; the ledger "
            "was moved or copied, and MLflow would write to the old place: run again when nothing else uses the store"
        ) from error


def _has_moved(uri: str, ledger: Ledger, old: str, run_ids: Collection[str]) -> bool:
    """Return whether the artifacts at ``old`` are those of this ledger, which lay there when it was made."""
    file = find_sqlite_file(uri)
    here = Path(ledger.root.uri).absolute() if ledger.root.is_local else None
    if file is not None and here is not None and file.parent == here:
        return True  # the store is the ledger's own
    if not old.startswith("file:") or not old.endswith(f"/{_FOLDER}"):
        return False  # chosen by somebody else, or on an object store, which says little about what lay there
    before = Path(unquote(urlsplit(old).path)).parent
    if _is_gone(before / "plan.json"):
        # On another machine, which shares a database server, a ledger may be there all the same.
        return file is not None or not set(run_ids).isdisjoint((ledger.root / _FOLDER).children())
    if file is None or here is None or not here.is_relative_to(file.parent):
        return False
    # Both are there: copied together, if the original has a store at the same place relative to it.
    inside = here.relative_to(file.parent).parts
    is_alike = before.parts[-len(inside) :] == inside
    return is_alike and Path(*before.parts[: -len(inside)], file.name).is_file()


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except PermissionError:  # it is somebody else's, and may be there
        return False
    return False
