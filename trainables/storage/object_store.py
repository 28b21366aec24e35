"""Object stores behind fsspec: which requests are tried again, and what their libraries offer beyond plain files.

A store that throttles (429, 503 SlowDown), fails for a moment (500, 502, 504) or loses a connection is asked again a
few times, at growing and random intervals. fsspec has no common word for a conditional write, so that of each library
is used (s3fs 2026.9, gcsfs 2026.10, adlfs 2026.8):

=============== ============================ =======================================
store           only if it does not exist    only if it is still what was seen
=============== ============================ =======================================
S3              ``IfNoneMatch: *``           ``IfMatch``, below 100 MiB
Azure           ``overwrite=False``          ``etag`` and ``match_condition``
Google          ``mode="create"``            not offered by gcsfs
memory          ``mode="create"``            not offered
=============== ============================ =======================================
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from trainables.errors import StorageError
from trainables.storage import s3_names

T = TypeVar("T")

#: How often a request is made, beyond what the store's library tries by itself; 8 to 16 s of waiting in all.
MAX_TRIES = 6
#: Longest wait before the second try, in seconds; it doubles for each further one.
FIRST_WAIT_SECONDS = 0.5
#: HTTP status codes of a store that is busy or not well.
_BUSY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
#: Codes of S3 for the same; the last is for two conditional writes in the same moment.
_BUSY_CODES = frozenset(
    {"SlowDown", "Throttling", "RequestLimitExceeded", "RequestTimeout", "InternalError", "ServiceUnavailable"}
    | {"ConditionalRequestConflict"}
)
#: Errors of connections that were lost, by name, since the libraries have no common base. A refused one is none of
#: them: that is a wrong address more often than a restart.
_LOST_CONNECTIONS = frozenset(
    {"ConnectionClosedError", "ReadTimeoutError", "ResponseParserError", "ResponseStreamingError"}
    | {"IncompleteReadError", "ClientPayloadError", "ServerDisconnectedError", "ServiceResponseError", "ChecksumError"}
)
_AZURE = frozenset({"az", "abfs", "abfss"})
_GOOGLE = frozenset({"gs", "gcs"})
_S3 = frozenset({"s3", "s3a"})
#: Larger objects are sent to S3 in parts, without a condition (s3fs: twice its chunk of 50 MiB).
_MAX_CONDITIONAL_BYTES = 100 * 2**20


def ask(uri: str, attempt: str, question: Callable[[Any], T], explain: Callable[[str, OSError], StorageError]) -> T:
    """Return the answer of fsspec's file system for ``uri`` to ``question``; ask again if the store is busy.

    Args:
        uri: any URI of fsspec.
        attempt: description of the request for errors, with the file's name.
        question: request; it must not matter whether it is carried out once or twice.
        explain: returns the error to raise for one of the operating system.

    Raises:
        StorageError: the store refused, or was busy at every try; the message has the number of tries.
    """
    started = time.monotonic()
    tries = 0
    while True:
        tries += 1
        try:
            import fsspec  # imported here: local ledgers never need it

            fs = fsspec.core.url_to_fs(uri)[0]
            fs.invalidate_cache()  # listings are cached, and other machines write here too
            return question(fs)
        except Exception as error:  # every file system has errors of its own, without a common base
            if is_busy(error) and tries < MAX_TRIES:
                time.sleep(_choose_wait(tries))
                continue
            said = f"could not {attempt}"
            if tries > 1:
                said += f", tried {tries} times in {time.monotonic() - started:.0f} s"
            if isinstance(error, OSError):
                raise explain(said, error) from error
            raise StorageError(f"{said}: {type(error).__name__}: {error}") from error


def _choose_wait(tries: int) -> float:
    """Return how long to wait after so many tries, in seconds: at random, so that many clients do not come together.

    The operating system's random numbers are used: children of one process must differ, and training's are its own.
    """
    longest = FIRST_WAIT_SECONDS * 2 ** (tries - 1)
    return random.SystemRandom().uniform(longest / 2, longest)


def is_busy(error: BaseException) -> bool:
    """Return whether a store answered that it is busy or not well, or the connection to it was lost."""
    return any(
        isinstance(each, (TimeoutError, ConnectionResetError, BrokenPipeError))
        or type(each).__name__ in _LOST_CONNECTIONS
        or _find_status(each) in _BUSY_STATUS
        or _find_code(each) in _BUSY_CODES
        for each in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _find_status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of botocore, azure-core, gcsfs or aiohttp."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = (getattr(error, name, None) for name in ("status_code", "status", "code"))
        status = next((each for each in found if each is not None), None)
    return int(status) if str(status).isdecimal() else None


def _find_code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, Mapping) else None
    return code if isinstance(code, str) else None


# ------------------------------------------------------------------ writes


def protocols(fs: Any) -> frozenset[str]:
    """Return the names of the store's protocol."""
    return frozenset([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def can_create(fs: Any) -> bool:
    """Return whether the library implements exclusive creation; fsspec's default checks first and writes afterwards."""
    if protocols(fs) & _AZURE:
        return True
    method = getattr(type(fs), "_pipe_file", None) or type(fs).pipe_file
    return "mode" in inspect.signature(method).parameters and not method.__module__.startswith(
        ("fsspec.spec", "fsspec.asyn")
    )


def make_condition(fs: Any, seen: str | None, num_bytes: int) -> dict[str, Any]:
    """Return arguments of ``fs.pipe_file`` for a write only if the object is still what was seen.

    Args:
        fs: fsspec's file system.
        seen: version of the object (``find_version``), None if it was missing.
        num_bytes: size of the new content.

    Returns:
        No argument where the library does not offer the condition.
    """
    named = protocols(fs)
    if named & _S3 and num_bytes < _MAX_CONDITIONAL_BYTES:
        return {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen}
    if named & _AZURE:
        from azure.core import MatchConditions  # comes with adlfs

        return (
            {"overwrite": False} if seen is None else {"etag": seen, "match_condition": MatchConditions.IfNotModified}
        )
    if named & _GOOGLE and seen is None:
        return {"mode": "create"}
    return {}


def find_version(said: object) -> str | None:
    """Return the version of an object from what the library says of it, None if it says none."""
    if not isinstance(said, Mapping):
        return None
    version = said.get("ETag") or said.get("etag")
    return None if version is None else str(version)


# ------------------------------------------------------------------ listings


def lists_by_beginning(fs: Any) -> bool:
    """Return whether the library lets the store itself list only names with a certain beginning."""
    return bool(protocols(fs) & (_S3 | _GOOGLE | _AZURE))


def find_below(fs: Any, uri: str, beginning: str) -> list[str]:
    """Return the names of all files at any depth below ``uri``, relative to it, that have this beginning."""
    root = str(fs._strip_protocol(uri)).rstrip("/") + "/"
    if protocols(fs) & _S3:
        bucket, key, _ = fs.split_path(root.rstrip("/"))
        above = f"{key}/" if key else ""
        return [key[len(above) :] for key in s3_names.find_names(fs, bucket, above + beginning)]
    paths = fs.find(uri, **({"prefix": beginning} if beginning else {}))
    return [str(path)[len(root) :] for path in paths if str(path).startswith(root)]
