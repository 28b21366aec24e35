"""Jobs that run in the background of the server, one at a time, each once, with progress."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from trainables.errors import RobustSweepError, StorageError
from trainables.frozen import canonical_json

_COMMAND = [sys.executable, "-m", "orchestrator.explorer.worker"]


@dataclass
class Job:
    """State of one job."""

    #: Finished share, in [0, 1].
    share: float = 0.0
    is_done: bool = False
    result: Any = None
    #: Why it failed, None if it has not.
    error: str | None = None


class Jobs:
    """Starts jobs, each in a process of its own; the processes end with ``close``."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_closed = False

    def find(self, request: Mapping[str, Any]) -> Job:
        """Return the job of a request, which is started the first time; one that has failed is started by the next."""
        key = canonical_json(dict(request))
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                job = self._jobs[key] = Job()
                threading.Thread(target=self._run, args=(dict(request), job), daemon=True).start()
            elif job.is_done and job.error is not None:
                del self._jobs[key]
            return job

    def wait(self, request: Mapping[str, Any]) -> Any:
        """Return the result of a job when it is done.

        Raises:
            RobustSweepError: it failed.
        """
        job = Job()
        self._run(dict(request), job)
        if job.error is not None:
            raise RobustSweepError(job.error)
        with self._lock:
            self._jobs[canonical_json(dict(request))] = job
        return job.result

    def _run(self, request: dict[str, Any], job: Job) -> None:
        with self._turn:  # one after another: each takes a whole core
            try:
                process = self._start()
                with process, suppress(BrokenPipeError):
                    _send(process.stdin, request)
                    for line in process.stdout or ():
                        answer = json.loads(line)
                        job.share = answer.get("share", job.share)
                        job.result, job.error = answer.get("result"), answer.get("error")
                        if job.result is not None or job.error is not None:
                            break
                if job.result is None and job.error is None:
                    job.error = "its process ended without a result; is there enough memory?"
            except (OSError, ValueError) as error:
                job.error = f"its process could not be used ({error})"
            finally:
                job.is_done = True

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise OSError("the server has stopped")
            process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.add(process)
        return process

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._is_closed = True
            for process in self._processes:
                process.kill()
                process.wait()


def _send(stream: IO[bytes] | None, request: Mapping[str, Any]) -> None:
    assert stream is not None
    stream.write(json.dumps(request).encode() + b"\n")
    stream.flush()


class Painter:
    """A process that paints images one at a time; started by the first, ended by ``close``."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def paint(self, request: Mapping[str, Any]) -> bytes:
        """Return the PNG of a request that ``worker.paint`` knows.

        Raises:
            RobustSweepError: it cannot be had here.
            StorageError: the process has died.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            output = self._process.stdout
            assert output is not None
            try:
                _send(self._process.stdin, request)
                answer = json.loads(output.readline() or b"{}")
            except (BrokenPipeError, ValueError):
                answer = {}
            if "error" in answer:
                raise RobustSweepError(answer["error"])
            if "size" not in answer:
                raise StorageError("painted an image, and the process that does it died; is there enough memory?")
            return output.read(answer["size"])

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError), self._process:  # closes its pipes
                pass
