"""Command ``robustsweep simulate``: what a study would take on a cluster that one does not have yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, Overrides, Storage, StudyFile
from orchestrator.driver.terminal.echo import echo

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.driver.prepare import Prepared
    from orchestrator.driver.simulation.assumptions import Assumption
    from orchestrator.driver.simulation.cluster import Cluster
    from orchestrator.driver.simulation.summary import Range, Summary


def simulate(  # noqa: PLR0913 - the options of a command are its arguments
    study: StudyFile,
    *,
    nodes: Annotated[int, typer.Option(min=1, max=10_000, help="Nodes of the cluster.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, max=64, help="GPUs of a node.")] = 0,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of a node.", show_default="without GPUs as here, else enough")
    ] = None,
    spot_loss: Annotated[
        float, typer.Option(min=0.0, max=60.0, help="Losses per node and hour: 0.05 is one node of 20 each hour.")
    ] = 0.0,
    replacement_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Until a lost node is replaced.", show_default="5")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0.0, help="Of a GPU an hour; without GPUs of a node.", show_default="the study's"),
    ] = None,
    seconds: Annotated[
        str | None, typer.Option(help="Of a trial, as 90 or 90±20.", show_default="measured, else a pilot")
    ] = None,
    stage_seconds: Annotated[str | None, typer.Option(help="Of a stage, with --seconds.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="How many times as fast as measured its machines are.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="Simulated runs, whose range is given.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of durations and losses.")] = 0,
    whole: Annotated[bool, typer.Option("--whole", help="The whole plan, as if nothing was complete.")] = False,
    pilot: Annotated[bool, typer.Option(help="Time a few steps when no trial has finished yet.")] = True,
    storage: Storage = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a study on another cluster: time, cost and lost work as ranges, and the critical path. Runs nothing."""
    from orchestrator.driver.prepare import prepare
    from orchestrator.driver.simulation.assumptions import list_assumptions
    from orchestrator.driver.simulation.simulate import choose_cluster, find_durations, make_scenario
    from orchestrator.driver.simulation.simulate import simulate as simulate_study
    from orchestrator.driver.simulation.summary import summarise
    from orchestrator.driver.terminal.console import PrintableConsole
    from orchestrator.study.study_file import load_study

    loaded = load_study(study, overrides or ())
    prepared = prepare(loaded, storage=storage or loaded.execution.storage)
    cluster = choose_cluster(
        prepared, nodes=nodes, gpus=gpus, cpus=cpus, spot_loss=spot_loss, replacement_minutes=replacement_minutes
    )
    durations = find_durations(
        prepared, seconds=seconds, stage_seconds=stage_seconds, on_gpu=gpus > 0, allow_pilot=pilot
    ).speed_up(speed)
    scenario = make_scenario(prepared, durations, cluster, whole=whole)
    if not scenario.works and prepared.search is None:
        echo("nothing is open: --whole simulates the study as if nothing was complete", err=as_json)
        if as_json:
            echo("{}")
        return
    price = loaded.execution.price_per_gpu_hour if price is None else price
    summary = summarise(simulate_study(scenario, repeats=repeats, seed=seed), cluster, price=price)
    assumptions = list_assumptions(durations, cluster, scenario.overheads, speed=speed, stops_early=loaded.stops_early)
    if as_json:
        echo(json.dumps(describe(summary, cluster, assumptions, repeats=repeats, seed=seed)))
    else:
        _render(prepared, cluster, summary, assumptions, PrintableConsole(), repeats=repeats)


def describe(
    summary: Summary, cluster: Cluster, assumptions: list[Assumption], *, repeats: int, seed: int
) -> dict[str, Any]:
    """Return a simulation as JSON values."""
    return {
        "cluster": vars(cluster) | {"slots": cluster.num_slots},
        "repeats": repeats,
        "seed": seed,
        **summary.as_json(),
        "assumptions": [vars(each) for each in assumptions],
    }


def _render(
    prepared: Prepared,
    cluster: Cluster,
    summary: Summary,
    assumptions: list[Assumption],
    console: Console,
    *,
    repeats: int,
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from orchestrator.driver.simulation.summary import describe_path
    from orchestrator.driver.terminal.announce import count, print_line

    print_line(console, "study", f"{prepared.study.study}: {prepared.study.question}")
    print_line(console, "cluster", describe_cluster(cluster))
    table = Table("", "median", "90 % of the runs", title=f"{count(repeats, 'simulated run')}", title_justify="left")
    for label, found, show in _list_rows(summary):
        table.add_row(label, show(found.median), f"{show(found.low)} to {show(found.high)}")
    console.print(table)
    console.print("[bold]critical path[/bold] of the run whose time is the median")
    for number, phrase in enumerate(describe_path(summary.typical.path)):
        console.print(f"  {'→ ' if number else ''}{escape(phrase)}", highlight=False)
    console.print(f"[bold]what would shorten it[/bold] {escape(summary.advice)}", highlight=False)
    origins = Table("number", "value", "origin", title="what this rests on", title_justify="left")
    for each in assumptions:
        origins.add_row(escape(each.name), escape(each.value), each.origin)
    console.print(origins)


def describe_cluster(cluster: Cluster) -> str:
    """Return a cluster in words: "64 nodes × 8 GPUs, 512 slots"."""
    from orchestrator.driver.terminal.announce import count

    gpus = f" × {count(cluster.gpus, 'GPU')}" if cluster.gpus else ", no GPU"
    share = f" of {cluster.gpus_per_slot:g} GPU each" if cluster.gpus_per_slot else ""
    losses = f"; {cluster.spot_loss:g} losses per node and hour" if cluster.spot_loss else ""
    return f"{count(cluster.nodes, 'node')}{gpus}: {count(cluster.num_slots, 'slot')}{share}{losses}"


def _list_rows(summary: Summary) -> list[tuple[str, Range, Callable[[float], str]]]:
    """Return label, range and format of the rows of the table; those that show 0 in all runs are left out."""
    from orchestrator.driver.terminal.time_left import format_duration

    figures = summary.figures
    rows: list[tuple[str, str, Callable[[float], str]]] = [
        ("time until the last trial", "makespan_seconds", format_duration),
        ("share of slot time that counts", "utilisation", "{:.0%}".format),
        ("node hours", "node_hours", "{:,.2f}".format),
        ("GPU-hours", "gpu_hours", "{:,.2f}".format),
        ("cost", "cost", "{:,.2f}".format),
        ("nodes lost", "nodes_lost", "{:.0f}".format),
        ("attempts lost with them", "attempts_lost", "{:.0f}".format),
        ("lost work", "lost_seconds", format_duration),
        ("complete trials and stages", "complete", "{:,.0f}".format),
        ("failed", "failed", "{:,.0f}".format),
        ("stopped early", "stopped_early", "{:,.0f}".format),
        ("held back by the budget", "held_back", "{:,.0f}".format),
        ("longest chain, without waiting", "longest_chain_seconds", format_duration),
        ("Tune's loop busy", "driver_busy", "{:.0%}".format),
        ("MLflow complete after the end", "tracking_behind_seconds", format_duration),
    ]
    known = [(label, figures[name], show) for label, name, show in rows if name in figures]
    return [row for row in known if row[2](row[1].high) != row[2](0.0)]
