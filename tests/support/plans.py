"""Plans without data: a study text, stated facts, stages and trials made of names. Tests only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.planning.identity import compute_signature
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.works import Work
from orchestrator.study.study_file import parse_study
from trainables.config import StageConfig, TrialConfig


@dataclass(frozen=True)
class StatedFacts:
    """``plan.Facts`` that the test decides: kind of pretraining → why its weights cannot be had."""

    missing: Mapping[str, str] = field(default_factory=dict)
    data: str = "d" * 16

    def fingerprint(self, config: TrialConfig) -> str:
        return self.data

    def missing_weights(self, config: TrialConfig) -> str | None:
        return self.missing.get(config.pretraining.kind)

    def resolve(self, config: TrialConfig) -> TrialConfig:
        return config


def plan_of(text: str, *overrides: str, facts: StatedFacts | None = None) -> Plan:
    """Return the plan of a study text (without its head)."""
    study = parse_study("study: s\ndata: {kind: digits}\n" + text, source="s.yaml", overrides=overrides)
    return make_plan(study.candidates(study.arms()), replicates=study.replicates, facts=facts or StatedFacts())


def names_of(plan: Plan) -> dict[str, str]:
    """Return signature → name and replicate of every trial."""
    return {trial.signature: f"{trial.name} #{trial.replicate}" for trial in plan.trials}


def make_stage(name: str, epochs: int = 2) -> Work:
    """Return a stage of its own by its name."""
    config = StageConfig.model_validate(
        {"data": {"kind": "digits"}, "model": {}, "pretraining": {"kind": "contrastive", "epochs": epochs}}
    )
    return Work("stage", compute_signature(config, name), name, config, name)


def make_trial(name: str, *stages: Work, replicate: int = 0) -> Work:
    """Return a trial of its own by its name, which needs ``stages``."""
    config = TrialConfig(replicate=replicate)
    needs = tuple(stage.signature for stage in stages)
    return Work("trial", compute_signature(config, name), name, config, name, needs, {"arm": name}, replicate)
