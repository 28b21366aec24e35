"""Limits of the answers of an MLflow server: bytes, seconds, and no request to another address than the given one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests

#: Largest body of an answer, unpacked, and longest time until it is there. A page of runs has some megabytes.
MAX_BYTES, MAX_SECONDS = 256 * 2**20, 120.0
_CHUNK_BYTES = 2**16


def guard_sessions(module: Any) -> None:
    """Make all HTTP sessions of MLflow read answers through ``read_bounded``.

    Args:
        module: ``mlflow.utils.request_utils``; every request of MLflow's client uses a session of its cache.
    """
    make: Callable[..., requests.Session] = module._get_request_session

    def make_guarded(*args: Any, **options: Any) -> requests.Session:
        session = make(*args, **options)
        session.hooks["response"] = [read_bounded]
        return session

    module._get_request_session = make_guarded


def read_bounded(answer: requests.Response, *_: object, stream: bool = False, **__: object) -> None:
    """Read the body of an answer within ``MAX_BYTES`` and ``MAX_SECONDS``; a hook of ``requests``.

    Files are downloaded as streams: they go to a disk and have no limit here.

    Raises:
        requests.RequestException: the answer is larger or slower, or sends the request on to another address.
    """
    if answer.is_redirect:
        answer.close()
        target = urlsplit(answer.headers["location"])
        where = f"{target.scheme}://{target.hostname}" if target.hostname else "another path"
        raise requests.TooManyRedirects(
            f"it redirects to {where}, where no request follows: give the address that answers itself"
        )
    if stream:
        return
    chunks, size, deadline = list[bytes](), 0, time.monotonic() + MAX_SECONDS
    try:
        while chunk := _read_some(answer):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_BYTES:
                raise requests.RequestException(f"its answer is larger than {MAX_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise requests.Timeout(f"its answer has not ended after {MAX_SECONDS:.0f} s")
    except BaseException:
        answer.close()
        raise
    answer._content = b"".join(chunks)
    answer._content_consumed = True


def _read_some(answer: requests.Response) -> bytes:
    """Return what of the body is there, unpacked, at least a byte; nothing at its end."""
    import urllib3

    try:
        return bytes(answer.raw.read1(_CHUNK_BYTES, decode_content=True))
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.Timeout(str(error)) from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(str(error)) from error
