from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import beta, t
from typer.testing import CliRunner

from orchestrator.analysis.tidy.reported import compute_reported, is_reported, load_reported
from orchestrator.analysis.tidy.tables import Table
from orchestrator.cli.main import app
from trainables.errors import StudyError

ACCURACIES = """\
method,dataset,accuracy,n
ours,A,0.87,200
unet,A,0.85,200
swin,A,0.80,200
ours,B,0.60,50
unet,B,0.70,50
"""
CONFIG = (
    "reported: {method: method, mean: accuracy, n: n, by: [dataset], claimed: ours, congruence: [0.55, 0.75, 0.8]}\n"
)
PROBABILITY = "probability of a false claim"

Answer = Callable[..., Table]


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    def write_and_answer(config: str = CONFIG, table: str = ACCURACIES) -> Table:
        (tmp_path / "reported.yaml").write_text(config)
        (tmp_path / "reported.csv").write_text(table)
        return compute_reported(*load_reported([tmp_path / "reported.csv"], tmp_path / "reported.yaml"))

    return write_and_answer


def test_claims_about_shares_of_right_cases(answer: Answer) -> None:
    frame = answer().frame.set_index(["dataset", "against", "congruence"])
    assert len(frame) == 9
    assert set(frame["claimed"]) == {"ours"}
    # Beta(x₁ + 1, x₂ + 1) below ½, x = n (accuracy − congruence): 14 against 10 cases, 24 against 20.
    assert frame.loc[("A", "unet", 0.8), PROBABILITY] == pytest.approx(beta.cdf(0.5, 15, 11))
    assert frame.loc[("A", "unet", 0.75), PROBABILITY] == pytest.approx(beta.cdf(0.5, 25, 21))
    # Of the cases that swin got right, ours got all: 14 against 0.
    assert frame.loc[("A", "swin", 0.8), PROBABILITY] == pytest.approx(2**-15)
    assert frame.loc[("A", "swin", 0.8), "at most 0.05"] == "yes"
    assert frame.loc[("B", "unet", 0.55), PROBABILITY] == pytest.approx(beta.cdf(0.5, 3.5, 8.5))
    assert frame.loc[("B", "unet", 0.55), PROBABILITY] > 0.9  # claimed although it is worse
    impossible = frame.loc[("B", "unet", 0.8)]
    assert impossible[PROBABILITY] != impossible[PROBABILITY]
    assert impossible["note"] == "with these means it is from 0.300 to 0.600"


def test_correlation_says_what_congruence_says(answer: Answer) -> None:
    # 50 cases: 30 both right, 5 only the first, 10 only the second, 5 neither; φ = (30·5 − 5·10) / √(35·15·40·10).
    table = "method,accuracy\nours,0.7\nunet,0.8\n"
    config = "reported: {method: method, mean: accuracy, n: 50, claimed: ours, correlation: 0.2182178902359924}\n"
    assert answer(config, table).frame[PROBABILITY].tolist() == pytest.approx([beta.cdf(0.5, 6, 11)])
    best = answer(config.replace("claimed: ours, ", ""), table).frame
    assert best["claimed"].tolist() == ["unet"]
    assert best[PROBABILITY].tolist() == pytest.approx([1 - beta.cdf(0.5, 6, 11)])
    lower = answer(config.replace("claimed: ours, ", "better: lower, "), table).frame
    assert lower["claimed"].tolist() == ["ours"]
    assert lower[PROBABILITY].tolist() == pytest.approx([1 - beta.cdf(0.5, 6, 11)])
    percent = answer(config.replace("n: 50", "n: 50, percent: true"), table.replace("0.7", "70").replace("0.8", "80"))
    assert percent.frame[PROBABILITY].tolist() == pytest.approx([beta.cdf(0.5, 6, 11)])
    assert percent.frame["difference"].tolist() == pytest.approx([-10])


def test_claims_about_mean_scores(answer: Answer) -> None:
    table = "model;dice;sd;cases;r\nnew;0.85;0.10;40;\nold;0.83;0.12;40;0.7\nolder;0.80;0.2;40;0.5\n"
    config = "reported: {method: model, mean: dice, sd: sd, n: cases, correlation: r}\n"
    frame = answer(config, table).frame
    sds = [(0.1**2 + 0.12**2 - 2 * 0.7 * 0.1 * 0.12) ** 0.5, (0.1**2 + 0.2**2 - 2 * 0.5 * 0.1 * 0.2) ** 0.5]
    expected = [t.cdf(-gain / (sd / 40**0.5), 39) for gain, sd in zip((0.02, 0.05), sds, strict=True)]
    assert frame[PROBABILITY].tolist() == pytest.approx(expected)
    assert frame["correlation"].tolist() == [0.7, 0.5]
    assert frame["at most 0.05"].tolist() == ["no", "yes"]
    lower = answer(config.replace("sd: sd", "sd: sd, better: lower, claimed: new"), table).frame
    assert lower[PROBABILITY].tolist() == pytest.approx([1 - p for p in expected])


@pytest.mark.parametrize(
    ("config", "table", "found"),
    [
        (
            CONFIG.replace(", congruence: [0.55, 0.75, 0.8]", ""),
            ACCURACIES,
            "expected either correlation or congruence",
        ),
        (CONFIG.replace("}", ", correlation: 0.5}"), ACCURACIES, "expected either correlation or congruence"),
        (CONFIG.replace("n: n", "n: n, sd: n"), ACCURACIES, "congruence is a share of right cases, with sd give"),
        (CONFIG.replace("0.8]", "1.8]"), ACCURACIES, "reported.yaml:1: reported.congruence"),
        (CONFIG.replace("accuracy", "acuracy"), ACCURACIES, "reported.csv has no column 'acuracy', expected one of"),
        (CONFIG.replace("ours", "our"), ACCURACIES, "no row has the claimed method 'our', expected one of ours, unet"),
        (
            CONFIG,
            ACCURACIES.replace("0.80", "80"),
            "reported.csv:4: accuracy: found 80, expected a share of cases from",
        ),
        (CONFIG, ACCURACIES.replace("0.80", ""), "reported.csv:4: accuracy: found nothing, expected a number"),
        (
            CONFIG,
            ACCURACIES.replace("0.80,200", "0.80,100"),
            "reported.csv:4: n: found 100 test cases, expected 200 as",
        ),
        (CONFIG, ACCURACIES.replace("0.80,200", "0.80,9.5"), "found 9.5, expected a whole number of test cases"),
        (CONFIG, ACCURACIES.replace("swin", "unet"), "found 'unet' a second time, first in line 3; see by"),
        (
            CONFIG.replace("[0.55, 0.75, 0.8]", "n"),
            ACCURACIES,
            "reported.csv:2: n: found 200, expected a number from −1 to 1",
        ),
    ],
)
def test_what_is_wrong_is_said(answer: Answer, config: str, table: str, found: str) -> None:
    with pytest.raises(StudyError) as caught:
        answer(config, table)
    assert found in str(caught.value)


def test_command_answers_from_reported_results(answer: Answer, tmp_path: Path) -> None:
    answer()
    table, config = tmp_path / "reported.csv", tmp_path / "reported.yaml"
    assert is_reported(config)
    done = CliRunner().invoke(app, ["stats", str(table), "--config", str(config), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "## outperformance" in done.output
    assert "| A | ours | swin |" in done.output
    assert (tmp_path / "out" / "outperformance.csv").exists()
