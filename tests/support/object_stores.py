"""A server that speaks the protocol of S3, in a process of its own. Tests only."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec

_SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(sys.argv[1], port=0, verbose=False)
server.start()
print("%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
#: What the server takes from anybody.
KEY, SECRET = "AKIAOBJECTSTORETESTS", "object-store-secret-f00dfeed"


@contextmanager
def serve_s3(*, address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Run an empty store; yield the environment in which every client finds it.

    fsspec keeps its clients by their arguments, not by the environment that named their store: those that this process
    made before belong to other stores and are forgotten, and so are those of this store at the end.

    Args:
        address: where it listens.
        prefix: words before the command, that run it on another host.
    """
    clients = fsspec.get_filesystem_class("s3")
    clients.clear_instance_cache()
    server = subprocess.Popen(
        [*prefix, sys.executable, "-c", _SERVE, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield {
            "AWS_ENDPOINT_URL": f"http://{server.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        clients.clear_instance_cache()
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def connect(environment: Mapping[str, str]) -> Any:
    """Return an s3fs file system on the store."""
    from s3fs import S3FileSystem

    return S3FileSystem(endpoint_url=environment["AWS_ENDPOINT_URL"], key=KEY, secret=SECRET, skip_instance_cache=True)
