import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.analysis.tidy.reading import StatsConfig, load_tidy
from orchestrator.analysis.tidy.results import SEED, TidyResults
from orchestrator.analysis.tidy.tables import Table, compute_tables, write_tables
from orchestrator.cli.main import app
from orchestrator.statistics.factorial import compute_contrasts
from trainables.errors import StudyError

CONFIG = """\
columns: {factors: [pretraining, augmentation], seed: run, shift: corruption, severity: level}
metrics:
  accuracy: {better: higher, smallest_effect: 0.01}
  ece: lower
clean: clean
reference: {augmentation: none}
"""
HYPOTHESES = """\
hypotheses:
  - name: ssl
    claim: Contrastive pretraining holds up better.
    treatment: {pretraining: simclr}
    control: {pretraining: scratch}
    metric: robustness/mean_accuracy
    direction: higher
    smallest_effect: 0.01
  - name: shifts
    claim: It does so under every shift.
    treatment: {pretraining: simclr}
    control: {pretraining: scratch}
    metric: robustness/mean_accuracy
    direction: higher
    smallest_effect: 0
    over: shifts
    test: wilcoxon_signed_rank
  - name: loses
    claim: It is worse on what is not shifted.
    treatment: {pretraining: simclr}
    control: {pretraining: scratch}
    metric: id/accuracy
    direction: lower
    smallest_effect: 0
"""
SHIFTS = ["noise", "blur", "jpeg", "contrast", "fog", "zoom"]
HEAD = ["pretraining", "augmentation", "run", "corruption", "level", "accuracy", "ece", "comment"]


def make_rows(num_seeds: int = 8) -> list[list[object]]:
    """Effects: simclr +.03 everywhere; strong +.04 under shift only; noise of a seed .01, of an arm .002."""
    random = np.random.default_rng(3)
    rows: list[list[object]] = []
    for seed in range(num_seeds):
        shared = random.normal(scale=0.01)
        for (ssl, name), augmentation in itertools.product([(0, "scratch"), (1, "simclr")], ["strong", "none"]):
            own = shared + random.normal(scale=0.002) + 0.03 * ssl
            rows.append([name, augmentation, seed, "clean", "", 0.9 + own, 0.1, ""])
            for (number, shift), level in itertools.product(enumerate(SHIFTS), (1, 2)):
                value = 0.85 + own - 0.02 * number * level + 0.04 * (augmentation == "strong")
                rows.append([name, augmentation, seed, shift, level, value, 0.1 + 0.01 * number, ""])
    return rows


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def write_files(
        config: str = CONFIG, rows: list[list[object]] | None = None, head: list[str] = HEAD
    ) -> tuple[Path, Path]:
        table = tmp_path / "results.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([head, *(make_rows() if rows is None else rows)])
        (tmp_path / "stats.yaml").write_text(config)
        return table, tmp_path / "stats.yaml"

    return write_files


Write = Callable[..., tuple[Path, Path]]


def load(*files: Path) -> tuple[StatsConfig, TidyResults]:
    *tables, config = files
    return load_tidy(tables, config)


def by_name(tables: list[Table]) -> dict[str, Table]:
    return {table.name: table for table in tables}


def test_measures_are_means_over_severities_then_shifts(write: Write) -> None:
    _, measured = load(*write())
    assert measured.factors == {"pretraining": ["scratch", "simclr"], "augmentation": ["none", "strong"]}
    assert list(measured.measures) == [
        f"{prefix}{metric}"
        for metric in ("accuracy", "ece")
        for prefix in ("id/", "robustness/mean_", "robustness/worst_cell_", "robustness/worst_shift_")
    ]
    rows = [row for row in make_rows() if row[:3] == ["simclr", "none", 5]]
    trial = measured.trials.query("pretraining == 'simclr' and augmentation == 'none'").set_index(SEED).loc["5"]
    means = [np.mean([float(str(row[5])) for row in rows if row[3] == shift]) for shift in SHIFTS]
    assert trial["id/accuracy"] == pytest.approx(float(str(rows[0][5])))
    assert trial["robustness/mean_accuracy"] == pytest.approx(np.mean(means))
    assert trial["robustness/worst_shift_accuracy"] == pytest.approx(min(means))
    assert trial["robustness/worst_cell_accuracy"] == min(float(str(row[5])) for row in rows if row[3])
    assert trial["robustness/worst_shift_ece"] == pytest.approx(0.15)  # of an error the largest is the worst
    assert trial["shift/fog/accuracy"] == pytest.approx(means[4])


