"""Identifiers and addresses that MLflow answers with: which of them are used, and where files may be written."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from orchestrator.tracking.addresses import RefusedError, strip_credentials
from trainables.errors import quote_first_line

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,250}")
#: Schemes of places on this machine, or on others that are asked with this user's keys, which no server has to choose.
_NOT_CHOSEN = ("", "file", "ftp", "sftp", "runs", "models")

#: Environment variable with the folder, shared by all machines, in which a server may let files of runs lie.
ARTIFACT_ROOT = "ROBUSTSWEEP_ARTIFACT_ROOT"


def check_identifier(text: object) -> str:
    """Return the ID of an experiment, run or model, or the number of a version, as MLflow makes them.

    Raises:
        RefusedError: it is none: it could not be put into a link or a path.
    """
    if not _IDENTIFIER.fullmatch(str(text)):
        raise RefusedError(f"MLflow answered with the ID {quote_first_line(str(text))!r}, which no server of its makes")
    return str(text)


def check_place(tracking_uri: str, place: str, *, within: str | None = None) -> None:
    """Raise unless files of a run may be written to, or read from, where MLflow says that they lie.

    A server may name itself (``mlflow-artifacts:``, or its own address: others would be shown the credentials) and
    object stores, which this process reaches with credentials of its own. Paths of this machine it may not name, but
    those below the folder that the user has named (``ROBUSTSWEEP_ARTIFACT_ROOT``). A database was chosen by the user,
    who sees its files; a run's lie below those of its experiment.

    Args:
        tracking_uri: absolute URI of the store.
        place: URI of artifacts.
        within: URI of the artifacts of the experiment; None: not compared.

    Raises:
        RefusedError: they may not.
    """
    if tracking_uri.startswith(("http:", "https:")):
        _check_chosen_by_server(tracking_uri, place)
    if within is not None and not _is_within(place, within):
        raise RefusedError(
            f"MLflow says that the files of a run lie in {quote_first_line(place)!r}, outside of those of its "
            f"experiment in {quote_first_line(within)!r}; nothing is written there"
        )


def _check_chosen_by_server(tracking_uri: str, place: str) -> None:
    parts, own = urlsplit(place), urlsplit(strip_credentials(tracking_uri))
    if parts.scheme == "mlflow-artifacts":
        is_allowed = parts.netloc in ("", own.netloc)
    elif parts.scheme in ("http", "https"):
        is_allowed = (parts.scheme, parts.netloc) == (own.scheme, own.netloc)
    else:
        is_stored = parts.scheme not in _NOT_CHOSEN and len(parts.scheme) > 1  # c:\…
        is_allowed = is_stored or _is_below_named_folder(place)
    if not is_allowed:
        raise RefusedError(
            f"the server {own.scheme}://{own.netloc} says that files of runs lie in {quote_first_line(place)!r}, which "
            "is neither in the server itself nor in an object store; nothing is written there. Let it serve artifacts "
            "(--serve-artifacts, its default), and the study have an experiment that was made with that; or, if that "
            f"folder is shared by all machines, name it in {ARTIFACT_ROOT}"
        )


def _is_below_named_folder(place: str) -> bool:
    named = os.environ.get(ARTIFACT_ROOT)
    return named is not None and os.path.isabs(named) and _is_within(place, named)


def _is_within(place: str, outer: str) -> bool:
    """Return whether a place lies below another one; ``..`` leads nowhere."""
    (scheme, netloc, path), (its_scheme, its_netloc, its_path) = _split(place), _split(outer)
    if (scheme, netloc) != (its_scheme, its_netloc) or ".." in path.parts:
        return False
    return path.is_relative_to(its_path)


def _split(place: str) -> tuple[str, str, PurePosixPath]:
    parts = urlsplit(place)
    return parts.scheme or "file", parts.netloc, PurePosixPath(unquote(parts.path))
