"""Summary that a command prints before it starts: plan, search, budget, hypotheses and warnings."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from orchestrator.driver.prepare import Prepared, is_probed
from orchestrator.driver.terminal.console import is_quiet
from orchestrator.ledger.preregistration import EXPLORATORY, PREREGISTERED, trace_hypotheses
from orchestrator.planning.ceteris_paribus import read_differences, read_matching
from orchestrator.planning.feasibility import find_attainable
from orchestrator.planning.plan import describe_skipped_briefly
from orchestrator.search.proposals import Search
from orchestrator.study.grid import format_label
from orchestrator.study.search.space import Space
from orchestrator.study.search.tuning import draw_settings
from trainables.config import MatchingConfig, TrialConfig
from trainables.data.dataset import Dataset
from trainables.data.describe import describe_dataset
from trainables.evaluation_config import word_targets

#: Maximum number of damaged folders that are listed one by one.
_MAX_DAMAGES = 10
#: Most arms, and values of a tuned field, that are named in a line.
_MAX_NAMED, _MAX_VALUES = 4, 12


def print_line(console: Console, label: str, text: str) -> None:
    """Print one labelled line, unless the console is quiet. Markup in ``text`` is printed literally."""
    if is_quiet(console):
        return
    console.print(f"{label:<8} {text}", soft_wrap=True, highlight=False, markup=False)


def warn(console: Console, label: str, text: str) -> None:
    """Print one line with a highlighted label. Markup in ``text`` is printed literally."""
    console.print(f"[bold yellow]{label}[/bold yellow] {escape(text)}", soft_wrap=True, highlight=False)


def announce(prepared: Prepared, console: Console) -> None:
    """Print the state of the study and the work to run, with warnings about everything that will not run."""
    plan, actions = prepared.plan, prepared.actions
    _announce_data(prepared, console)
    kinds = Counter(work.kind for work in actions.open)
    done = sum(work.kind == "trial" for work in actions.skip)
    print_line(
        console,
        "plan",
        f"{count(len(plan.trials), 'trial')} and {count(len(plan.stages), 'stage')}; {count(done, 'trial')} "
        f"complete, {f'{len(actions.stopped)} stopped early, ' if actions.stopped else ''}"
        f"{count(kinds['trial'], 'trial')} and {count(kinds['stage'], 'stage')} to run"
        + (f", {len(actions.resume)} of them to resume" if actions.resume else "")
        + (f"; {count(plan.num_to_come, 'trial')} to be proposed" if plan.num_to_come else ""),
    )
    _announce_stages(prepared, console)
    if prepared.study.execution.acceleration == "probe" and not is_probed(prepared.study):
        print_line(
            console,
            "probe",
            "none: execution.acceleration: probe times steps of classifications; segmentations train with the "
            "device's default, as with acceleration: off",
        )
    if prepared.search is not None:
        _announce_search(prepared.search, console)
    _announce_tuning(prepared, console)
    _announce_budget(prepared, console)
    _announce_hypotheses(prepared, console)
    for line in _describe_changes(prepared):
        print_line(console, "changed", line)
    for line in describe_skipped_briefly(plan.as_json()["skipped"]):
        warn(console, "left out", line)
    if actions.failed:
        failed = sum(work.kind == "trial" for work in actions.failed)
        warn(console, "failed before", f"{count(failed, 'trial')}; --retry-failed tries again")
    todo = {work.signature for work in actions.open}
    damages = [
        f"{damage}; " + ("it is made again" if signature in todo else "nothing that will run needs it")
        for signature, damage in sorted(prepared.ledger.damaged.items(), key=lambda item: item[0] not in todo)
    ]
    for damage in damages[:_MAX_DAMAGES]:
        warn(console, "damaged", damage)
    if len(damages) > _MAX_DAMAGES:
        warn(console, "damaged", f"and {len(damages) - _MAX_DAMAGES} more")
    if actions.orphaned:
        kept = f"{len(actions.orphaned)} stages and trials in the ledger that are no longer planned"
        print_line(console, "kept", f"{kept}; nothing is deleted")


def _announce_stages(prepared: Prepared, console: Console) -> None:
    """Print which stages another study has completed, what severities are matched to, and what pretraining may see."""
    stages = {stage.signature: stage for stage in prepared.plan.stages}
    for signature, study in {**prepared.find_adoptable(), **prepared.adopted}.items():
        name = stages[signature].name
        print_line(console, "found", f"{name} ({signature}) is complete in {study}: it is copied, not run again")
    for stage in stages.values():
        if isinstance(stage.config, MatchingConfig):
            text = f"{stage.name.removeprefix('severities ')}, on its validation images: "
            print_line(console, "severities", text + word_targets(stage.config.targets))
    for remark, number in Counter(itertools.chain.from_iterable(prepared.plan.remarks.values())).items():
        warn(console, "remark", f"{remark} ({count(number, 'arm')}); every statement about such an arm says so")


def _announce_data(prepared: Prepared, console: Console) -> None:
    alike: dict[tuple[object, ...], list[Dataset]] = {}
    for dataset in prepared.inputs.datasets:
        num_images = sum(map(len, (dataset.splits | dataset.external).values()))
        key = (dataset.name, dataset.splits["train"].images.shape[1:], num_images)
        alike.setdefault(key, []).append(dataset)
    for dataset, *others in alike.values():
        print_line(console, "data", dataset.name)
        for label, line in describe_dataset(dataset).items():
            print_line(console, "", f"{label}: {line}")
        if others:
            print_line(console, "", f"and {len(others)} more with other splits or settings")
        if dataset.similar.counts:
            warn(console, "similar", "images may be copies of each other; robustsweep data check STUDY draws them")
    _announce_foreign(prepared, console)
    _announce_sites(prepared, console)
    num_bad = len(prepared.inputs.quarantined)
    if num_bad:
        warn(console, "quarantined", f"{count(num_bad, 'image')}; the report names them")


def _announce_foreign(prepared: Prepared, console: Console) -> None:
    """Print the images of other sources on which the trials are tested."""
    configs = {
        name: (work.config, source)
        for work in prepared.plan.trials
        if isinstance(work.config, TrialConfig)
        for name, source in work.config.evaluation.foreign.items()
    }
    for name, (config, source) in configs.items():
        number = len(prepared.inputs.with_foreign(config).ood[name])
        print_line(console, "foreign", f"{name}: {number:,} images of another source ({source.role})")


def _announce_sites(prepared: Prepared, console: Console) -> None:
    """Print how many sites are left out one at a time, and which are not."""
    left = {work.config.data.leave_out for work in prepared.plan.trials} - {None}
    if not left:
        return
    sets = (images for data in prepared.inputs.datasets for images in (data.splits | data.external).values())
    others = sorted({str(site) for images in sets for site in set(images.sites)} - left - {""})
    rest = f"; never left out: {', '.join(others[:10])}{', …' if others[10:] else ''}" if others else ""
    print_line(console, "sites", f"{len(left)} of {len(left) + len(others)} left out, each in trials of its own{rest}")


def _announce_budget(prepared: Prepared, console: Console) -> None:
    budget_status, actions = prepared.budget_status, prepared.actions
    if budget_status is not None:
        print_line(console, "budget", budget_status.describe() + " taken so far, over all runs")
    held_back = Counter(work.kind for work in actions.held_back) + Counter(trial=prepared.num_withheld)
    if held_back:
        which = " and ".join(count(number, kind) for kind, number in sorted(held_back.items(), reverse=True))
        rest = "" if actions.open else ", and nothing else is open"
        warn(console, "held back", f"{which}: the budget has no room for more{rest}; raise execution.budget to go on")


def _announce_search(search: Search, console: Console) -> None:
    config = search.config
    goals = " and ".join(
        f"{'higher' if objective.higher_is_better else 'lower'} {objective.metric}" for objective in config.objectives
    )
    how = f"rounds of {config.parallel}" if config.order == "rounds" else f"{config.parallel} at once"
    done = f"{search.num_distinct} of {config.num_trials} configurations proposed, {how}"
    done += "; the space has no further one" if search.is_exhausted else ""
    print_line(console, "search", f"{config.sampler.kind} for {goals}; {done}")
    if config.early_stopping is not None:
        rule, grace = config.early_stopping.kind, config.early_stopping.grace_epochs
        after = "epoch 1" if grace == 1 else f"{grace} epochs"
        print_line(
            console,
            "stopping",
            f"{rule}, by {config.stopping_metric}, from {after} on: what falls behind is stopped early",
        )
    if config.is_oracle:
        guides = (each.metric for each in (*config.objectives, *config.constraints) if not each.is_validation)
        warn(console, "oracle", f"the search is guided by {', '.join(guides)}, which no honest choice knows")


def _announce_tuning(prepared: Prepared, console: Console) -> None:
    """Print how many candidates each arm is given, the trials that this makes, and the values."""
    tuning, trials = prepared.study.tuning, prepared.plan.trials
    if tuning is None:
        return
    arms = prepared.about["tuning"]["distinct"]
    whole = f"{count(len(arms), 'arm')} × {count(prepared.study.replicates, 'replicate')} × {tuning.candidates}"
    fewer = {name: number for name, number in arms.items() if number < tuning.candidates}
    text = f"{tuning.candidates} candidates of {', '.join(tuning.space)} for every arm and replicate, chosen by "
    text += f"{tuning.metric}: {whole} candidates, {count(len(trials), 'trial')}"
    print_line(console, "tuning", text)
    if fewer:
        which = "; ".join(f"{number} of {name}" for name, number in list(fewer.items())[:_MAX_NAMED])
        more = f"; and {len(fewer) - _MAX_NAMED} more arms" if len(fewer) > _MAX_NAMED else ""
        print_line(
            console, "", f"fewer where candidates are one configuration, because a field does not apply: {which}{more}"
        )
    space = Space([], tuning.space)
    settings = draw_settings(tuning, seed=prepared.study.seed)
    for name in tuning.space:
        values = [format_label(space.get_value(name, each[name])) for each in settings]
        shown = ", ".join(values[:_MAX_VALUES]) + (", …" if len(values) > _MAX_VALUES else "")
        print_line(console, "", f"{name}: {shown}")


def _announce_hypotheses(prepared: Prepared, console: Console) -> None:
    """Print how many hypotheses are registered; warn of late changes and of hypotheses that no result could support."""
    registration = prepared.registration
    if registration.damage is not None:
        warn(console, "damaged", registration.damage)
    traced = trace_hypotheses(registration.versions)
    counts = Counter(each.status for each in traced)
    claimed = counts[PREREGISTERED] + counts[EXPLORATORY]
    if claimed:
        noun = "hypothesis" if claimed == 1 else "hypotheses"
        late = f", {counts[EXPLORATORY]} exploratory" if counts[EXPLORATORY] else ""
        print_line(console, "claims", f"{claimed} {noun}: {counts[PREREGISTERED]} preregistered{late}")
    for each in traced:
        if each.status != PREREGISTERED:
            changes = f"; {'; '.join(each.changes)}" if each.changes else ""
            warn(console, each.status, f"{each.name}: {each.remark}{changes}")
    _announce_differences(prepared, console)
    hypotheses, trials = prepared.study.hypotheses, prepared.plan.trials
    external = {
        work.name: prepared.inputs.dataset(work.config.data).external
        for work in (trials if hypotheses else ())
        if isinstance(work.config, TrialConfig)
    }
    attainable, without_arms = find_attainable(hypotheses, prepared.plan, prepared.about["factors"], external=external)
    for found in attainable:
        if found.is_reached:
            print_line(console, "p", found.describe())
        else:
            warn(console, "undecided", found.describe())
    for line in without_arms:
        warn(console, "hopeless", line)


def _announce_differences(prepared: Prepared, console: Console) -> None:
    """Print in what the sides of each hypothesis differ beyond the factors that it names."""
    if not prepared.study.hypotheses:
        return
    is_equal = True
    for hypothesis in prepared.study.hypotheses:
        for line in read_differences(prepared.about, hypothesis.name) or ():
            warn(console, "differs", f"{hypothesis.name}: besides the factors that it names, {line}")
            is_equal = False
    if is_equal:
        print_line(console, "", "the sides of each differ only in the factors that it names")
    for line in dict.fromkeys(read_matching(prepared.about, each.name) for each in prepared.study.hypotheses):
        print_line(console, "", line)


def _describe_changes(prepared: Prepared) -> Iterator[str]:
    """Yield the differences from the plan of the previous run, with their cause as far as it is known."""
    before, about = prepared.before, prepared.about
    if before is None:
        return
    old = {trial["signature"] for trial in before["trials"]}
    new = {trial.signature for trial in prepared.plan.trials}
    if old == new:
        return
    yield f"{count(len(new - old), 'trial')} added, {len(old - new)} no longer planned since the run before"
    if _list_fingerprints(before) != _list_fingerprints(about):
        yield "the images, labels or splits have changed, and with them every result"
    elif before["study_sha256"] == about["study_sha256"]:
        versions = ", ".join(
            f"{name} {version} instead of {before['versions'].get(name)}"
            for name, version in about["versions"].items()
            if version != before["versions"].get(name)
        )
        yield f"the study file is the same: weights or defaults have changed ({versions or 'with the same versions'})"


def _list_fingerprints(about: Mapping[str, Any]) -> list[str]:
    data_sets = about.get("data_sets", {}).values()
    return [each["fingerprint"] for each in (about["data"], *data_sets)]


def count(number: int, noun: str) -> str:
    """Return the number with its noun, e.g. "1 arm" or "2 arms"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
