"""Access to MLflow, and the only module that imports it: its settings, its errors, finding runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# MLflow by default retries a request 7 times, 4 minutes in all, and a create_run that was carried out but not answered
# would be carried out twice. We retry ourselves, off the scheduling loop.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
# A line on stdout, and a request, for every run that ends.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
# Importing MLflow starts a thread that reports usage to its vendor; what runs beside patient data calls nobody.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from orchestrator.garbage import made_to_stay

with made_to_stay():
    from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

from orchestrator.tracking_store import RefusedError, TrackingError, create_database, is_database_server
from trainables.errors import StudyError, redact

__all__ = [
    "Dataset", "DatasetInput", "InputTag", "LifecycleStage", "Metric", "MlflowClient", "Param", "RunTag", "TrialRuns",
    "asking", "connect", "find_trial_runs", "search_runs",
]  # fmt: skip

_RUNS_PER_PAGE = 1000
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")

# Its "Creating initial database tables" and alembic's steps are no news for the user of a study, nor is the traceback
# that it logs of every error which it raises as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.WARNING)


def connect(tracking_uri: str) -> Any:
    """Return MLflow's client of a store; a SQLite file is created whole.

    Call it within ``asking``.
    """
    with made_to_stay():  # a database: imports more, and makes or checks the tables
        create_database(tracking_uri, MlflowClient)
        if is_database_server(tracking_uri):
            _check_answers(tracking_uri)
        return MlflowClient(tracking_uri)


def _check_answers(tracking_uri: str) -> None:
    """Raise at once what MLflow would raise after trying for 100 s; we try again later."""
    from mlflow.store.db.utils import create_sqlalchemy_engine  # half a second, and only databases need it

    engine = create_sqlalchemy_engine(tracking_uri)  # type: ignore[no-untyped-call]
    try:
        engine.connect().close()
    finally:
        engine.dispose()


@dataclass(frozen=True)
class TrialRuns:
    """The trials of a study in MLflow."""

    experiment_id: str
    #: Finished ones first, then by arm and replicate.
    run_ids: list[str]
    #: Metrics whose steps are severities.
    shift_keys: list[str]


def find_trial_runs(tracking_uri: str, study: str) -> TrialRuns:
    """Return the study's trial runs.

    Raises:
        TrackingError: MLflow cannot be reached.
        StudyError: it has no such study.
    """
    with asking(tracking_uri, f"find study {study!r}"):
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(study)
        runs = [] if experiment is None else list(search_runs(client, experiment.experiment_id))
    if experiment is None:
        raise StudyError(
            f"looked for study {study!r} in MLflow at {redact(tracking_uri)} and found no such experiment; "
            "run the study, or project its ledger with `robustsweep sync`"
        )
    trials = [run for run in runs if run.data.tags.get("robustsweep.kind") == "trial"]
    trials.sort(key=lambda run: (run.info.status != "FINISHED", run.info.run_name))
    keys = sorted({key for run in trials for key in run.data.metrics if key.startswith("shift/")})
    return TrialRuns(str(experiment.experiment_id), [run.info.run_id for run in trials], keys)


def search_runs(client: Any, experiment_id: str, what: str = "") -> Iterator[Any]:
    """Yield the runs of an experiment that match MLflow's filter ``what``, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment_id], what, max_results=_RUNS_PER_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def asking(tracking_uri: str, what: str) -> Iterator[None]:
    """Translate errors of MLflow, of its database layer and of its HTTP layer (all of these are OSError)."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        asked = f"asked MLflow at {redact(tracking_uri)} to {what}"
        said = redact(str(error).strip().split("\n", 1)[0])[:500]
        if isinstance(error, MlflowException) and error.error_code in _REFUSALS:
            raise RefusedError(f"{asked}; it refused: {said}; the ledger has everything") from error
        raise TrackingError(
            f"{asked}: {type(error).__name__}: {said}; check that it runs, and the address. The ledger has everything: "
            "`robustsweep sync` ships what is missing"
        ) from error