def test_trial_that_lacks_an_evaluation_has_no_mean_and_is_counted(write: Write) -> None:
    rows = [row for row in make_rows() if row[:5] != ["simclr", "strong", 2, "fog", 2]]
    rows[0][5] = ""  # scratch, strong, 0, clean
    config, measured = load(*write(rows=rows))
    missing = measured.trials.set_index(["pretraining", "augmentation", SEED]).loc[("simclr", "strong", "2")]
    assert missing[["robustness/mean_accuracy", "robustness/worst_shift_accuracy", "shift/fog/accuracy"]].isna().all()
    assert missing[["id/accuracy", "shift/zoom/accuracy"]].notna().all()
    tables = by_name(compute_tables(config, measured))
    counts = tables["counts"].frame.set_index(["pretraining", "augmentation"])
    known = ["seeds", "planned", "evaluations", "missing", "undefined"]
    assert counts.loc[("simclr", "strong"), known].tolist() == [8, 104, 103, 1, 0]
    assert counts.loc[("scratch", "strong"), known].tolist() == [8, 104, 104, 0, 1]
    means = tables["means"].frame.set_index(["measure", "pretraining", "augmentation"])["n"]
    assert means.loc[("robustness/mean_accuracy", "simclr", "strong")] == 7
    assert means.loc[("id/accuracy", "scratch", "strong")] == 7
    effects = tables["effects"].frame.set_index(["measure", "effect"])["missing"]
    assert effects.loc[("robustness/mean_accuracy", "augmentation: strong − none")] == 1


def test_effects_are_those_of_the_reports_statistics(write: Write) -> None:
    config, measured = load(*write())
    effects = by_name(compute_tables(config, measured))["effects"].frame
    row = (
        effects[effects["measure"] == "robustness/mean_accuracy"]
        .set_index("effect")
        .loc["pretraining: simclr − scratch"]
    )
    expected = compute_contrasts(
        measured.trials, value="robustness/mean_accuracy", factors=measured.factors, block=SEED
    )[0]
    assert expected.interval is not None
    assert (row["difference"], row["low"], row["p"]) == (expected.estimate, expected.interval.low, expected.p_value)
    assert row["difference"] == pytest.approx(0.03, abs=0.003)
    assert row["p Holm"] == expected.p_holm
    assert row["shifts in that direction"] == "6 of 6"
    assert not [column for column in effects if "over shifts" in column]
    of_clean = effects[effects["measure"] == "id/accuracy"].set_index("effect").loc["augmentation: strong − none"]
    assert of_clean["difference"] == pytest.approx(0, abs=0.003)
    assert of_clean["p Holm"] > 0.05


def test_number_of_seeds_and_the_makeup_of_the_spread(write: Write) -> None:
    config, measured = load(*write())
    tables = by_name(compute_tables(config, measured))
    seeds = tables["seeds"].frame
    assert set(seeds["measure"]) == {
        f"{prefix}accuracy"
        for prefix in ("id/", "robustness/mean_", "robustness/worst_cell_", "robustness/worst_shift_")
    }
    assert (seeds["needed"] <= seeds["needed, cautious sd"]).all()
    assert (seeds["needed"] <= seeds["needed, Holm"]).all()
    assert (seeds["power now"] > 0.99).all()  # an sd of .003 against an effect of .01
    shares = tables["variance"].frame.set_index(["measure", "source"])["share"]
    assert shares.loc["robustness/mean_accuracy"].sum() == pytest.approx(1)
    assert shares.loc[("robustness/mean_accuracy", "augmentation")] > 0.4
    assert shares.loc[("id/accuracy", "augmentation")] < 0.02


