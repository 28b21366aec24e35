from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.analysis.results import Results, load_results
from orchestrator.selection.card import ExportFacts, build_card
from orchestrator.selection.card_format import Card, render_html, render_markdown
from orchestrator.selection.part_scores import PartScore, PartScores, Score, score_parts
from orchestrator.selection.ranking import Selection, SelectionCriteria, select_arm
from orchestrator.selection.select_model import describe_selection
from orchestrator.statistics.intervals import Summary
from tests.support.synthetic_ledger import Fate, make_fake_ledger
from tests.support.trained_study import TrainedStudy
from trainables.config import TrialConfig
from trainables.evaluation.predictions import load_predictions
from trainables.exported.classifier import ImageClassifier

SECTIONS = [
    "Intended use", "Data", "Training", "Results", "Robustness", "Calibration", "Selection", "Limits", "Provenance",
]  # fmt: skip
NOTHING = ExportFacts(ImageClassifier, notes=(), checks=(), files={})
CLASSES = tuple(PartScore(name, 180, (Score("recall", Summary(0.9, 0.01, 2)),)) for name in ("normal", "diseased"))
SITES = tuple(
    PartScore(name, 90, (Score("accuracy", Summary(0.8, 0.02, 2)), Score("balanced accuracy", Summary(0.81, 0.02, 2))))
    for name in ("paris", "lyon")
)


def card_of(
    folder: Path,
    criteria: SelectionCriteria | None = None,
    sites: Sequence[PartScore] = SITES,
    words: str = "Which holds up?",
    **ledger: Any,
) -> tuple[Results, Selection, Card]:
    results = load_results(make_fake_ledger(folder, question=words, **ledger))
    for record in results.records.values():
        if record.result is not None:
            record.result.setdefault("checkpoint_sha256", "c" * 64)
    selection = select_arm(results, criteria or SelectionCriteria())
    config = TrialConfig.model_validate(results.records[selection.signature].config["config"])
    card = build_card(
        results,
        selection,
        config,
        parts=PartScores(tuple(sites), CLASSES),
        exported=replace(
            NOTHING,
            checks=["model.safetensors against the stored predictions: largest difference 0"],
            files={"model.safetensors": "the weights"},
        ),
    )
    return results, selection, card


