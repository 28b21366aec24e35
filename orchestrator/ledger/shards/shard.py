"""Part of a study that one of several drivers begins with: a hint, for each of them goes on with what is left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.planning.works import Work
from trainables.errors import StudyError


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the part that "2/4" names.

        Raises:
            StudyError: it names none.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise StudyError(
                f"--shard: found {text!r}, expected the number of this driver and that of all drivers, from 1/4 to 4/4"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def order(self, works: Sequence[Work]) -> list[Work]:
        """Return all stages and trials in the order in which this part's driver is to begin them.

        Stages come first, since trials wait for them; of each kind those of this part in the plan's order, then those
        of the parts after it, each from its end: its own driver comes from the other side.
        """
        ordered: list[Work] = []
        for kind in ("stage", "trial"):
            each = [work for work in works if work.kind == kind]
            parts = [each[number :: self.count] for number in range(self.count)]
            own, *others = parts[self.index - 1 :] + parts[: self.index - 1]
            ordered += own + [work for part in others for work in reversed(part)]
        return ordered