def test_hypotheses_are_judged_as_in_a_study(write: Write) -> None:
    config, measured = load(*write(CONFIG + HYPOTHESES))
    verdicts = by_name(compute_tables(config, measured))["hypotheses"].frame.set_index("name")
    # Two in the family, over eight seeds; what counts shifts has no p-value and no part in it.
    assert verdicts["verdict"].to_dict() == {"ssl": "supported", "shifts": "no verdict", "loses": "contradicted"}
    assert verdicts["reason"]["shifts"].startswith("consistent over 6 of 6 shift types")
    for column, expected in (("p", 2 / 2**8), ("p Holm", 4 / 2**8)):
        assert verdicts[column]["shifts"] is None or np.isnan(verdicts[column]["shifts"])
        assert verdicts[column][["ssl", "loses"]].tolist() == pytest.approx([expected] * 2)


def test_one_column_of_conditions_without_shifts_is_enough(write: Write) -> None:
    rows: list[list[object]] = [
        [arm, seed, 0.5 + 0.1 * (arm == "b") + 0.01 * seed] for arm in "ab" for seed in range(6)
    ]
    config, measured = load(
        *write("columns: {factors: [arm], seed: seed}\nmetrics: {dice: higher}\n", rows, ["arm", "seed", "dice"])
    )
    tables = by_name(compute_tables(config, measured))
    assert list(tables) == ["means", "effects", "variance", "counts"]
    (effect,) = tables["effects"].frame.to_dict("records")
    assert effect["effect"] == "arm: b − a"
    assert (effect["difference"], effect["p"]) == (pytest.approx(0.1), 2 / 2**6)


def test_four_seeds_have_no_interval_and_no_p_in_any_table_of_numbers(write: Write) -> None:
    config, measured = load(*write(rows=make_rows(4)))
    tables = by_name(compute_tables(config, measured))
    for name in ("means", "effects", "shifts"):
        frame = tables[name].frame
        assert frame[["low", "high"]].isna().all(axis=None)
        assert frame[[column for column in ("p", "p Holm") if column in frame]].isna().all(axis=None)
    assert tables["variance"].frame["p"].isna().all()
    assert tables["effects"].frame["difference"].notna().all()


def test_one_seed_gives_means_and_nothing_it_cannot_know(write: Write) -> None:
    config, measured = load(*write(rows=make_rows(1)))
    tables = by_name(compute_tables(config, measured))
    assert "seeds" not in tables
    assert tables["means"].frame["sd"].isna().all()
    assert tables["effects"].frame[["low", "high", "p", "p Holm"]].isna().all(axis=None)
    assert "| – |" in tables["effects"].markdown()