class Text(HTMLParser):
    """Collects the headings of a page, its whole text, and everything that a browser would load or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.text = ""
        self.loaded: list[str] = []
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.loaded += [f"{tag} {name}" for name, _ in attrs if name in ("src", "srcset")] + [tag] * (tag == "script")

    def handle_data(self, data: str) -> None:
        self.headings += [data] if self._tag == "h2" and data.strip() else []
        self.text += data if self._tag != "style" else ""


def test_splits_that_differ_between_trials_are_not_called_the_same(tmp_path: Path) -> None:
    results, selection, card = card_of(tmp_path)
    assert "the same for all arms and replicates" in render_markdown(card)
    record = results.records[selection.signature]
    record.config["config"]["data"]["split_seed"] = 17
    config = TrialConfig.model_validate(record.config["config"])
    card = build_card(results, selection, config, parts=PartScores((), CLASSES), exported=NOTHING)
    assert re.search(r"split.?_seed not the same in all trials", render_markdown(card))


def test_a_network_that_was_cut_is_called_so(tmp_path: Path) -> None:
    results, selection, card = card_of(tmp_path)
    assert "(first 2 stages)" not in render_markdown(card)
    config = TrialConfig.model_validate(results.records[selection.signature].config["config"])
    config = config.model_copy(update={"model": config.model.model_copy(update={"stages": 2})})
    card = build_card(results, selection, config, parts=PartScores((), CLASSES), exported=NOTHING)
    assert f"{config.model.name} (first 2 stages), " in render_markdown(card)


def test_both_forms_have_every_section_and_load_nothing(tmp_path: Path) -> None:
    _, _, card = card_of(tmp_path)
    page, markdown = Text(render_html(card)), render_markdown(card)
    assert page.headings == re.findall(r"^## (.*)$", markdown, re.MULTILINE) == SECTIONS
    assert page.loaded == []
    front = yaml.safe_load(markdown.split("---")[1])
    assert front["pipeline_tag"] == "image-classification"
    assert front["tags"] == ["image-classification", "robustness", "fake-study"]


def test_the_numbers_are_those_of_the_report(tmp_path: Path) -> None:
    results, selection, card = card_of(tmp_path, replicates=3)
    chosen = results.trials[results.trials["name"] == selection.arm.name]
    page = Text(render_html(card)).text.replace("\u00a0", " ")
    for column in (
        "val/balanced_accuracy", "id/auroc", "external/site-3/accuracy", "robustness/mean_balanced_accuracy",
        "calibration/ece", "calibration/mean_shifted_ece",
    ):  # fmt: skip
        mean, sd = chosen[column].mean(), chosen[column].std(ddof=1)
        assert f"{100 * mean:.1f} ± {100 * sd:.1f} %" in page, column
    own = chosen[chosen["signature"] == selection.signature]["external/site-3/balanced_accuracy"].iloc[0]
    assert f"{100 * own:.1f} %" in page
    shifts = results.shifts[(results.shifts["name"] == selection.arm.name) & (results.shifts["set"] == "test")]
    means = shifts[shifts["severity"] > 0].groupby(["shift", "severity"])["balanced_accuracy"].mean()
    name, severity = means.idxmin()
    assert f"the worst is {name} at severity {severity}: {100 * means.min():.1f}" in page
    assert "1,080 train, 357 val, 360 test" in page
    assert "300 site-3" in page
    for fact in (selection.signature, "f" * 16, "a" * 64, "c" * 64, "git commit 0123456789", "torch 2.15.0"):
        assert fact in page


def test_thresholds_of_validation_come_with_predictive_values(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, question="Which?")
    results = load_results(ledger)
    signature = select_arm(results, SelectionCriteria()).signature
    folder = ledger.folder("trial", signature)
    result = folder.read_json("result.json")
    result["validation_fit"] = {"temperature": 1.5, "threshold_at_specificity_95": 0.75}
    result["metrics"] |= {"id/sensitivity_at_specificity_95": 0.9, "id/specificity_at_specificity_95": 0.95}
    folder.write_json("result.json", result)
    results = load_results(ledger)
    selection = select_arm(results, SelectionCriteria())
    config = TrialConfig.model_validate(results.records[signature].config["config"])
    results.records[signature].result.setdefault("checkpoint_sha256", "c" * 64)  # type: ignore[union-attr]
    card = build_card(results, selection, config, parts=PartScores((), CLASSES), exported=NOTHING)
    page = Text(render_html(card)).text.replace("\u00a0", " ")
    assert selection.signature == signature
    assert "95 % specificity" in page
    assert "0.75" in page
    # Of 10,000 people at 1 %: 90 of 100 ill and 495 of 9,900 others are called positive.
    assert f"{100 * 90 / 585:.1f} % / {100 * 9405 / 9415:.1f} %" in page
    assert "95 % sensitivity" not in page  # this model has no such threshold


def test_an_oracle_and_missing_trials_are_the_first_thing_one_reads(tmp_path: Path) -> None:
    question = SelectionCriteria(by="id/auroc", oracle=True, incomplete=True)
    _, _, card = card_of(tmp_path, question, fate=Fate(failed=1, missing=2))
    markdown, page = render_markdown(card), render_html(card)
    head = markdown.split("## Intended use")[0]
    assert "Chosen by an oracle: id/auroc is not in-distribution validation" in head
    assert "Chosen while 3 trials were not complete (24 planned, 21 complete, 1 failed, 2 missing)" in head
    assert re.search(r"^# .*\(oracle\)$", head, re.MULTILINE)
    assert page.count('class="callout warn"') == 2
    assert '- "oracle"' in markdown
    _, _, plain = card_of(tmp_path / "plain")
    assert plain.warnings == []
    assert "oracle" not in render_markdown(plain).lower()


def test_what_a_pretraining_may_have_seen_is_said_of_the_chosen_model(tmp_path: Path) -> None:
    results, selection, _ = card_of(tmp_path)
    remark = "transductive: a pretraining may have seen these images"
    results.plan["remarks"] = {selection.arm.name: [remark]}
    chosen = select_arm(results, SelectionCriteria())
    assert chosen.remarks == (remark,)
    assert describe_selection(chosen, results)[-1] == f"  {remark}"
    config = TrialConfig.model_validate(results.records[chosen.signature].config["config"])
    card = build_card(results, chosen, config, parts=PartScores((), CLASSES), exported=NOTHING)
    assert card.warnings == [f"{remark.capitalize()}; the numbers here may be better than on new images."]


def test_what_is_not_known_is_a_limit(tmp_path: Path) -> None:
    _, _, card = card_of(tmp_path, sites=(), externals=())
    limits = next(part for part in card.parts if part.title == "Limits")
    text = " ".join(limits.blocks[0].items)  # type: ignore[union-attr]
    assert "No external set" in text
    assert "per-site results cannot be given" in text
    assert "2 replicates: the spread over seeds is hardly known; at least 5 would do." in text
    _, _, better = card_of(tmp_path / "better", replicates=5)
    text = " ".join(next(part for part in better.parts if part.title == "Limits").blocks[0].items)  # type: ignore[union-attr]
    assert "No external set" not in text
    assert "hardly known" not in text


def test_names_from_the_study_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> | [x](http://x) `a` *b* \n# head"
    _, _, card = card_of(tmp_path, words=evil)
    page, markdown = render_html(card), render_markdown(card)
    assert "<script>" not in page
    assert "<script>" not in markdown
    assert "\\<script\\>alert(1)\\</script\\> \\| \\[x\\](http://x) \\`a\\` \\*b\\* \\# head" in markdown
    assert Text(page).loaded == []


def test_scores_per_site_and_class_come_from_the_stored_predictions(trained_study: TrainedStudy) -> None:
    results, ledger = trained_study.results, trained_study.ledger
    selection = select_arm(results, SelectionCriteria())
    rows = results.complete[results.complete["name"] == selection.arm.name]
    stored = [load_predictions(ledger.folder("trial", signature), "test") for signature in rows["signature"]]
    labels = stored[0].labels
    sites = np.array(["a", "b", "c"] * 8)
    scores = score_parts(ledger, results, selection, sites, ("0", "1"))
    correct = [each.of("identity/0").argmax(1) == labels for each in stored]
    for site in scores.sites:
        expected = [each[sites == site.name].mean() for each in correct]
        accuracy, balanced = site.scores
        assert (accuracy.title, balanced.title) == ("accuracy", "balanced accuracy")
        assert accuracy.summary.mean == pytest.approx(np.mean(expected))
        assert accuracy.summary.sd == pytest.approx(np.std(expected, ddof=1))
        assert (site.num_images, accuracy.summary.n) == (8, 2)
    assert [part.name for part in scores.sites] == ["a", "b", "c"]
    assert scores.of_replicates == ""
    recalls = [part.scores[0].summary.mean or 0.0 for part in scores.classes]
    assert np.mean(recalls) == pytest.approx(rows["id/balanced_accuracy"].mean()), "mean recall: balanced accuracy"
    assert score_parts(ledger, results, selection, np.array([""] * 24), ("0", "1")).sites == ()
    assert sum(part.num_images for part in scores.classes) == 24
