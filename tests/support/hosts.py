"""Hosts of their own on this machine, joined by a switch whose cables can be pulled. Tests only, Linux only.

A host is a set of namespaces: network, name, processes and shared memory of its own, and a temporary folder; all hosts
see the same disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.processes import find_marked, wait_until
from tests.support.relay import Disturbance, Relay

#: First process of a host: everything on it ends with it. Reaps whatever has lost its parent.
_INIT = """\
hostname "$0" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$1" "$2" || exit 1
echo up
while :; do sleep 3600 & wait $!; done
"""
_UNSHARE = ("unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
#: Joins Ray at argv[1], waits for argv[2] CPUs, occupies argv[3] of this host's until its standard input is closed.
_HOLDER = """\
import sys, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(address=sys.argv[1], log_to_driver=False)
while ray.cluster_resources().get("CPU", 0) < float(sys.argv[2]):
    time.sleep(0.2)
@ray.remote(num_cpus=float(sys.argv[3]))
class Holder:
    def answer(self):
        pass
here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
holders = [Holder.options(scheduling_strategy=here).remote() for _ in range(float(sys.argv[3]) > 0)]
ray.get([holder.answer.remote() for holder in holders])
print("ready", flush=True)
sys.stdin.read()
"""
#: Of a head: a host that does not answer is lost after 9 s, not after 63 s.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
_NETWORK = "10.77.0.0/24"
_SECONDS = 60.0


def _call(*words: str, check: bool = True) -> int:
    """Run a command; return its exit code."""
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=_SECONDS).returncode


@dataclass
class Host:
    """One host; ``Hosts.add`` makes it."""

    name: str
    address: str
    #: Names of its network namespace and of its port of the switch.
    namespace: str
    port: str
    scratch: Path
    variables: dict[str, str]
    init: subprocess.Popen[str] | None = None
    ray: subprocess.Popen[str] | None = None

    def power_on(self) -> None:
        """Start its first process."""
        own, shared = self.scratch / f"tmp-{self.name}", self.scratch / "tmp"
        own.mkdir(exist_ok=True)
        self.init = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *_UNSHARE, "bash", "-c", _INIT, self.name, str(own), str(shared)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.init.stdout is not None
        assert self.init.stdout.readline() == "up\n", "the host has not started"

    @property
    def first_pid(self) -> int:
        """Number, as this machine counts, of its first process."""
        assert self.init is not None
        return int(Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()[0])

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command that run it on this host."""
        namespaces = ("--net", "--uts", "--ipc", "--mount", "--pid")
        variables = (f"{name}={value}" for name, value in self.variables.items())
        return ("nsenter", f"--wd={self.scratch}", "--target", str(self.first_pid), *namespaces, "env", *variables)

    def has(self, pid: int) -> bool:
        """Return whether the process runs on this host."""
        with suppress(OSError, IndexError):
            return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.first_pid}/ns/pid")
        return False

    def start_ray(self, *options: str, num_cpus: int, **variables: str) -> None:
        """Start a node of Ray with these options of ``ray start``."""
        if self.ray is not None:
            self.ray.wait(_SECONDS)
        log = self.scratch / f"ray-{self.name}.log"
        with log.open("a") as file:
            self.ray = subprocess.Popen(
                [*self.prefix, *(f"{name}={value}" for name, value in variables.items()),
                 str(Path(sys.executable).with_name("ray")), "start", *options, f"--node-ip-address={self.address}",
                 f"--num-cpus={num_cpus}", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats",
                 "--block"],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip

    def power_off(self) -> None:
        """End everything on it at once."""
        if self.init is None:
            return
        with suppress(OSError, IndexError):
            os.kill(self.first_pid, signal.SIGKILL)
        with suppress(OSError):
            os.killpg(self.init.pid, signal.SIGKILL)
        for process in (self.init, self.ray):
            if process is not None:
                process.wait(_SECONDS)
        assert self.init.stdout is not None
        self.init.stdout.close()
        self.init = self.ray = None


@dataclass
class Hosts:
    """A switch, and the hosts on it; see ``running_hosts``."""

    marker: str
    scratch: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:6])
    hosts: list[Host] = field(default_factory=list)
    relays: list[Relay] = field(default_factory=list)
    #: Host of Ray's head, which is the first one unless ``start_head`` was told another.
    head: Host = field(init=False)

    @property
    def switch(self) -> str:
        """Name of the switch's network namespace."""
        return f"rs{self.token}w"

    @property
    def address(self) -> str:
        """Address of Ray's head."""
        return f"{self.head.address}:6379"

    @property
    def job_server(self) -> str:
        """Address of the job server of Ray's head."""
        return f"http://{self.head.address}:8265"

    def build(self, number: int) -> None:
        """Set up the switch and the hosts."""
        _call("ip", "netns", "add", self.switch)
        self._link("add", "br0", "type", "bridge", "forward_delay", "0")
        self._link("set", "br0", "up")
        secret = uuid.uuid4().hex + uuid.uuid4().hex
        (self.scratch / "tmp").mkdir()
        for index in range(1, number + 1):
            letter = chr(ord("a") + index - 1)
            host = Host(
                name=f"host-{letter}",
                address=f"10.77.0.{index}",
                namespace=f"rs{self.token}{letter}",
                port=f"port-{letter}",
                scratch=self.scratch,
                variables={
                    "TMPDIR": str(self.scratch / "tmp"),
                    "ROBUSTSWEEP_TEST": self.marker,
                    "RAY_AUTH_MODE": "token",
                    "RAY_AUTH_TOKEN": secret,
                },
            )
            self.hosts.append(host)
            self._plug(host, number)
            host.power_on()
        self.head = self.hosts[0]

    def _plug(self, host: Host, number: int) -> None:
        _call("ip", "netns", "add", host.namespace)
        self._link("add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        self._link("set", host.port, "master", "br0")
        self._link("set", host.port, "up")
        _call("ip", "-n", host.namespace, "link", "set", "lo", "up")
        _call("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _call("ip", "-n", host.namespace, "link", "set", "eth0", "up")
        folder = Path("/etc/netns") / host.namespace  # bound over /etc by "ip netns exec"
        folder.mkdir(parents=True)
        (folder / "resolv.conf").touch()
        names = [f"10.77.0.{index} host-{chr(ord('a') + index - 1)}" for index in range(1, number + 1)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def _link(self, *words: str) -> None:
        _call("ip", "-n", self.switch, "link", *words)

    def cut(self, host: Host) -> None:
        """Pull the cable of a host."""
        self._link("set", host.port, "down")

    def restore(self, host: Host) -> None:
        """Put the cable of a host back."""
        self._link("set", host.port, "up")

    def disturb(self, host: Host, disturbance: Disturbance) -> Relay:
        """Replace the cable of a host by one that delays and loses frames; skip the test where that cannot be."""
        bridge = f"br-{host.port}"
        self._link("add", bridge, "type", "bridge", "forward_delay", "0")
        self._link("set", bridge, "up")
        relay = Relay(self.switch, ("br0", bridge), f"tap-{host.port}", disturbance)
        self._link("set", host.port, "master", bridge)
        self.relays.append(relay)
        return relay

    def allow_only(self, host: Host, port: int) -> None:
        """Let a host reach one port of the first host alone: it is cut off from Ray, and not from storage."""
        rule = ("ip", "-n", host.namespace, "rule", "add", "pref")
        _call(*rule, "100", "to", self.hosts[0].address, "ipproto", "tcp", "dport", str(port), "lookup", "main")
        _call(*rule, "101", "to", _NETWORK, "blackhole")

    def start_head(self, *, num_cpus: int = 1, **variables: str) -> None:
        """Start Ray's head on the first host, with these environment variables."""
        self._start_head(self.hosts[0], "--include-dashboard=false", num_cpus=num_cpus, **variables)

    def start_head_with_job_server(self, on: Host, *, num_cpus: int = 1) -> None:
        """Start Ray's head on a host, with its job server."""
        self._start_head(on, "--include-dashboard=true", f"--dashboard-host={on.address}", num_cpus=num_cpus)
        self._wait_for_port(8265)

    def _start_head(self, on: Host, *options: str, num_cpus: int, **variables: str) -> None:
        self.head = on
        on.start_ray("--head", "--port=6379", *options, num_cpus=num_cpus, **variables)
        self._wait_for_port(6379)

    def _wait_for_port(self, port: int) -> None:
        connect = ["bash", "-c", f"exec 3<>/dev/tcp/{self.head.address}/{port}"]
        wait_until(lambda: _call(*self.head.prefix, *connect, check=False) == 0, "Ray's head answers")

    def set_environment(self, variables: Mapping[str, str]) -> None:
        """Add environment variables to all that is started on the hosts from now on."""
        for host in self.hosts:
            host.variables |= variables

    def start_worker(self, host: Host, *, num_cpus: int = 1) -> None:
        """Start a node of Ray on another host."""
        host.start_ray(f"--address={self.address}", num_cpus=num_cpus)

    @contextmanager
    def holding(self, num_cpus: int = 0, *, of: int) -> Iterator[None]:
        """Wait until Ray has ``of`` CPUs, and occupy some of the head's host meanwhile."""
        holder = subprocess.Popen(
            [*self.head.prefix, sys.executable, "-c", _HOLDER, self.address, str(of), str(num_cpus)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n", "Ray has no room for the actor that occupies CPUs"
            yield
        finally:
            with suppress(subprocess.TimeoutExpired):
                holder.communicate(timeout=_SECONDS)  # closes its standard input
            with suppress(OSError):
                os.killpg(holder.pid, signal.SIGKILL)
            holder.wait(_SECONDS)

    def end(self) -> None:
        """End everything on the hosts, and take them and the switch away."""
        for relay in self.relays:
            relay.end()
        for host in self.hosts:
            host.power_off()
        for namespace in (self.switch, *(host.namespace for host in self.hosts)):
            _call("ip", "netns", "del", namespace, check=False)
        for host in self.hosts:
            shutil.rmtree(f"/etc/netns/{host.namespace}", ignore_errors=True)
        wait_until(lambda: not find_marked(self.marker), "nothing is left of the hosts")


@contextmanager
def running_hosts(marker: str, *, number: int = 2) -> Iterator[Hosts]:
    """Yield hosts; what runs on them carries ``marker`` in its environment. Skip where the kernel refuses them."""
    _check_allowed()
    scratch = Path(tempfile.mkdtemp(prefix="rsh-", dir="/tmp"))  # short: sockets lie in it
    hosts = Hosts(marker, scratch)
    try:
        hosts.build(number)
        yield hosts
    finally:
        try:
            hosts.end()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _check_allowed() -> None:
    """Skip the test where one may not set up hosts."""
    name = f"rs{uuid.uuid4().hex[:6]}t"
    problem = "" if os.geteuid() == 0 else "not root"
    try:
        if not problem:
            _call("ip", "netns", "add", name)
            _call("ip", "-n", name, "link", "add", "br0", "type", "bridge")
            _call("ip", "-n", name, "link", "add", "port", "type", "veth", "peer", "name", "eth0")
            _call("ip", "netns", "exec", name, *_UNSHARE, "true")
            _call("nsenter", "--version")
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"{error} {getattr(error, 'stderr', '') or ''}".strip()
    finally:
        if os.geteuid() == 0:
            with suppress(OSError):
                _call("ip", "netns", "del", name, check=False)
    if problem:
        pytest.skip(f"no hosts of their own on this machine: {problem}")
