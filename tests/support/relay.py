"""A cable that delays, reorders and loses Ethernet frames, for kernels without ``tc netem``. Tests only, Linux only.

Run as a program in the network namespace of a switch: it makes two tap devices, one on each of two bridges, and passes
on to each what arrives at the other.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

_TUN = Path("/dev/net/tun")
#: ``TUNSETIFF``, and the flags of a device for frames (``IFF_TAP``) without a header of its own (``IFF_NO_PI``).
_SET_DEVICE, _FLAGS = 0x400454CA, 0x0002 | 0x1000
_MAX_FRAME = 65536
_SECONDS = 30.0


@dataclass(frozen=True)
class Disturbance:
    """What happens to each frame, in each direction.

    Args:
        delay_ms: mean delay.
        jitter_ms: most by which a delay differs from the mean, evenly distributed; frames overtake each other.
        loss_percent: share of the frames that are lost.
    """

    delay_ms: float
    jitter_ms: float
    loss_percent: float


class Relay:
    """A running cable between two bridges.

    Args:
        namespace: network namespace of the switch.
        bridges: both bridges.
        name: begins the names of its devices; at most 14 characters.
        disturbance: what happens to each frame.
    """

    def __init__(self, namespace: str, bridges: tuple[str, str], name: str, disturbance: Disturbance) -> None:
        if not _TUN.exists():
            pytest.skip(f"this machine has no {_TUN}")
        words = [str(value) for value in vars(disturbance).values()]
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, __file__, *words, name, *bridges],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n", "the relay has not started"
        self._counts: dict[str, int] = {}

    def end(self) -> dict[str, int]:
        """Take the cable away; return how many frames were ``passed`` on and ``lost``."""
        if not self._counts:
            out, _ = self._process.communicate(timeout=_SECONDS)  # closes its standard input
            self._counts = json.loads(out)
        return self._counts


def _open_device(name: str, bridge: str) -> int:
    """Make a tap device on a bridge; return its file descriptor."""
    device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _SET_DEVICE, struct.pack("16sH22x", name.encode(), _FLAGS))
    subprocess.run(["ip", "link", "set", name, "master", bridge, "up"], check=True)
    return device


def _relay(devices: tuple[int, int], disturbance: Disturbance) -> dict[str, int]:
    """Pass frames on until standard input is closed; return how many were passed on, and lost."""
    rng, counts = random.Random(0), {"passed": 0, "lost": 0}
    #: Moment, number (frames of the same moment keep their order), device, frame.
    waiting: list[tuple[float, int, int, bytes]] = []
    while True:
        rest = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready: list[int] = select.select([*devices, sys.stdin.fileno()], [], [], rest)[0]
        if sys.stdin.fileno() in ready:
            return counts
        for device in ready:
            frame = os.read(device, _MAX_FRAME)
            if rng.random() < disturbance.loss_percent / 100:
                counts["lost"] += 1
                continue
            delay_ms = disturbance.delay_ms + rng.uniform(-disturbance.jitter_ms, disturbance.jitter_ms)
            other = devices[1] if device == devices[0] else devices[0]
            counts["passed"] += 1
            heapq.heappush(waiting, (time.monotonic() + delay_ms / 1000, counts["passed"], other, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, device, frame = heapq.heappop(waiting)
            os.write(device, frame)


if __name__ == "__main__":
    *_numbers, _name, _first, _second = sys.argv[1:]
    _devices = _open_device(f"{_name}0", _first), _open_device(f"{_name}1", _second)
    print("up", flush=True)
    print(json.dumps(_relay(_devices, Disturbance(*map(float, _numbers)))))
