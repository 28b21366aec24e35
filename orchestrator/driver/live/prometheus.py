"""Metrics of a running study for Prometheus: over HTTP, as a file for node-exporter's textfile collector, or both.

The values are read when they are asked for; nothing is counted twice, and nothing runs if no metrics are configured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from orchestrator.study.execution_config import ExecutionConfig
from trainables.errors import ConfigError, InfrastructureError

_logger = logging.getLogger(__name__)


def check_metrics(execution: ExecutionConfig) -> None:
    """Check that the metrics which ``execution`` asks for can be made.

    Raises:
        ConfigError: prometheus_client is not installed.
    """
    asked = [name for name in ("metrics_port", "metrics_file") if getattr(execution, name) is not None]
    if asked and find_spec("prometheus_client") is None:
        raise ConfigError(
            f"execution.{asked[0]}: asked for metrics, and prometheus_client is not installed; "
            f"pip install 'robustsweep[cluster]', or leave {asked[0]} out"
        )


@contextmanager
def exposing(
    execution: ExecutionConfig, take: Callable[[], Mapping[str, Any]], *, print_line: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Serve the metrics that ``execution`` asks for while the body runs; yield a function that writes their file.

    Args:
        execution: its ``metrics_port``, ``metrics_address`` and ``metrics_file``.
        take: returns a snapshot (``publish.Source.take``).
        print_line: prints the address on the terminal.

    Raises:
        InfrastructureError: the port is taken, the address is not one of this machine, or the file cannot be written.
    """
    port, path = execution.metrics_port, execution.metrics_file
    if port is None and path is None:
        yield lambda: None
        return
    registry = _make_registry(take)
    import prometheus_client

    if path is not None:
        _write_file(registry, path.expanduser())
    server = None
    if port is not None:
        address = execution.metrics_address
        try:
            server, _ = prometheus_client.start_http_server(port, addr=address, registry=registry)
        except OSError as error:
            raise InfrastructureError(
                f"execution.metrics_port: could not serve metrics at {address}:{port}: {error}; choose another port "
                "(0: a free one) or an address of this machine (execution.metrics_address)"
            ) from error
        print_line(f"metrics: http://{address}:{server.server_port}/metrics")

    def write() -> None:
        if path is None:
            return
        try:
            _write_file(registry, path.expanduser())
        except InfrastructureError as error:
            _logger.warning("%s; trying again later", error)

    try:
        yield write
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def _make_registry(take: Callable[[], Mapping[str, Any]]) -> Any:
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

    class StudyCollector(Collector):
        """Collector that makes all metrics from one snapshot."""

        def collect(self) -> Iterator[Any]:
            yield from make_families(take())

    registry = CollectorRegistry()
    registry.register(StudyCollector())
    return registry


def _write_file(registry: Any, path: Any) -> None:
    import prometheus_client

    try:
        prometheus_client.write_to_textfile(str(path), registry)  # through a temporary file that is renamed
    except OSError as error:
        raise InfrastructureError(f"execution.metrics_file: could not write {path}: {error}") from error


def make_families(snapshot: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the metrics of a snapshot. Every one has the label ``study``.

    ``robustsweep_trials`` and ``robustsweep_stages`` by ``state`` (together: all planned), ``robustsweep_slots``,
    ``robustsweep_busy_slots``, ``robustsweep_utilisation`` (0 to 1), ``robustsweep_eta_seconds`` once it is known,
    ``robustsweep_cost`` if there is a price; the time of all runs as ``robustsweep_wall_seconds_total``,
    ``robustsweep_slot_seconds_total`` and ``robustsweep_gpu_seconds_total``; of this run
    ``robustsweep_failures_total`` by ``reason`` and ``robustsweep_lost_attempts_total``.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    study = snapshot["study"]
    for kind in ("trials", "stages"):
        family = GaugeMetricFamily(f"robustsweep_{kind}", f"Planned {kind} by state.", labels=["study", "state"])
        for state, number in snapshot[kind].items():
            if state != "planned":  # the sum of the others
                family.add_metric([study, state], number)
        yield family
    for name, about in _GAUGES.items():
        if snapshot[name] is not None:
            family = GaugeMetricFamily(f"robustsweep_{name}", about, labels=["study"])
            family.add_metric([study], snapshot[name])
            yield family
    for name, about in _SECONDS.items():
        counter = CounterMetricFamily(f"robustsweep_{name}", about, labels=["study"])
        counter.add_metric([study], snapshot["usage"][name])
        yield counter
    failures = CounterMetricFamily(
        "robustsweep_failures", "Stages and trials that failed in this run.", labels=["study", "reason"]
    )
    for reason, number in snapshot["failures_by_reason"].items():
        failures.add_metric([study, reason], number)
    yield failures
    lost = CounterMetricFamily(
        "robustsweep_lost_attempts", "Attempts of this run that were lost and started again.", labels=["study"]
    )
    lost.add_metric([study], snapshot["num_lost"])
    yield lost


_GAUGES = {
    "slots": "Stages and trials that may run at once.",
    "busy_slots": "Stages and trials that run.",
    "utilisation": "Share of the slots' time in this run that stages and trials took.",
    "eta_seconds": "Estimated seconds until all stages and trials have ended.",
    "cost": "GPU hours of all runs times execution.price_per_gpu_hour.",
}
_SECONDS = {
    "wall_seconds": "Time that all runs have taken.",
    "slot_seconds": "Time that stages and trials of all runs have taken, lost attempts included.",
    "gpu_seconds": "The same times the GPUs of each.",
}
