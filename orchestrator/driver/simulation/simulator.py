"""One simulated run: slots that speak to the dispatcher as the real ones do, on nodes that may be lost.

Only time, processes and nodes are simulated. Which chunk a slot gets, what becomes of a lost one, when the budget is
spent and which trials stop early is decided by the code that decides it in a run.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.driver.simulation.cluster import Cluster
from orchestrator.driver.simulation.event_loop import Body, Process
from orchestrator.driver.simulation.outcome import Outcome
from orchestrator.driver.simulation.slots import Runner, World
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.local_executor import PATIENCE_SECONDS, WORTH_SECONDS
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.failures import CRASHED
from orchestrator.planning.states import COMPLETE, FAILED, STOPPED
from orchestrator.planning.works import Work

#: Node → seconds from now until it is lost, infinite: never; called when it starts.
NextLoss = Callable[[int], float]
#: Seconds between two reports of a local slot (``LocalExecutor``), of a joint one, and reports of all of Tune's slots
#: per second (``tune_executor``).
LOCAL_REPORT_SECONDS, JOINT_REPORT_SECONDS, REPORTS_PER_SECOND = 0.25, 1.0, 16.0
_LOST = {"reason": CRASHED, "message": "the node was lost", "traceback": ""}


@dataclass(eq=False)
class Place:
    """Room for one slot on a node."""

    node: int
    process: Process | None = None
    runner: Runner | None = None
    #: Name of the slot for the dispatcher.
    name: str = ""
    #: Signature of the last stage or trial that ran here.
    last: str | None = None


class Simulator:
    """Simulated cluster, for one run of one dispatcher.

    Args:
        world: clock, durations and what else all slots share. The clock is that of the dispatcher's meter, too.
        cluster: nodes.
        next_loss: returns when nodes are lost.
        max_retries: how often a lost slot is replaced (``tune_executor.execute``).
    """

    def __init__(self, world: World, cluster: Cluster, next_loss: NextLoss, *, max_retries: int) -> None:
        self._world, self._loop, self._cluster, self._next_loss = world, world.loop, cluster, next_loss
        self._max_retries = max_retries
        self._dispatcher: Dispatcher
        self._queue: WorkQueue
        #: Slots whose node was lost, for the next free places.
        self._orphans: deque[tuple[str, Runner]] = deque()
        places = cluster.nodes * cluster.slots_per_node
        self._places = [Place(number // cluster.slots_per_node) for number in range(places)][: cluster.num_slots]
        #: Node → since when it has been up.
        self._up_since: dict[int, float] = {}
        self._node_seconds = 0.0
        self._num_joint_running = 0
        self._states: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._shipped = 0.0

    def run(self, dispatcher: Dispatcher, queue: WorkQueue) -> Outcome:
        """Run everything that the dispatcher has in its queue, and return what it took."""
        self._dispatcher, self._queue = dispatcher, queue
        self._loop.start(self._begin_locally() if self._cluster.is_local else self._begin_in_ray())
        self._loop.run(lambda: dispatcher.is_finished)
        return self._conclude()

    def handle(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Count an event of the dispatcher (``dispatcher.OnEvent``)."""
        if what != "ended":
            return
        self._states[details["status"]] += 1
        if work.signature in self._world.trace.began:
            self._world.trace.ended[work.signature] = self._loop.now
            self._shipped = max(self._shipped, self._loop.now) + self._world.overheads.ship

    def report_spent(self, num_works: int) -> None:
        """Count the stages and trials that do not start because the budget is spent (``Meter.on_spent``)."""
        self._counts["held back"] += num_works

    def _conclude(self) -> Outcome:
        world, cluster, end = self._world, self._cluster, self._loop.now
        seconds = self._node_seconds + sum(end - since for since in self._up_since.values())
        return Outcome(
            makespan=end,
            useful=world.useful,
            lost=world.lost,
            available=seconds * cluster.num_slots / cluster.nodes,
            node_hours=seconds / 3600,
            gpu_hours=seconds * cluster.gpus / 3600,
            complete=self._states[COMPLETE],
            failed=self._states[FAILED],
            stopped_early=self._states[STOPPED],
            held_back=self._counts["held back"],
            nodes_lost=self._counts["nodes"],
            attempts_lost=self._counts["attempts"],
            chunks=self._counts["chunks"],
            driver_busy=world.driver_busy / end,
            tracking_behind=max(0.0, self._shipped - end),
            longest_chain=world.trace.find_longest_chain(world.draw),
            path=world.trace.find_path(),
        )

    # ------------------------------------------------------------------ phases

    def _begin_locally(self) -> Body:
        """Start the driver's own slots; Tune's replace them if enough work is left (``LocalExecutor.wait``)."""
        self._up_since[0] = 0.0
        yield self._world.overheads.local_start
        self._dispatcher.set_num_slots(self._cluster.num_slots)
        for number in range(self._cluster.num_slots):
            self._loop.start(self._run_local_slot(number))
        began = self._loop.now
        while True:
            left, waited = self._dispatcher.seconds_left, self._loop.now - began
            if (left or 0.0) > WORTH_SECONDS or (left is None and waited > PATIENCE_SECONDS):
                break
            yield self._loop.now + 1.0
        yield self._loop.now + self._world.overheads.start
        self._dispatcher.expect_tune_slots(may_overlap=self._cluster.max_concurrent is None)
        self._begin_tune()

    def _begin_in_ray(self) -> Body:
        self._up_since = dict.fromkeys(range(self._cluster.nodes), 0.0)
        yield self._world.overheads.start
        self._begin_tune()
        if self._dispatcher.has_joint("stage"):
            self._begin_joint()
        for node in range(self._cluster.nodes):
            self._loop.start(self._run_node(node))

    def _begin_tune(self) -> None:
        cluster = self._cluster
        self._dispatcher.set_num_slots(cluster.num_slots)
        self._dispatcher.set_gpus(cluster.gpus_per_slot, joint=cluster.processes_per_stage * cluster.gpus_per_slot)
        for place in self._places:
            place.process = self._loop.start(self._run_tune_slot(place))

    def _begin_joint(self) -> None:
        """Run the stages of several processes; Tune's slots wait for all of them (``execute.execute_in_ray``)."""
        self._num_joint_running = self._cluster.num_joint
        for number in range(self._cluster.num_joint):
            self._loop.start(self._run_joint_slot(number))

    # ------------------------------------------------------------------ slots

    def _run_local_slot(self, number: int) -> Body:
        dispatcher, last = self._dispatcher, None
        while dispatcher.may_continue(number):
            content = dispatcher.next_local_chunk(number)
            if content is None:
                yield None
                continue
            self._loop.wake()
            runner = self._take(content, partial(dispatcher.report_local, number), pause=LOCAL_REPORT_SECONDS)
            yield from runner.run("node0", last=last, may_continue=partial(dispatcher.may_continue, number))
            last = runner.last
            self._loop.wake()
        dispatcher.release_local(number)
        self._loop.wake()

    def _run_joint_slot(self, number: int) -> Body:
        dispatcher, last = self._dispatcher, None
        while dispatcher.has_joint("stage"):
            content = dispatcher.next_joint_chunk(number, "stage")
            if content is None:
                yield self._loop.now + JOINT_REPORT_SECONDS  # for the end of a stage in another slot
                continue
            runner = self._take(content, partial(dispatcher.report_joint, number), pause=JOINT_REPORT_SECONDS)
            yield from runner.run("node0", last=last)
            last = runner.last
            dispatcher.release_joint(number)
        self._num_joint_running -= 1
        self._loop.wake()

    def _run_tune_slot(self, place: Place) -> Body:
        yield self._loop.now + self._world.overheads.actor
        while True:
            if self._orphans:
                place.name, place.runner = self._orphans.popleft()
            elif not self._take_for_tune(place):
                yield None
                continue
            self._loop.wake()
            assert place.runner is not None
            yield self._world.serve(self._world.overheads.chunk)
            yield from place.runner.run(f"node{place.node}", last=place.last)
            place.last = place.runner.last
            place.runner = None
            self._dispatcher.release(place.name)
            self._loop.wake()

    def _take_for_tune(self, place: Place) -> bool:
        """Get a chunk; return whether there was one."""
        if self._num_joint_running:
            return False
        name = f"t{self._counts['chunks']}"
        content = self._dispatcher.next_chunk(name)
        if content is None:
            if self._dispatcher.waits_for_joint:
                self._begin_joint()
            return False
        pause = max(1.0, self._cluster.num_slots / REPORTS_PER_SECOND)
        place.name = name
        place.runner = self._take(content, partial(self._dispatcher.report_events, name), pause=pause, is_tune=True)
        return True

    def _take(self, content: dict[str, Any], report: Any, *, pause: float, is_tune: bool = False) -> Runner:
        self._counts["chunks"] += 1
        found = [self._queue.get(each["record"]["signature"]) for each in content["works"]]
        works = [work for work in found if work is not None]
        return Runner(self._world, content, works, report, pause=pause, is_tune=is_tune)

    # ------------------------------------------------------------------ nodes

    def _run_node(self, node: int) -> Body:
        """Lose a node and replace it, again and again."""
        while True:
            until_loss = self._next_loss(node)
            if math.isinf(until_loss):
                return
            yield self._loop.now + until_loss
            self._lose(node)
            yield self._loop.now + self._cluster.replacement_seconds
            self._up_since[node] = self._loop.now
            for place in self._places:
                if place.node == node:
                    place.process = self._loop.start(self._run_tune_slot(place))

    def _lose(self, node: int) -> None:
        self._counts["nodes"] += 1
        self._node_seconds += self._loop.now - self._up_since.pop(node)
        lost = []
        for place in self._places:
            if place.node == node and place.process is not None:
                self._loop.end(place.process)
                if place.runner is not None:
                    self._counts["attempts"] += place.runner.lose()
                    lost.append((place.name, place.runner))
                place.process = place.runner = None
        if lost:
            self._loop.start(self._notice(lost))

    def _notice(self, lost: list[tuple[str, Runner]]) -> Body:
        """Give the slots of a lost node to others, as Tune does; one that was lost too often ends with an error."""
        yield self._loop.now + self._world.overheads.notice
        for name, runner in lost:
            if runner.num_losses <= self._max_retries:
                self._dispatcher.record_loss(name)
                self._orphans.append((name, runner))
            else:
                for work in runner.left:
                    if work.signature in self._world.finished:
                        self._world.hooks.finish(work, "")
                self._dispatcher.release(name, error=lambda: dict(_LOST))
            self._loop.wake()
