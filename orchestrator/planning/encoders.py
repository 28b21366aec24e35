"""Chains of a plan, which steps feed which arms; how many encoders replicates start from, and the cost of more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.planning.plan import Plan
from orchestrator.planning.works import Work, name_step
from orchestrator.study.contrasts import find_units
from trainables.config import StageConfig, TrialConfig
from trainables.frozen import canonical_json
from trainables.pretraining_config import PretrainingConfig, TrainedStep, list_steps


@dataclass
class ChainStep:
    """A step of a chain: its stages, the arms that start from it, and the steps that do."""

    name: str
    #: None for a step without training.
    epochs: int | None = None
    #: One stage per encoder (and split, where the study's images are drawn anew for every replicate).
    stages: list[Work] = field(default_factory=list)
    #: Arm → number of its trials.
    arms: dict[str, int] = field(default_factory=dict)
    following: dict[str, ChainStep] = field(default_factory=dict)

    def as_json(self, states: Mapping[str, str], seconds: Mapping[str, float]) -> dict[str, Any]:
        """Return the step and all that follows as JSON values.

        Args:
            states: signature → what ``run`` does with a stage.
            seconds: signature → expected or measured seconds of a stage, as far as they are known.
        """
        return {
            "step": self.name,
            "epochs": self.epochs,
            "stages": [
                {"signature": stage.signature, "encoder": stage.config.encoder, "state": states[stage.signature]}
                | {"seconds": seconds.get(stage.signature)}
                for stage in self.stages
            ],
            "arms": dict(self.arms),
            "following": [step.as_json(states, seconds) for step in self.following.values()],
        }


def find_chains(plan: Plan) -> list[ChainStep]:
    """Return the first steps of all chains, each with the steps and arms behind it; none in a plan without stages."""
    first: dict[str, ChainStep] = {}
    stages = {stage.signature: stage for stage in plan.stages if isinstance(stage.config, StageConfig)}
    for trial in plan.trials if stages else ():
        config = trial.config
        assert isinstance(config, TrialConfig)
        needs = [stages[need] for need in reversed(trial.encoders)]
        steps, step = first, None
        for link in list_steps(config.pretraining):
            stage = needs.pop(0) if isinstance(link, TrainedStep) else None
            step = steps.setdefault(_identify(link, stage), ChainStep(name_step(link, config)))
            if stage is not None and isinstance(link, TrainedStep):
                step.epochs = stage.config.pretraining.epochs  # type: ignore[union-attr]
                step.stages += [] if stage in step.stages else [stage]
            steps = step.following
        assert step is not None
        step.arms[trial.name] = step.arms.get(trial.name, 0) + 1
    return list(first.values())


def _identify(step: PretrainingConfig, stage: Work | None) -> str:
    """Return a key of a step: equal for the encoders of one step, and for the splits of one study."""
    if stage is None:
        return step.model_dump_json()
    config = stage.config.model_dump(mode="json", exclude={"encoder", "earlier_encoders"})
    config["data"]["split_seed"] = None
    return canonical_json(config)


def list_chain_lines(steps: Sequence[ChainStep], describe: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a tree of steps and arms.

    Args:
        steps: steps of ``find_chains``.
        describe: signature of a stage → what is said of it: its state and cost.
    """
    for step in steps:
        yield _word_step(step, describe)
        yield from _list_below(step, describe)


def _list_below(step: ChainStep, describe: Mapping[str, str], indent: str = "") -> Iterator[str]:
    entries: list[str | ChainStep] = [
        f"{arm}: {number} trial{'s' * (number != 1)}" for arm, number in list(step.arms.items())[:_MAX_ARMS]
    ]
    if len(step.arms) > _MAX_ARMS:
        entries.append(f"… and {len(step.arms) - _MAX_ARMS} more arms")
    entries += step.following.values()
    for number, entry in enumerate(entries, 1):
        is_last = number == len(entries)
        branch = f"{indent}{'└' if is_last else '├'}─ "
        if isinstance(entry, str):
            yield branch + entry
        else:
            yield branch + _word_step(entry, describe)
            yield from _list_below(entry, describe, indent + ("   " if is_last else "│  "))


#: Most arms that are named at a step.
_MAX_ARMS = 6


def _word_step(step: ChainStep, describe: Mapping[str, str]) -> str:
    if step.epochs is None:
        return step.name
    said = dict.fromkeys(describe[stage.signature] for stage in step.stages)
    number = len(step.stages)
    stages = "1 stage" if number == 1 else f"{number} stages"
    return f"{step.name}, {step.epochs} epoch{'s' * (step.epochs != 1)}: {stages}, {'; '.join(said)}"


@dataclass(frozen=True)
class EncoderUse:
    """The arms that start from the same stages."""

    #: Name of their first stage.
    stage: str
    arms: tuple[str, ...]
    #: Signatures of the stages that their trials start from.
    encoders: tuple[str, ...]
    #: The same for every trained step of their chain, the last one first.
    steps: tuple[tuple[str, ...], ...]
    #: Number of replicates, and of independent units that they are: those with a trained step in common are one.
    num_replicates: int
    num_units: int
    #: Signatures of the trials that would start from another encoder if every replicate had its own.
    reused: tuple[str, ...]

    @property
    def num_more(self) -> int:
        """Number of stages that one encoder per replicate, in every trained step, adds."""
        return sum(self.num_replicates - len(stages) for stages in self.steps)


def find_encoder_uses(plan: Plan) -> list[EncoderUse]:
    """Return the arms that start from encoders of the study, grouped by their stages, in the order of the plan."""
    of_arm: dict[str, list[Work]] = {}
    for trial in plan.trials:
        if trial.encoders:
            of_arm.setdefault(trial.name, []).append(trial)
    groups: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for arm, trials in of_arm.items():
        columns = zip(*(trial.encoders for trial in trials), strict=True)
        groups.setdefault(tuple(tuple(dict.fromkeys(stages)) for stages in columns), []).append(arm)
    names = {stage.signature: stage.name for stage in plan.stages}
    uses = []
    for steps, arms in groups.items():
        by_replicate = {trial.replicate: trial.encoders for trial in of_arm[arms[0]]}
        use = EncoderUse(
            stage=names[steps[0][0]],
            arms=tuple(arms),
            encoders=steps[0],
            steps=steps,
            num_replicates=len(by_replicate),
            num_units=len(set(find_units(list(by_replicate.values())))),
            reused=tuple(trial.signature for arm in arms for trial in _find_reuse(of_arm[arm])),
        )
        uses.append(use)
    return uses


def _find_reuse(trials: Sequence[Work]) -> list[Work]:
    """Return the trials of an arm that are built on an encoder of an earlier replicate."""
    first: dict[str, int | None] = {}
    reused = []
    for trial in trials:
        owners = [first.setdefault(stage, trial.replicate) for stage in trial.encoders]
        reused += [trial] if any(owner != trial.replicate for owner in owners) else []
    return reused
