"""Access to MLflow: settings, errors, finding runs. Only ``registry/models.py`` imports MLflow too."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# MLflow by default retries a request 7 times, 4 minutes in all, and a create_run that was carried out but not answered
# would be carried out twice. We retry ourselves, outside the scheduling loop.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
# Otherwise MLflow prints a line, and sends a request, for every run that ends.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
# A registry may hold models of others, so nothing from it is unpickled; MLflow checks for pickles before it loads.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
# Importing MLflow starts a thread that reports usage to its vendor; a process beside patient data reports nothing.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from trainables.preload import imports_kept

with imports_kept():
    from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        InputTag,
        LifecycleStage,
        LoggedModelOutput,
        Metric,
        Param,
        RunTag,
        ViewType,
    )
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracking import MlflowClient
    from mlflow.utils import request_utils
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request
    from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri
    from sqlalchemy import Connection
    from sqlalchemy.exc import SQLAlchemyError

from orchestrator.ledger.databases import create_database, is_database_server
from orchestrator.tracking.addresses import DENIALS, DeniedError, RefusedError, TrackingError
from orchestrator.tracking.guard.answers import guard_sessions
from orchestrator.tracking.guard.places import check_identifier, check_place
from orchestrator.tracking.views import REPORT, TITLES, VIEW_TAG
from trainables.errors import StudyError, quote_first_line, redact

if TYPE_CHECKING:
    from orchestrator.tracking.projection import Batch

__all__ = [
    "Dataset",
    "DatasetInput",
    "InputTag",
    "LifecycleStage",
    "LoggedModelOutput",
    "Metric",
    "MlflowClient",
    "Param",
    "RunTag",
    "StudyPages",
    "ViewType",
    "attach_page",
    "connect",
    "connect_database",
    "find_run",
    "find_study",
    "find_version",
    "follow_pages",
    "log_batch",
    "open_place",
    "require_access",
    "search_runs",
    "translating_errors",
    "upload",
]  # fmt: skip

_RUNS_PER_PAGE = 200  # with a thousand metrics each, 30 MB
_MAX_PAGES = 5000  # a million runs
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
_DENIALS = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
#: Of Python's ssl, for a certificate that nobody vouches for whom this machine knows.
_UNKNOWN_AUTHORITY = "CERTIFICATE_VERIFY_FAILED"
#: A header that a server repeats in its answer.
_CREDENTIALS = re.compile(r"(?i)\b(basic|bearer) [\w+/.~-]+=*")

guard_sessions(request_utils)
# Users of a study need neither "Creating initial database tables" and alembic's steps, nor the traceback that MLflow
# logs of every error that it also raises.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.WARNING)


def connect(tracking_uri: str) -> Any:
    """Return MLflow's client of a store; a missing SQLite file is created completely or not at all.

    Call it within ``translating_errors``.
    """
    with imports_kept():  # for a database MLflow imports more, and makes or checks the tables
        create_database(tracking_uri, MlflowClient)
        if is_database_server(tracking_uri):
            _check_answers(tracking_uri)
        return MlflowClient(tracking_uri)


def _check_answers(tracking_uri: str) -> None:
    """Raise at once the error that MLflow would raise after trying for 100 s; we try again later."""
    with connect_database(tracking_uri):
        pass


@contextmanager
def connect_database(tracking_uri: str) -> Iterator[Connection]:
    """Yield a connection to the database of a store, in a transaction that the end of the context commits."""
    from mlflow.store.db.utils import create_sqlalchemy_engine  # half a second, and only databases need it

    engine = create_sqlalchemy_engine(tracking_uri)  # type: ignore[no-untyped-call]
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def find_version(tracking_uri: str) -> str | None:
    """Return the release of MLflow whose pages show a store: that of the server, or for a database the installed one.

    None for a server that does not tell. Call it within ``translating_errors``.
    """
    if not tracking_uri.startswith(("http:", "https:")):
        return version("mlflow") if not tracking_uri.startswith("databricks") else None
    credentials = get_default_host_creds(tracking_uri)  # type: ignore[no-untyped-call]
    answer = http_request(credentials, "/version", "GET", raise_on_status=False)  # type: ignore[no-untyped-call]
    text = str(answer.text).strip()
    return text if answer.status_code == 200 and re.fullmatch(r"\d+(\.\w+)+", text) else None


def require_access(tracking_uri: str, path: str) -> None:
    """Raise if a server denies this process the page at ``path``; other answers than 401 and 403 pass.

    Raises:
        DeniedError: the server answers 401 or 403.
        TrackingError: it cannot be reached.
    """
    asked = "let this process in"
    with translating_errors(tracking_uri, asked):
        credentials = get_default_host_creds(tracking_uri)  # type: ignore[no-untyped-call]
        answer = http_request(credentials, path, "GET", raise_on_status=False)  # type: ignore[no-untyped-call]
    if answer.status_code in DENIALS:
        said = _quote(str(answer.text))
        raise DeniedError(f"asked MLflow at {redact(tracking_uri)} to {asked}: {said}; {_advise(answer.status_code)}")


@dataclass(frozen=True)
class StudyPages:
    """Pages of a study in MLflow."""

    experiment_id: str
    #: Release of MLflow that shows it, None if it is not known.
    version: str | None
    #: Whether the experiment has both views.
    has_views: bool
    #: ID of the study's own run, if that has a report.
    report_run_id: str | None


def find_study(tracking_uri: str, study: str) -> StudyPages:
    """Return what MLflow has to show of a study.

    Raises:
        TrackingError: MLflow cannot be reached.
        StudyError: MLflow has no such study.
    """
    with translating_errors(tracking_uri, f"find study {study!r}"):
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(study)
        if experiment is not None:
            number = check_identifier(experiment.experiment_id)
            own = {run.info.run_id: run.info.artifact_uri for run in _search_study_runs(client, number)}
            reported = [check_identifier(run) for run, uri in own.items() if _has_report(tracking_uri, uri)]
            has_views = all(f"{VIEW_TAG}{key}" in experiment.tags for key in TITLES)
            return StudyPages(number, find_version(tracking_uri), has_views, reported[0] if reported else None)
    raise StudyError(
        f"looked for study {study!r} in MLflow at {redact(tracking_uri)} and found no such experiment; "
        "run the study, or project its ledger with `robustsweep sync`"
    )


def attach_page(tracking_uri: str, study: str, name: str, text: str) -> str:
    """Attach a page to the study's own run, in place of one of the same name; return the run's ID.

    Raises:
        TrackingError: MLflow cannot be reached.
        StudyError: MLflow has no such study.
    """
    with translating_errors(tracking_uri, f"attach {name} to study {study!r}"):
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(study)
        own = [] if experiment is None else _search_study_runs(client, check_identifier(experiment.experiment_id))
        for run in own:
            upload(tracking_uri, run.info.artifact_uri, {name: text.encode()})
            return check_identifier(run.info.run_id)
    raise StudyError(
        f"looked for the run of study {study!r} in MLflow at {redact(tracking_uri)} and found none; "
        "run the study, or project its ledger with `robustsweep sync`"
    )


def _search_study_runs(client: Any, experiment_id: str) -> Iterator[Any]:
    return search_runs(client, experiment_id, "tags.`robustsweep.kind` = 'study'")


def _has_report(tracking_uri: str, artifact_uri: str) -> bool:
    files = open_place(tracking_uri, artifact_uri).list_artifacts()
    return any(file.path == REPORT for file in files)


def search_runs(client: Any, experiment_id: str, what: str = "", view: int = ViewType.ACTIVE_ONLY) -> Iterator[Any]:
    """Yield the runs of an experiment that match MLflow's filter ``what``, page by page."""
    return follow_pages(
        lambda token: client.search_runs([experiment_id], what, view, max_results=_RUNS_PER_PAGE, page_token=token)
    )


