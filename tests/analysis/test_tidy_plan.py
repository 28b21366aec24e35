"""What ``stats`` takes as planned, missing, undefined and unshifted, and what it does with any names."""

import csv
import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.analysis.tidy.reading import StatsConfig, load_tidy
from orchestrator.analysis.tidy.results import SEED, TidyResults
from orchestrator.analysis.tidy.tables import Table, compute_tables
from orchestrator.cli.main import app
from trainables.errors import StudyError

CONFIG = """\
columns: {factors: [method], seed: seed, shift: corruption, severity: severity}
clean: none
metrics: {accuracy: {better: higher}}
"""
HYPOTHESIS = """\
hypotheses:
  - {name: better, claim: b is better., treatment: {method: b}, control: {method: a}, direction: higher,
     smallest_effect: 0.01, metric: robustness/mean_accuracy, max_missing: 0.2}
  - {name: by shift, claim: b is better., treatment: {method: b}, control: {method: a}, direction: higher,
     smallest_effect: 0.01, metric: robustness/mean_accuracy, over: shifts}
""".replace("by shift", "by-shift")
HEAD = ["method", "seed", "corruption", "severity", "accuracy"]
SHIFTS = ("noise", "blur", "fog", "jpeg", "snow", "pix")
Row = dict[str, Any]


def make_rows(num_seeds: int = 8, shifts: Iterable[str] = SHIFTS, gain: float = 0.03) -> list[Row]:
    """Accuracy falls by .05 with each severity; b has ``gain`` more than a everywhere."""
    shifted = [("none", ""), *itertools.product(shifts, (1, 3, 5))]
    return [
        {"method": method, "seed": seed, "corruption": shift, "severity": severity}
        | {"accuracy": 0.9 + 0.001 * (7 * seed % 5) - 0.05 * int(severity or 0) + gain * (method == "b")}
        for method, seed, (shift, severity) in itertools.product("ab", range(num_seeds), shifted)
    ]


