"""Processes that take seconds to start: this node's fork server, in which the trials are checked, and Ray.

Ray starts together with the fork server where trials need it at once: on a cluster, or where trials share a GPU.
Elsewhere the driver's own slots (``execution/local_executor.py``) start first, and Ray if enough work is left.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any

from orchestrator.driver import child_process
from orchestrator.driver.prepare import resolve_execution
from orchestrator.execution.fork_client import ForkClient, make_command, make_socket_path
from orchestrator.execution.resources import find_local_resources
from orchestrator.ledger.derived import Report
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.trial_checks import find_distinct
from orchestrator.study.study_file import Study
from trainables import errors
from trainables.config import TrialConfig
from trainables.errors import ClusterLostError, InfrastructureError, RobustSweepError
from trainables.preload import imports_kept
from trainables.pretraining_config import TrainedStep
from trainables.storage.probe import probe_storage

#: How long stopping Ray waits while it is still starting.
_PATIENCE_SECONDS = 20.0


class Runtime:
    """Ray and the fork server of one run. A context manager: leaving it ends both.

    Args:
        study: study to run.
        address: Ray cluster, None for this machine.
        resources: what the driver's own slots have if all trials run in them; None: Ray may be started.
    """

    def __init__(self, study: Study, *, address: str | None, resources: Mapping[str, float] | None = None) -> None:
        self._study = study
        self._execution = resolve_execution(study)
        self._address, self._resources = address, resources
        #: Token in the socket paths of this run's fork servers.
        self.token = uuid.uuid4().hex[:16]
        #: Nodes of the cluster that can use the storage, None before ``probe_storage`` and on this machine.
        self.probed_nodes: frozenset[str] | None = None
        self._client: ForkClient | None = None
        self._ray: _RayThread | None = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._client is not None:
            self._client.close()
        if kind is None or (issubclass(kind, Exception) and not issubclass(kind, ClusterLostError)):
            self._stop_ray()  # otherwise the user interrupts, or Ray does not answer: it ends with this process

    @cached_property
    def preload(self) -> tuple[str, ...]:
        """Words for the imports of this run's fork servers: names of networks, whether there are stages, the task."""
        configs = [arm.config for arm in self._study.arms()]
        stages = (
            [child_process.CONTRASTIVE]
            if any(isinstance(config.pretraining, TrainedStep) for config in configs)
            else []
        )
        tasks = [self._study.task.kind] if self._study.task.kind == child_process.SEGMENTATION else []
        return (*sorted({config.model.name for config in configs}), *stages, *tasks)

    @cached_property
    def local_resources(self) -> Mapping[str, float] | None:
        """Resources of this machine for the driver's own slots, None if all trials run in Ray."""
        if self._resources is not None:
            return self._resources
        return None if self._address else find_local_resources(self._study.execution)

    @property
    def is_started(self) -> bool:
        """Whether the fork server has been started."""
        return self._client is not None

    @property
    def is_local(self) -> bool:
        """Whether Ray runs on this machine alone."""
        return self._address is None

    def start(self) -> None:
        """Start the fork server, and Ray if all trials run in it. Returns before they are up; repeating does nothing.

        Raises:
            InfrastructureError: no process can be started.
        """
        self.start_fork_server()
        if self.local_resources is None:
            self.start_ray()

    def start_fork_server(self) -> None:
        """Start the process that imports torch. Returns before it is up; repeating does nothing."""
        if self._client is None:
            path = make_socket_path(self.token)
            command = make_command(child_process.MODULE)
            threads = self._execution.num_threads
            self._client = ForkClient(num_threads=threads, path=path, command=command, preload=self.preload)
            self._client.connect()

    def start_ray(self) -> None:
        """Start Ray in a thread. Returns before it is up; repeating does nothing."""
        if self._ray is None:
            self._ray = _RayThread(self._address)
            self._ray.start()

    def check(self, configs: Iterable[TrialConfig]) -> None:
        """Build network, loss and shifts of every trial in a child of the fork server (``trial_checks.check_trials``).

        Raises:
            RobustSweepError: the error that a trial would have raised.
        """
        self.start()
        distinct = [config.model_dump(mode="json") for config in find_distinct(configs)]
        self._begin({"check": distinct})
        if self._study.stops_early:  # early stopping needs ray; imported here while the fork server imports torch
            with imports_kept():
                from orchestrator.cluster import tune_schedulers  # noqa: F401
        self._finish("checking the trials")

    def probe_storage(self, ledger: Ledger) -> None:
        """Try from every machine of the run what trials do with the storage. Nothing is tried on this machine's disk.

        Raises:
            StorageError: a machine cannot use the storage; the message names it.
            InfrastructureError: the cluster does not answer.
        """
        if not self.is_local:
            self.wait_for_ray()
            from orchestrator.cluster.storage_probe import probe_nodes  # imports ray

            self.probed_nodes = probe_nodes(ledger.root)
        elif not ledger.root.is_local:
            probe_storage(ledger.root, "this machine")

    def start_report(self, ledger: Ledger, lease: Mapping[str, str]) -> Callable[[], Report]:
        """Start writing the report in a child of the fork server; return a function that waits for it and returns it.

        The fork server has torch imported. The function also stops Ray, and raises the errors of
        ``report.write.write_report``.
        """
        self._begin({"report": ledger.study, "storage": ledger.storage, "lease": dict(lease)})
        return self._finish_report

    def _finish_report(self) -> Report:
        self._stop_ray()
        (event,) = self._finish("writing the report")
        said = {key: value for key, value in event.items() if key != "event"}
        return Report(**(said | {"csv": tuple(said["csv"])}))

    def _begin(self, request: dict[str, Any]) -> None:
        assert self._client is not None
        self._client.begin({**request, "cache_dir": str(self._execution.cache_dir)})

    def _finish(self, what: str) -> list[dict[str, Any]]:
        """Wait for the end of a request; return its events, or raise its error."""
        assert self._client is not None
        events: list[dict[str, Any]] = []
        while not events or events[-1]["event"] != "done":
            event = self._client.next_event(60.0)
            events += [event] if event is not None else []
        end = events.pop()
        if end["status"] != "complete":
            known = getattr(errors, end["type"], None)
            if isinstance(known, type) and issubclass(known, RobustSweepError):
                raise known(end["message"])
            raise InfrastructureError(f"{what} failed unexpectedly:\n{end['traceback']}")
        return events

    def _stop_ray(self) -> None:
        if self._ray is not None:
            self._ray.end()
            self._ray = None

    def wait_for_ray(self) -> Mapping[str, float]:
        """Start Ray if it has not been started, wait for it and return the resources of the cluster.

        Raises:
            InfrastructureError: Ray does not start, or the cluster does not answer.
        """
        self.start_ray()
        assert self._ray is not None
        return self._ray.wait()

    @property
    def dashboard(self) -> str | None:
        """Address of the dashboard of the cluster that was joined, None if it has none or there is no cluster."""
        return None if self._ray is None or self.is_local else self._ray.dashboard


class _RayThread(threading.Thread):
    """Thread that starts Ray and lives until ``end``: the kernel ends Ray's processes with the thread that did."""

    def __init__(self, address: str | None) -> None:
        super().__init__(name="ray", daemon=True)
        self._address = address
        self._is_up, self._is_over = threading.Event(), threading.Event()
        self._resources: Mapping[str, float] = {}
        self.dashboard: str | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        """Body of the thread."""
        try:
            with imports_kept():
                from orchestrator.cluster import connection  # imports ray

            self._resources, self.dashboard = connection.connect(self._address)
        except Exception as error:  # noqa: BLE001 - the thread's boundary: ``wait`` raises it
            self._error = error
        self._is_up.set()
        self._is_over.wait()

    def wait(self) -> Mapping[str, float]:
        """Wait until Ray is up; return its resources, or raise the error of its start."""
        self._is_up.wait()
        if self._error is not None:
            raise self._error
        return self._resources

    def end(self) -> None:
        """Leave or stop Ray and wait for it. A Ray that does not come up in time is left to end with this process."""
        if not self._is_up.wait(_PATIENCE_SECONDS):
            return
        if self._error is None:
            from orchestrator.cluster import connection

            connection.disconnect()
        self._is_over.set()
        self.join()
