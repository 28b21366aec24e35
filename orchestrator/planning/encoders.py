"""Independent contrastive encoders of a plan: how many the replicates of each arm start from, and the cost of more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.planning.plan import Plan
from orchestrator.planning.works import Work


@dataclass(frozen=True)
class EncoderUse:
    """The arms that share the same contrastive stages."""

    #: Name of their first stage.
    stage: str
    arms: tuple[str, ...]
    #: Signatures of their stages: the independent encoders.
    encoders: tuple[str, ...]
    num_replicates: int
    #: Signatures of the trials that would start from another encoder if every replicate had its own.
    reused: tuple[str, ...]

    @property
    def num_more(self) -> int:
        """Number of stages that one encoder per replicate adds."""
        return self.num_replicates - len(self.encoders)


def find_encoder_uses(plan: Plan) -> list[EncoderUse]:
    """Return the arms that start from contrastive encoders, grouped by their stages, in the order of the plan."""
    of_arm: dict[str, list[Work]] = {}
    for trial in plan.trials:
        if trial.encoders:
            of_arm.setdefault(trial.name, []).append(trial)
    groups: dict[tuple[str, ...], list[str]] = {}
    for arm, trials in of_arm.items():
        groups.setdefault(tuple(dict.fromkeys(need for trial in trials for need in trial.encoders)), []).append(arm)
    names = {stage.signature: stage.name for stage in plan.stages}
    return [
        EncoderUse(
            stage=names[encoders[0]],
            arms=tuple(arms),
            encoders=encoders,
            num_replicates=len({trial.replicate for trial in of_arm[arms[0]]}),
            reused=tuple(trial.signature for arm in arms for trial in _find_reuse(of_arm[arm])),
        )
        for encoders, arms in groups.items()
    ]


def _find_reuse(trials: Sequence[Work]) -> list[Work]:
    """Return the trials of an arm that start from the encoder of an earlier replicate."""
    first: dict[tuple[str, ...], int | None] = {}
    return [trial for trial in trials if first.setdefault(trial.encoders, trial.replicate) != trial.replicate]