Load = Callable[..., tuple[StatsConfig, TidyResults]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(config: str = CONFIG, **tables: list[Row]) -> tuple[StatsConfig, TidyResults]:
        (tmp_path / "stats.yaml").write_text(config)
        for name, rows in tables.items():
            with (tmp_path / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
                writer.writeheader()
                writer.writerows(rows)
        return load_tidy([tmp_path / f"{name}.csv" for name in tables], tmp_path / "stats.yaml")

    return write_and_load


def compute(config: StatsConfig, measured: TidyResults) -> dict[str, Table]:
    return {table.name: table for table in compute_tables(config, measured)}


def judge(load: Load, rows: list[Row], hypotheses: str = HYPOTHESIS) -> dict[str, Any]:
    """Return name → verdict, missing pairs."""
    frame = compute(*load(CONFIG + hypotheses, results=rows))["hypotheses"].frame
    return {row["name"]: (row["verdict"], row["missing"]) for row in frame.to_dict("records")}


NOTHING = "not enough data"


# --------------------------------------------------------------------------- missing


def test_complete_table_is_judged(load: Load) -> None:
    assert judge(load, make_rows())["better"] == ("supported", 0)


def test_severities_that_one_side_lacks_are_missing_pairs(load: Load) -> None:
    # b does not differ from a, but has no severity 5, where accuracy is lowest.
    rows = [row for row in make_rows(gain=0) if row["method"] == "a" or row["severity"] != 5]
    assert judge(load, rows) == {"better": (NOTHING, 8), "by-shift": (NOTHING, 8)}
    tables = compute(*load(CONFIG, results=rows))
    means = tables["means"].frame.set_index(["measure", "method"])
    assert means.loc[("robustness/mean_accuracy", "b"), "n"] == 0
    assert math.isnan(means.loc[("robustness/mean_accuracy", "b"), "mean"])
    assert means.loc[("id/accuracy", "b"), "n"] == 8
    counts = tables["counts"].frame.set_index("method")
    assert counts.loc["b", ["planned", "evaluations", "missing"]].tolist() == [152, 104, 48]
    effects = tables["effects"].frame.set_index("measure")
    assert effects.loc["robustness/mean_accuracy", ["cells", "missing"]].tolist() == [0, 8]


def test_one_severity_of_one_shift_is_missing_too(load: Load) -> None:
    rows = [r for r in make_rows() if (r["method"], r["corruption"], r["severity"]) != ("b", "fog", 5)]
    assert judge(load, rows) == {"better": (NOTHING, 8), "by-shift": (NOTHING, 8)}
    named = HYPOTHESIS.replace("metric: robustness/mean_accuracy, max", "metric: shift/noise/accuracy, max")
    assert judge(load, rows, named)["better"] == ("supported", 0)
    one = named.replace("shift/noise/accuracy,", "shift/fog/accuracy, severities: [1, 3],")
    assert judge(load, rows, one)["better"] == ("supported", 0)
    assert judge(load, rows, one.replace("[1, 3]", "[1, 5]"))["better"] == (NOTHING, 8)


def test_seeds_that_one_side_lacks_are_missing_pairs(load: Load) -> None:
    rows = [row for row in make_rows(12) if row["method"] == "a" or row["seed"] < 7]
    assert judge(load, rows)["better"] == (NOTHING, 5)
    allowed = HYPOTHESIS.replace("0.2", "0.45")
    assert judge(load, rows, allowed)["better"] == ("supported", 5)
    _, measured = load(CONFIG, results=rows)
    assert len(measured.trials) == 24
    assert measured.trials["robustness/mean_accuracy"].notna().sum() == 19


def test_disjoint_seeds_leave_no_pair(load: Load) -> None:
    rows = [row | {"seed": row["seed"] + 8 * (row["method"] == "b")} for row in make_rows()]
    assert judge(load, rows) == {"better": (NOTHING, 16), "by-shift": (NOTHING, 16)}
    effects = compute(*load(CONFIG, results=rows))["effects"].frame.set_index("measure")
    assert effects.loc["id/accuracy", ["cells", "missing"]].tolist() == [0, 16]


def test_seeds_that_only_a_third_arm_has_are_planned_for_all(load: Load) -> None:
    rows = make_rows(6) + [row | {"method": "c"} for row in make_rows(9) if row["method"] == "a"]
    assert judge(load, rows)["better"] == (NOTHING, 3)
    effects = compute(*load(CONFIG, results=rows))["effects"].frame
    assert effects["missing"].tolist() == [3] * 8


# --------------------------------------------------------------------------- undefined


def test_shift_without_any_value_is_left_out_of_all_and_said(load: Load) -> None:
    rows = [
        row | ({"accuracy": ""} if row["corruption"] == "fog" and row["severity"] == 5 else {}) for row in make_rows()
    ]
    assert judge(load, rows)["better"] == ("supported", 0)
    config, measured = load(CONFIG, results=rows)
    tables = compute(config, measured)
    assert tables["left_out"].frame.to_dict("records") == [
        {"metric": "accuracy", "shift": "fog", "empty at severity": "5"}
    ]
    trial = measured.trials.set_index(["method", SEED]).loc[("a", "0")]
    assert trial["robustness/mean_accuracy"] == pytest.approx(0.9 - 0.05 * 3)
    assert "shift/fog/accuracy" not in measured.trials
    effects = tables["effects"].frame.set_index("measure").loc["robustness/mean_accuracy"]
    assert effects[["shifts in that direction", "missing"]].tolist() == ["5 of 5", 0]
    assert tables["counts"].frame["undefined"].tolist() == [0, 0]
    posed, results = measured.pose(load(CONFIG + HYPOTHESIS, results=rows)[0].hypotheses[1], 0)
    assert posed.metric == "robustness/mean_accuracy"
    assert set(results.shifts["shift"]) == set(SHIFTS) - {"fog"}


def test_shift_without_values_in_one_arm_is_missing_there(load: Load) -> None:
    rows = [
        row | ({"accuracy": ""} if (row["method"], row["corruption"]) == ("b", "fog") else {}) for row in make_rows()
    ]
    assert judge(load, rows) == {"better": (NOTHING, 8), "by-shift": (NOTHING, 8)}
    tables = compute(*load(CONFIG, results=rows))
    assert "left_out" not in tables
    assert tables["counts"].frame["undefined"].tolist() == [0, 24]


def test_metric_without_any_value_is_an_error(load: Load) -> None:
    with pytest.raises(StudyError, match="metrics: found no value of any metric"):
        load(CONFIG, results=[row | {"accuracy": ""} for row in make_rows(1)])


# --------------------------------------------------------------------------- unshifted


def test_mistyped_clean_is_one_error_with_suggestions(load: Load) -> None:
    with pytest.raises(StudyError) as caught:
        load(CONFIG.replace("clean: none", "clean: nine"), results=make_rows(2))
    head, line = str(caught.value).split("\n")
    assert "found 1 problem" in head
    assert line.endswith(
        "stats.yaml:2: clean: no row has 'nine' in the column 'corruption', and none has severity 0, expected one of "
        "none, noise, blur, fog, jpeg, snow, pix; did you mean none?"
    )
    no_severity = CONFIG.replace(", severity: severity", "").replace("clean: none", "clean: nine")
    with pytest.raises(StudyError, match="no row has 'nine'"):
        load(no_severity, results=[row for row in make_rows(2) if row["severity"] in ("", 1)])


def test_clean_that_no_row_has_is_no_error_where_severity_0_says_it(load: Load) -> None:
    rows = [
        row | ({"corruption": "noise", "severity": 0} if row["corruption"] == "none" else {}) for row in make_rows(2)
    ]
    assert "id/accuracy" in load(CONFIG, results=rows)[1].measures


def test_unshifted_row_without_clean_names_the_key(load: Load) -> None:
    with pytest.raises(
        StudyError, match=r"results.csv:2: severity: found nothing, expected a severity; the key `clean`"
    ):
        load(CONFIG.replace("clean: none\n", ""), results=make_rows(1))


def test_unshifted_metric_in_a_column_of_its_own(load: Load) -> None:
    clean = {(row["method"], row["seed"]): row["accuracy"] for row in make_rows(2) if row["corruption"] == "none"}
    rows = [
        row | {"clean_accuracy": clean[row["method"], row["seed"]]}
        for row in make_rows(2)
        if row["corruption"] != "none"
    ]
    config = CONFIG.replace("clean: none\n", "").replace("{better", "{clean: clean_accuracy, better")
    _, wide = load(config, results=rows)
    _, long = load(CONFIG, results=make_rows(2))
    assert wide.trials[list(long.trials)].equals(long.trials)
    assert [each.num_present for each in wide.counts] == [38, 38]
    rows[3]["clean_accuracy"] = 0.5
    with pytest.raises(StudyError, match=r"results.csv:5: clean_accuracy: found 0.5, expected 0.9 as in line 2"):
        load(config, results=rows)
    rows[3]["clean_accuracy"] = ""
    both = rows + [row for row in make_rows(1) if row["corruption"] == "none" and row["method"] == "a"]
    with pytest.raises(
        StudyError, match=r"results.csv:74: accuracy: found a value that is not shifted, as clean_accuracy"
    ):
        load(CONFIG.replace("{better", "{clean: clean_accuracy, better"), results=both)


# --------------------------------------------------------------------------- several files


def test_several_files_are_one_table(load: Load) -> None:
    rows = make_rows()
    parts = {name: [row for row in rows if row["method"] == name] for name in "ab"}
    _, several = load(CONFIG, **parts)
    _, one = load(CONFIG, results=rows)
    assert several.trials.equals(one.trials)
    parts["b"].append(parts["a"][1])
    with pytest.raises(
        StudyError, match=r"b.csv:154: found method=a.*a second time, first in line 3 of .*/a.csv; give"
    ):
        load(CONFIG, **parts)
    for row in parts["b"]:
        row["corruptoin"] = row.pop("corruption")
    with pytest.raises(StudyError, match=r"columns.shift: .*/b.csv has no column 'corruption', expected one of"):
        load(CONFIG, **parts)


def test_name_of_the_file_can_be_a_factor(load: Load, tmp_path: Path) -> None:
    rows = {name: [row for row in make_rows(2) if row["method"] == name] for name in "ab"}
    named = {name: [{k: v for k, v in row.items() if k != "method"} for row in part] for name, part in rows.items()}
    config = CONFIG.replace("factors: [method]", "factors: [], file: method")
    assert load(config, **named)[1].trials.equals(load(CONFIG, **rows)[1].trials)
    with pytest.raises(StudyError, match=r"columns.file: .*a.csv has a column 'method' already"):
        load(config, **rows)
    (tmp_path / "other").mkdir()
    load(config, b=named["b"])
    (tmp_path / "other" / "b.csv").write_text((tmp_path / "b.csv").read_text())
    with pytest.raises(StudyError, match=r"b.csv have one name; rename a file"):
        load_tidy([tmp_path / "b.csv", tmp_path / "other" / "b.csv"], tmp_path / "stats.yaml")
    with pytest.raises(StudyError, match="found no factor"):
        load(CONFIG.replace("[method]", "[]"), results=make_rows(1))


def test_files_are_arguments_of_the_command(load: Load, tmp_path: Path) -> None:
    load(CONFIG, **{name: [row for row in make_rows(2) if row["method"] == name] for name in "ab"})
    tables = [str(tmp_path / f"{name}.csv") for name in "ab"]
    done = CliRunner().invoke(app, ["stats", *tables, "--config", str(tmp_path / "stats.yaml")])
    assert done.exit_code == 0, done.output
    assert "method: b − a" in done.output


def test_tables_are_written_before_anything_is_printed(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(CONFIG, results=make_rows(2))

    def refuse(_: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("orchestrator.cli.compare.typer.echo", refuse)
    arguments = ["stats", str(tmp_path / "results.csv"), "--config", str(tmp_path / "stats.yaml")]
    CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "shifts.csv").exists()


# --------------------------------------------------------------------------- factors and names


def test_factor_within_which_shifts_are_planned(load: Load) -> None:
    families = {
        "noise": "digital",
        "jpeg": "digital",
        "blur": "lens",
        "fog": "weather",
        "snow": "weather",
        "pix": "digital",
    }
    rows = [row | {"family": families[row["corruption"]]} for row in make_rows() if row["corruption"] != "none"]
    config = CONFIG.replace("[method]", "[method, family]").replace("clean: none\n", "")
    assert load(config, results=rows)[1].trials["robustness/mean_accuracy"].isna().all()
    config = config.replace("severity: severity", "severity: severity, within: [family]")
    loaded, measured = load(config + HYPOTHESIS, results=rows)
    assert {each.num_planned for each in measured.counts if each.arm["family"] == "weather"} == {8 * 2 * 3}
    assert sum(each.num_planned - each.num_present for each in measured.counts) == 0
    trial = measured.trials.set_index(["method", "family", SEED]).loc[("a", "weather", "0")]
    assert trial["robustness/mean_accuracy"] == pytest.approx(0.9 - 0.05 * 3)
    assert math.isnan(trial["shift/noise/accuracy"])
    tables = compute(loaded, measured)
    verdicts = tables["hypotheses"].frame.set_index("name")
    assert verdicts.loc["better", ["verdict", "missing"]].tolist() == ["supported", 0]
    effects = (
        tables["effects"].frame.set_index(["measure", "effect"]).loc[("robustness/mean_accuracy", "method: b − a")]
    )
    assert effects[["cells", "missing", "shifts in that direction"]].tolist() == [24, 0, "6 of 6"]
    lacking = [row for row in rows if (row["method"], row["corruption"], row["severity"]) != ("b", "blur", 5)]
    verdicts = compute(*load(config + HYPOTHESIS, results=lacking))["hypotheses"].frame.set_index("name")
    assert verdicts.loc["better", ["verdict", "missing"]].tolist() == [NOTHING, 8]
    with pytest.raises(StudyError, match=r"within\[0\]: there is no factor 'famly', expected one of method, family"):
        load(config.replace("within: [family]", "within: [famly]"), results=rows)


def test_one_trained_model_per_condition_gives_no_verdict(load: Load) -> None:
    rows = [{key: value for key, value in row.items() if key != "seed"} for row in make_rows(1)]
    tables = compute(*load(CONFIG.replace("seed: seed", "seed: null") + HYPOTHESIS, results=rows))
    effect = tables["effects"].frame.set_index("measure").loc["robustness/mean_accuracy"]
    assert effect[["seeds", "shifts in that direction"]].tolist() == [1, "6 of 6"]
    assert effect[["p", "low"]].isna().all()
    assert tables["hypotheses"].frame.set_index("name").loc["better", "verdict"] == NOTHING


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("Dice score (%)", "higher"),
        ("mAP/50", "higher"),
        ("shift/x/y", "lower"),
        ("name", "higher"),
        ("external/a/b", "lower"),
        ("loss", "lower"),
        ("accuracy", "lower"),
    ],
)
def test_any_name_of_a_metric(load: Load, metric: str, better: str) -> None:
    sign = 1 if better == "higher" else -1
    rows = [row | {metric: sign * row["accuracy"]} for row in make_rows(6)]
    config = CONFIG.replace("metrics: {accuracy:", f"metrics: {{'{metric}':").replace("higher", better)
    measures = [f"robustness/mean_{metric}", f"shift/fog/{metric}", f"id/{metric}"]
    (claim, _) = HYPOTHESIS.replace("direction: higher", f"direction: {better}").split("  - {name: by")
    claim = claim.removeprefix("hypotheses:\n").replace("direction", "family: '{number}', direction")
    text = "hypotheses:\n"
    for number, measure in enumerate(measures):
        named = claim.replace("better,", f"m{number},", 1).replace("robustness/mean_accuracy", measure)
        text += named.replace("{number}", f"f{number}")
    verdicts = compute(*load(config + text, results=rows))["hypotheses"].frame
    assert verdicts["verdict"].tolist() == ["supported"] * 3
    assert verdicts["measure"].tolist() == measures
    assert verdicts["effect"].tolist() == pytest.approx([sign * 0.03] * 3)
    counted = HYPOTHESIS.replace("mean_accuracy", f"mean_{metric}").replace("direction: higher", f"direction: {better}")
    loaded, measured = load(config + counted, results=rows)
    _, results = measured.pose(loaded.hypotheses[1], 0)
    assert results.shifts[results.metric].tolist() == [row[metric] for row in rows if row["severity"]]
    flat = config.replace(", shift: corruption, severity: severity", "").replace("clean: none\n", "")
    unshifted = [row for row in rows if row["corruption"] == "none"]
    one = f"hypotheses:\n{claim.replace('robustness/mean_accuracy', metric)}".replace("{number}", "f")
    (row,) = compute(*load(flat + one, results=unshifted))["hypotheses"].frame.to_dict("records")
    assert (row["verdict"], row["measure"]) == ("supported", metric)


def test_any_name_of_a_factor(load: Load) -> None:
    rows = [row | {"n": row["method"]} for row in make_rows(5)]
    tables = compute(*load(CONFIG.replace("[method]", "[n]"), results=rows))
    assert tables["means"].frame[["n (factor)", "n"]].to_numpy().tolist()[:2] == [["a", 5], ["b", 5]]
    assert "| n (factor) |" in tables["counts"].markdown()


def test_two_things_of_one_name_are_an_error(load: Load) -> None:
    rows = [
        row | {"b/accuracy": 0.5} | ({"corruption": "a/b"} if row["corruption"] == "fog" else {})
        for row in make_rows(1)
    ]
    rows = [row | ({"corruption": "a"} if row["corruption"] == "jpeg" else {}) for row in rows]
    config = CONFIG.replace("metrics: {", "metrics: {b/accuracy: {better: higher}, ")
    with pytest.raises(StudyError, match="'shift/a/b/accuracy' would stand for two things"):
        load(config, results=rows)
