"""A study whose ledger lies on S3: how long it takes to know the state of every trial, and how many requests.

    python benchmarks/object_listing.py                      # 1,000 trials
    python benchmarks/object_listing.py --trials 10000       # the claim: within 5 s

The server (moto, in a process of its own, over HTTP) speaks the protocol of S3, a thousand names per answer. It is
filled directly, with the files that a small classification leaves per trial; sixteen trials are under way, as with
sixteen slots. moto looks at every name for each answer, which a real store does not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common import Line

from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE, INTERRUPTED

#: 5 s for 10,000 trials; the same limit for fewer.
BAR_SECONDS = 5.0
NUM_UNDER_WAY = 16
_SERVE = """
import hashlib, sys
from moto.server import ThreadedMotoServer
from moto.s3.models import s3_backends
store = s3_backends["123456789012"]["aws"]
store.create_bucket("studies", "us-east-1")
num_trials, num_under_way = int(sys.argv[1]), int(sys.argv[2])
begun = ("config.json", "epochs.jsonl", "log.txt", "checkpoint.safetensors")
ended = ("config.json", "epochs.jsonl", "log.txt", "model.safetensors", "detection.json", "representation.json",
         "predictions/train.npz", "predictions/val.npz", "predictions/test.npz", "result.json")
for number in range(num_trials):
    signature = hashlib.sha256(str(number).encode()).hexdigest()[:16]
    for name in begun if number < num_under_way else ended:
        store.put_object("studies", f"some/where/study/trials/{signature}/{name}", b"{}")
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@contextmanager
def serve_study(num_trials: int) -> Iterator[str]:
    """Run a store that holds a study; yield its address."""
    words = [sys.executable, "-c", _SERVE, str(num_trials), str(NUM_UNDER_WAY)]
    server = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        yield f"http://{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.communicate()


def count_requests(ledger: Ledger) -> Counter[str]:
    """Return a counter of all requests from now on, by name."""
    import fsspec

    counts: Counter[str] = Counter()

    def count(request: Any, event_name: str, **_: Any) -> None:
        counts[event_name.rsplit(".", 1)[-1]] += 1

    fs = fsspec.core.url_to_fs(ledger.root.uri)[0]
    fs.connect()
    fs.s3.meta.events.register("before-send.s3", count)
    return counts


def measure(num_trials: int) -> Line:
    """Return the line of a study of ``num_trials``.

    Raises:
        RuntimeError: the states are not those of the store.
    """
    with serve_study(num_trials) as address:
        os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
        ledger = Ledger("s3://studies/some/where", "study")
        counts = count_requests(ledger)
        ledger.root.exists("plan.json")  # the connection, which every command needs
        counts.clear()
        started = time.perf_counter()
        found = Counter(ledger.states().values())
        seconds = time.perf_counter() - started
    if found != {COMPLETE: num_trials - NUM_UNDER_WAY, INTERRUPTED: NUM_UNDER_WAY}:
        raise RuntimeError(f"found {dict(found)}, expected {num_trials - NUM_UNDER_WAY} complete")
    facts = {"trials": num_trials, "seconds": seconds, "requests": sum(counts.values()), **counts}
    return Line(f"object_listing.{num_trials}", BAR_SECONDS / seconds, 1.0, facts)


def main() -> None:
    """Measure and print one JSON line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000])
    for num_trials in parser.parse_args().trials:
        measure(num_trials).emit()


if __name__ == "__main__":
    main()