def follow_pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield what is on the pages that ``ask`` returns, given the token of the one before; they have an end.

    Raises:
        TrackingError: there are more than ``_MAX_PAGES``.
    """
    token = None
    for _ in range(_MAX_PAGES):
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return
    raise TrackingError(
        f"MLflow has answered with {_MAX_PAGES} pages and says that there are more; nothing was changed"
    )


def open_place(tracking_uri: str, artifact_uri: str, *, within: str | None = None) -> Any:
    """Return MLflow's access to the files at an address that MLflow has answered with.

    Raises:
        RefusedError: files must not lie there (``check_place``).
    """
    check_place(tracking_uri, artifact_uri, within=within)
    uri = add_databricks_profile_info_to_artifact_uri(artifact_uri, tracking_uri)  # type: ignore[no-untyped-call]
    return get_artifact_repository(uri, tracking_uri=tracking_uri)


def upload(tracking_uri: str, artifact_uri: str, files: Mapping[str, bytes], *, within: str | None = None) -> None:
    """Write files to where a run has its artifacts; one of the same name is replaced.

    ``MlflowClient.log_artifacts`` would first ask for the run, to learn where that is. Call it within
    ``translating_errors``.

    Args:
        tracking_uri: absolute URI of the store.
        artifact_uri: where the run has its artifacts, as MLflow says.
        files: name → content.
        within: where the experiment has its artifacts; None: not compared.

    Raises:
        RefusedError: nothing may be written there.
    """
    place = open_place(tracking_uri, artifact_uri, within=within)
    with tempfile.TemporaryDirectory(prefix="robustsweep-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        place.log_artifacts(folder)


def log_batch(client: Any, run_id: str, batch: Batch) -> None:
    """Send values, params and tags of a run in one request. Call it within ``translating_errors``."""
    client.log_batch(
        run_id,
        metrics=[Metric(p.key, p.value, p.timestamp_ms, p.step) for p in batch.points],
        params=[Param(key, value) for key, value in batch.params],
        tags=[RunTag(key, value) for key, value in batch.tags.items()],
    )


def find_run(client: Any, study: str, signature: str) -> Any:
    """Return the run of a trial, None if MLflow has none. Call it within ``translating_errors``."""
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        return None
    return next(search_runs(client, experiment.experiment_id, f"tags.`robustsweep.signature` = '{signature}'"), None)


@contextmanager
def translating_errors(tracking_uri: str, what: str) -> Iterator[None]:
    """Raise errors of MLflow, its database layer and its HTTP layer (``OSError``) as our ``TrackingError``."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError, ParseError) as error:
        asked = f"asked MLflow at {redact(tracking_uri)} to {what}"
        said = _quote(str(error))
        if (status := _find_denial(error)) is not None:
            raise DeniedError(f"{asked}: {said}; {_advise(status)}") from error
        if isinstance(error, MlflowException) and error.error_code in _REFUSALS:
            raise RefusedError(f"{asked}; it refused: {said}; the ledger has everything") from error
        if _UNKNOWN_AUTHORITY in str(error):
            raise TrackingError(
                f"{asked}: {said}; name the file with the certificate of its authority in "
                "MLFLOW_TRACKING_SERVER_CERT_PATH. The ledger has everything"
            ) from error
        raise TrackingError(
            f"{asked}: {type(error).__name__}: {said}; check that it runs, and the address. The ledger has everything: "
            "`robustsweep sync` ships what is missing"
        ) from error


def _quote(text: str) -> str:
    return _CREDENTIALS.sub(r"\1 ***", quote_first_line(text))


def _find_denial(error: Exception) -> int | None:
    """Return the HTTP status with which a server denied access, None for any other error."""
    if isinstance(error, MlflowException):
        return _DENIALS.get(error.error_code)
    status = getattr(getattr(error, "response", None), "status_code", None)  # of requests, for artifacts
    return status if status in DENIALS else None


def _advise(status: int) -> str:
    advice = f"that is HTTP {status}, {DENIALS[status]}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    advice += " (or MLFLOW_TRACKING_TOKEN) in the environment of this command"
    if status == 403:
        advice += (
            ", have whoever runs the server grant the permission, or name its host in the server's --allowed-hosts"
        )
    return advice + ". The ledger has everything: `robustsweep sync` ships what is missing"
