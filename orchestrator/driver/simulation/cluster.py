"""The cluster of a simulation, and what scheduling costs there; every number with its origin."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.driver.estimate import STARTUP_SECONDS

#: Mean time until a lost node is replaced by a new one (assumption).
REPLACEMENT_MINUTES = 5.0
#: Time until the driver notices that a node does not answer any more, with Ray's defaults (``tests/support/hosts.py``).
#: One whose processes are killed, and whose connections end, is noticed within seconds.
NOTICE_SECONDS = 63.0
#: Time from the start of ``run`` to the first trial in a local slot (``benchmarks/startup.py``, 2 cores).
LOCAL_START_SECONDS = 3.1
#: Time to start an actor of Tune with a fork server of its node: imports of ray and torch (assumption).
ACTOR_SECONDS = 10.0
#: Time until a slot of Tune has its next chunk (``execution.work_queue``), and how long Tune's loop takes to handle a
#: message: it can do some 40 a second (``cluster.tune_executor``).
CHUNK_SECONDS, MESSAGE_SECONDS = 0.2, 1 / 40
#: Time in a slot for each stage or trial beside its own, with a process of its own (``benchmarks/bookkeeping.py``: 16
#: slots on 2 cores, 0.074 − 0.0625 s for each of them; a process takes 45 ms of CPU).
PER_TRIAL_SECONDS = 0.1
#: CPU time that shipping a trial to MLflow takes, by one thread (``benchmarks/tracking.py``: HTTP, five files a trial).
SHIP_SECONDS = 0.047


@dataclass(frozen=True)
class Cluster:
    """Nodes, all alike, and how often they are lost."""

    nodes: int
    #: Slots of a node, i.e. how many trials run there at once.
    slots_per_node: int
    #: GPUs of a node.
    gpus: int = 0
    #: GPUs that a slot holds.
    gpus_per_slot: float = 0.0
    #: Losses per node and hour: each node is lost after an exponentially distributed time with mean 1 / this.
    spot_loss: float = 0.0
    replacement_seconds: float = 60 * REPLACEMENT_MINUTES
    #: "given" or "assumption": whence ``replacement_seconds``.
    replacement_origin: str = "assumption"
    #: Most trials at once on the whole cluster, None: as many as there are slots.
    max_concurrent: int | None = None
    #: Whether the driver's own slots begin, as on one machine without GPUs.
    is_local: bool = False
    #: Processes of a joint stage, and how many such stages run at once.
    processes_per_stage: int = 1
    num_joint: int = 1

    @property
    def num_slots(self) -> int:
        """Number of slots in use."""
        total = self.nodes * self.slots_per_node
        return total if self.max_concurrent is None else min(total, self.max_concurrent)


@dataclass(frozen=True)
class Overheads:
    """Costs of scheduling, in seconds."""

    start: float = STARTUP_SECONDS
    local_start: float = LOCAL_START_SECONDS
    actor: float = ACTOR_SECONDS
    per_trial: float = PER_TRIAL_SECONDS
    chunk: float = CHUNK_SECONDS
    message: float = MESSAGE_SECONDS
    notice: float = NOTICE_SECONDS
    ship: float = SHIP_SECONDS
