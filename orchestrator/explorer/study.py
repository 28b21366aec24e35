"""A study as the explorer sees it: its complete trials, what is prepared of them, and what is computed from that."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.explorer.attributions import TITLES
from orchestrator.explorer.images import Images
from orchestrator.explorer.jobs import Job, Jobs, Painter
from orchestrator.explorer.prepared import Prepared
from orchestrator.ledger.annotations import Annotation, annotate
from orchestrator.ledger.derived import find_task
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import ABSENT, COMPLETE
from trainables.errors import StudyError


@dataclass(frozen=True)
class TrialEntry:
    """One planned trial."""

    number: int
    signature: str
    #: Name of its arm, and of its candidate if it was tuned.
    name: str
    replicate: int
    state: str


class ExploredStudy:
    """The trials of a study, opened when they are asked for.

    Args:
        ledger: ledger of the study.
        cache_dir: folder on this node's disk.
    """

    def __init__(self, ledger: Ledger, cache_dir: Path) -> None:
        self.ledger, self.cache_dir = ledger, cache_dir
        self.plan = ledger.read_plan()
        states = ledger.states()
        self.trials = [
            TrialEntry(number, each["signature"], _name(each), each["replicate"], states.get(each["signature"], ABSENT))
            for number, each in enumerate(self.plan["trials"])
        ]
        if not any(trial.state == COMPLETE for trial in self.trials):
            raise StudyError(f"looked for complete trials of {ledger.study} and found none; run the study first")
        self.images = Images(ledger, cache_dir)
        self.jobs, self._painter = Jobs(), Painter()
        # Another process: an attribution of seconds must not hold up the shifted images.
        self._attributor = Painter()
        self._opened: dict[int, Prepared] = {}
        self._lock = threading.Lock()

    @property
    def first(self) -> int:
        """Number of the first complete trial."""
        return next(trial.number for trial in self.trials if trial.state == COMPLETE)

    @property
    def is_segmentation(self) -> bool:
        """Whether the study's models segment: then its page shows cases and their masks."""
        return find_task(self.plan) == "segmentation"

    def find_signature(self, signature: str) -> int:
        """Return the number of a complete trial by its signature, or by its first digits.

        Raises:
            StudyError: none has it, or several do.
        """
        found = [each for each in self.trials if each.signature.startswith(signature) and each.state == COMPLETE]
        if len(found) != 1:
            raise StudyError(
                f"asked for the trial {signature} of {self.ledger.study} and found {len(found)} complete ones; give "
                "the signature of one, as the report shows it"
            )
        return found[0].number

    def find(self, number: int) -> TrialEntry:
        """Return a complete trial by its number.

        Raises:
            StudyError: there is none of this number.
        """
        if not 0 <= number < len(self.trials) or self.trials[number].state != COMPLETE:
            raise StudyError(f"asked for trial {number} of {self.ledger.study}; expected the number of a complete one")
        return self.trials[number]

    def _request(self, kind: str, **more: Any) -> dict[str, Any]:
        where = {"storage": self.ledger.storage, "study": self.ledger.study, "cache_dir": str(self.cache_dir)}
        return {"kind": kind} | where | more

    def prepare(self, number: int) -> Job:
        """Return the job that prepares a trial, started if need be; done once the trial can be opened."""
        return self.jobs.find(self._request("prepare", signature=self.find(number).signature))

    def prepare_now(self, number: int) -> Prepared:
        """Return a trial when it is prepared.

        Raises:
            RobustSweepError: it cannot be prepared.
        """
        self.jobs.wait(self._request("prepare", signature=self.find(number).signature))
        return self.open(number)

    def open(self, number: int) -> Prepared:
        """Return a prepared trial.

        Raises:
            StudyError: it is not prepared yet.
        """
        with self._lock:
            if number not in self._opened:
                job = self.prepare(number)
                if not job.is_done or job.error is not None:
                    raise StudyError(job.error or f"trial {number} is not prepared yet")
                self._opened[number] = Prepared(Path(job.result))
            return self._opened[number]

    def compute(self, number: int, kind: str, **more: Any) -> Job:
        """Return the job that computes ``kind`` (tsne, clusters) from a prepared trial, started if need be."""
        prepared = self.open(number)
        return self.jobs.find(self._request(kind, folder=str(prepared.folder), **more))

    def compute_now(self, number: int, kind: str) -> None:
        """Compute ``kind`` (tsne, clusters) from a prepared trial, unless it is there.

        Raises:
            RobustSweepError: it cannot be computed.
        """
        self.jobs.wait(self._request(kind, folder=str(self.open(number).folder)))

    def draw_cases(self, number: int, **wanted: Any) -> dict[str, Any]:
        """Return the pictures of single cases for an exported page; ``wanted`` is that of the worker's ``cases``.

        Raises:
            RobustSweepError: the process has died.
        """
        found: dict[str, Any] = self.jobs.wait(self._request("cases", signature=self.find(number).signature, **wanted))
        return found

    def list_cases(self, number: int) -> Job:
        """Return the job that lists the segmented cases of a trial, started if need be (``segmentation.index``)."""
        return self.jobs.find(self._request("list_cases", signature=self.find(number).signature))

    def cluster_cases(self, number: int) -> Job:
        """Return the job that finds clusters and groups of segmented cases (``segmentation.groups``)."""
        return self.jobs.find(self._request("cluster_cases", signature=self.find(number).signature))

    def collect_cases(self, number: int) -> dict[str, Any]:
        """Return what an exported page holds of the segmented cases of a trial (``segmentation.export``).

        Raises:
            RobustSweepError: its cases cannot be listed.
        """
        found: dict[str, Any] = self.jobs.wait(self._request("collect_cases", signature=self.find(number).signature))
        return found

    def find_case(self, number: int, case: int) -> dict[str, Any]:
        """Return the entry of a segmented case of a trial by its number, with the name of its set as ``set_name``.

        Raises:
            StudyError: there is none of this number, or the cases are not listed yet.
        """
        job = self.list_cases(number)
        if not job.is_done or job.error is not None:
            raise StudyError(job.error or f"the cases of trial {number} are not listed yet")
        cases = job.result["cases"]
        if not 0 <= case < len(cases):
            raise StudyError(f"asked for case {case}; trial {number} has {len(cases)}")
        found: dict[str, Any] = cases[case]
        return found | {"set_name": job.result["sets"][found["set"]]["name"]}

    def paint_case(self, number: int, case: int, panel: str, side_px: int) -> bytes:
        """Return one picture of a segmented case as PNG; ``panel`` is a name in ``PANELS``.

        Raises:
            RobustSweepError: it cannot be had on this machine.
        """
        found = self.find_case(number, case)
        more = {"set": found["set_name"], "row": found["row"], "panel": panel, "side": side_px}
        return self._painter.paint(self._request("paint_case", signature=self.find(number).signature, **more))

    def paint(self, number: int, point: int, side_px: int) -> bytes:
        """Return the image of a point as PNG.

        Raises:
            RobustSweepError: it cannot be had on this machine.
        """
        from orchestrator.explorer.images import encode_png

        trial, place = self.find(number), self.open(number).find(point)
        if not place.set.has_images:
            raise StudyError(f"the images of {place.set.name} are not on this machine")
        key = place.set.shifts[place.shift]
        if key == "identity/0":
            return encode_png(self.images.read(trial.signature, place.set.name, place.row), side_px)
        more = {"set": place.set.name, "row": place.row, "shift": key, "side": side_px}
        return self._painter.paint(self._request("paint", signature=trial.signature, **more))

    def attribute(self, number: int, point: int, *, method: str, target: int) -> bytes:
        """Return where a trial's model looked for the class of code ``target``: a PNG to lay over a point's image.

        Raises:
            RobustSweepError: it cannot be computed on this machine.
        """
        trial, prepared = self.find(number), self.open(number)
        place = prepared.find(point)
        if not place.set.has_images:
            raise StudyError(f"the images of {place.set.name} are not on this machine")
        if method not in TITLES or not 0 <= target < len(prepared.index.classes):
            raise StudyError(
                f"asked for the attribution {method} for class {target}; expected one of {', '.join(TITLES)} and "
                f"0 to {len(prepared.index.classes) - 1}"
            )
        more = {"set": place.set.name, "row": place.row, "shift": place.set.shifts[place.shift]}
        more |= {"method": method, "target": target}
        return self._attributor.paint(self._request("attribute", signature=trial.signature, **more))

    def match(self, number: int, other: int) -> np.ndarray:
        """Return the number of each point of a trial in another one (same set, image and shift), −1 if it lacks it."""
        mine, theirs = self.open(number), self.open(other)
        found = np.full(mine.index.num_points, -1, dtype=np.int32)
        sets = {each.name: each for each in theirs.index.sets}
        for each in mine.index.sets:
            there = sets.get(each.name)
            if there is None:
                continue
            ids = theirs.ids[there.first_image : there.first_image + there.count]
            rows = {name: row for row, name in enumerate(ids)}
            own = mine.ids[each.first_image : each.first_image + each.count]
            matched = np.array([rows.get(name, -1) for name in own], dtype=np.int64)
            for position, shift in enumerate(each.shifts):
                if shift in there.shifts:
                    start = each.first_point + position * each.count
                    offset = there.first_point + there.shifts.index(shift) * there.count
                    found[start : start + each.count] = np.where(matched < 0, -1, matched + offset)
        return found

    def annotate(self, number: int, point: int, *, note: str, label_is_wrong: bool) -> list[Annotation]:
        """Write what is said about the image of a point, or a segmented case, and return all annotations.

        Raises:
            RobustSweepError: there is no such point, the note is too long, or the storage refused the write.
        """
        set_name, image = self._name_image(number, point)
        with self._lock:
            return annotate(self.ledger.root, set_name, image, note=note, label_is_wrong=label_is_wrong)

    def _name_image(self, number: int, point: int) -> tuple[str, str]:
        """Return set and id of the image of a point, or of a segmented case."""
        if self.is_segmentation:
            case = self.find_case(number, point)
            return case["set_name"], case["id"]
        place = self.open(number).find(point)
        return place.set.name, self.open(number).ids[place.image]

    def close(self) -> None:
        """End all processes."""
        self.jobs.close()
        self._painter.close()
        self._attributor.close()


def _name(trial: dict[str, Any]) -> str:
    candidate = trial.get("candidate")
    return str(trial["name"]) if candidate is None else f"{trial['name']}, candidate {candidate}"