def test_tables_are_written_for_people_and_programs(write: Write, tmp_path: Path) -> None:
    tables = compute_tables(*load(*write(CONFIG + HYPOTHESES)))
    paths = write_tables(tables, str(tmp_path / "out"))
    assert sorted(paths) == sorted(str(path) for path in (tmp_path / "out").iterdir() if path.suffix != ".sha256")
    names = ["hypotheses", "means", "effects", "seeds", "variance", "counts", "shifts"]
    assert {Path(path).name for path in paths} == {f"{n}.{end}" for n in names for end in ("csv", "md", "tex")}
    with (tmp_path / "out" / "effects.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["difference"]) == tables[2].frame["difference"].iloc[0]
    assert "\\toprule" in (tmp_path / "out" / "effects.tex").read_text()


def test_command_prints_markdown_and_the_paths(write: Write, tmp_path: Path) -> None:
    table, config = write()
    done = CliRunner().invoke(app, ["stats", str(table), "--config", str(config), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "## effects" in done.output
    assert "pretraining: simclr − scratch" in done.output
    assert "## shifts" not in done.output  # long; in the folder
    assert str(tmp_path / "out/shifts.csv") in done.output


def problems(write: Write, config: str = CONFIG, **how: object) -> list[str]:
    table, path = write(config, **how)
    with pytest.raises(StudyError) as caught:
        load_tidy([table], path)
    head, *lines = str(caught.value).split("\n  ")
    assert f"found {len(lines)} problem{'s' * (len(lines) > 1)}" in head
    return [line.replace(f"{table.parent}/", "") for line in lines]


def test_everything_wrong_with_the_configuration_is_said_at_once(write: Write) -> None:
    text = (
        CONFIG.replace("pretraining,", "pretrainig,")
        .replace("higher, smallest_effect: 0.01", "hgher")
        .replace("ece:", "eec:")
    )
    assert problems(write, text + "alpah: .1\n") == [
        "stats.yaml:1: columns.factors[0]: the table has no column 'pretrainig', expected one of pretraining, "
        "augmentation, run, corruption, level, accuracy, ece, comment; did you mean pretraining?",
        "stats.yaml:3: metrics.accuracy.better: found 'hgher', expected 'higher' or 'lower'; did you mean higher?",
        "stats.yaml:4: metrics.eec: the table has no column 'eec', expected one of pretraining, augmentation, run, "
        "corruption, level, accuracy, ece, comment; did you mean ece?",
        "stats.yaml:7: alpah: unknown key, expected one of columns, metrics, clean, reference, max_order, alpha, "
        "power, test, seed, hypotheses; did you mean alpha?",
    ]


def test_everything_wrong_with_the_table_is_said_at_once(write: Write) -> None:
    rows = make_rows(1)
    rows[1][5] = "oops"
    rows[2] = rows[2][:4]
    rows[3][1] = ""
    rows[4][4] = "high"
    rows[5][5] = "inf"
    rows.append(rows[8])
    assert problems(write, rows=rows) == [
        "results.csv:3: accuracy: found 'oops', expected a finite number, or nothing where it is undefined",
        "results.csv:4: found 4 cells, expected 8 as in the header",
        "results.csv:5: augmentation: found nothing, expected a value",
        "results.csv:6: level: found 'high', expected a finite number, or nothing where it is undefined",
        "results.csv:7: accuracy: found 'inf', expected a finite number, or nothing where it is undefined",
        "results.csv:54: found pretraining=scratch, augmentation=strong, run=0, corruption=contrast, level=2 a second "
        "time, first in line 10; give one row per evaluation",
    ]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ("", "found no configuration"),
        ("columns: 3\nmetrics: {accuracy: higher}\n", "columns: found 3, expected a mapping"),
        (CONFIG.replace(", shift: corruption", ""), "columns.severity: there is no column of shifts"),
        (CONFIG.replace("seed: run", "seed: accuracy"), "also columns.seed"),
        (CONFIG.replace("{augmentation: none}", "{augmentation: weak}"), "has no level 'weak', expected one of"),
        (
            CONFIG + HYPOTHESES.replace("simclr", "simclrr", 1),
            "hypotheses[0].treatment.pretraining: pretraining has no",
        ),
        (CONFIG + HYPOTHESES.replace("mean_accuracy", "mean_acc", 1), "there is no measure 'robustness/mean_acc'"),
        (CONFIG + HYPOTHESES.replace("name: shifts", "name: ssl"), "'ssl' is there twice, first in hypotheses[0]"),
        (
            CONFIG + HYPOTHESES + "    alpha: .1\n",
            "hypotheses[2].alpha: found 0.1 where ssl of the same family has 0.05",
        ),
        (CONFIG + HYPOTHESES + "    over: shifts\n", "hypotheses[2].over: shifts are counted for"),
    ],
)
def test_wrong_configurations(write: Write, config: str, found: str) -> None:
    assert any(found in line for line in problems(write, config))


def test_unreadable_files_are_named(write: Write, tmp_path: Path) -> None:
    table, config = write()
    with pytest.raises(StudyError, match=r"could not read the results .*absent"):
        load_tidy([tmp_path / "absent.csv"], config)
    with pytest.raises(StudyError, match=r"could not read the configuration .*absent"):
        load_tidy([table], tmp_path / "absent.yaml")
    assert problems(write, rows=[]) == ["results.csv: found no rows, expected a header and a row per evaluation"]
    assert problems(write, head=[*HEAD[:-1], "ece"])[0] == "results.csv:1: ece: the column is there 2 times; keep one"
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match="UTF-8"):
        load_tidy([table], config)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_seen(write: Write, delimiter: str) -> None:
    table, config = write()
    table.write_text("\ufeff" + table.read_text().replace(",", delimiter))
    assert len(load_tidy([table], config)[1].trials) == 32
