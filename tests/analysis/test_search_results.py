"""The report of a search: what is best, what is labelled, what mattered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.analysis.results import Results, load_results
from orchestrator.analysis.search_results import compute_importances, find_best, find_configurations
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.page import read_figures
from orchestrator.report.sections.search import search_section
from orchestrator.report.write import write_report
from orchestrator.study.study_file import parse_study
from tests.support.instant_search import SPACE, measure
from tests.support.synthetic_ledger import make_result

HEAD = "study: s\nquestion: Why?\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\n"
BOTH = "[{metric: validation/balanced_accuracy}, {metric: robustness/worst_shift_balanced_accuracy, oracle: true}]"


def make_ledger(folder: Path, cache_dir: Path, *overrides: str, num_complete: int = 1000) -> Ledger:
    """Return the ledger of a search of which so many trials are complete."""
    always = [f"execution.cache_dir={cache_dir}", "search.num_trials=20"]
    study = parse_study(HEAD + SPACE, source="s.yaml", overrides=[*always, *overrides])
    prepared = prepare(study, storage=str(folder))
    search, ledger = prepared.search, prepared.ledger
    assert search is not None
    search.update_states({})
    todo = search.next_works(lambda *_: None)
    for work in todo:  # it grows meanwhile
        if num_complete == 0:
            break
        num_complete -= 1
        result = make_result(work, ())
        ledger.begin(work, study="s", git_commit=None)
        metrics = result["metrics"] | measure(work.config)  # type: ignore[arg-type]
        ledger.folder("trial", work.signature).write_json("result.json", result | {"metrics": metrics})
        search.record_end(work.signature, "complete")
        todo += search.next_works(lambda *_: None)
    ledger.write_plan(search.plan, prepared.about)
    return ledger


def load(ledger: Ledger) -> Results:
    return load_results(ledger)


def text_of(results: Results) -> str:
    section = search_section(results)
    assert section is not None
    return re.sub(r"<script.*?</script>|<[^>]+>", " ", section.body, flags=re.DOTALL)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Ledger:
    return make_ledger(tmp_path_factory.mktemp("search"), cache_dir)


def test_the_best_configuration_comes_first(ledger: Ledger) -> None:
    results = load(ledger)
    found = find_configurations(results)
    assert found is not None
    assert len(found.known) == 20
    best = find_best(found)
    assert [each.values[0] for each in best] == sorted((each.values[0] for each in found.known), reverse=True)
    text = text_of(results)
    assert "Searched by tpe for higher validation/balanced_accuracy; mean over 1 replicate." in text
    assert "20 configurations of 20 proposed, 20 complete." in text
    assert f"{best[0].values[0]:.4g}" in text
    assert "racle" not in text


def test_the_planted_choice_is_the_important_one(ledger: Ledger) -> None:
    found = find_configurations(load(ledger))
    assert found is not None
    frame = compute_importances(found).set_index("dimension")
    assert set(frame.index) == {"augmentation", "training.learning_rate", "augmentation.strength"}
    for kind in ("ped_anova", "fanova"):
        assert frame[kind].sum() == pytest.approx(1.0)
    assert frame["fanova"].isna().tolist() == [name == "augmentation.strength" for name in frame.index]
    assert compute_importances(found).equals(compute_importances(found))


def test_an_oracle_is_labelled(tmp_path: Path, cache_dir: Path) -> None:
    results = load(make_ledger(tmp_path, cache_dir, f"search.objectives={BOTH}"))
    text = text_of(results)
    assert "Oracle: the search was guided by robustness/worst_shift_balanced_accuracy" in text
    assert "robustness/worst_shift_balanced_accuracy (oracle)" in text
    found = find_configurations(results)
    assert found is not None
    front = find_best(found)
    assert front
    for each in front:
        assert not any(
            all(a >= b for a, b in zip(other.values, each.values, strict=True)) and other.values != each.values
            for other in found.known
        )


def test_what_breaks_a_constraint_is_left_out(tmp_path: Path, cache_dir: Path) -> None:
    constraint = "search.constraints=[{metric: validation/ece, at_most: 0.002}]"
    results = load(make_ledger(tmp_path, cache_dir, constraint))
    found = find_configurations(results)
    assert found is not None
    best = find_best(found)
    assert 0 < len(best) < 20
    assert all(float(each.levels["training.learning_rate"]) * 0.3 <= 0.002 for each in best)
    assert f"{20 - len(best)} break a constraint" in text_of(results)


def test_a_search_that_has_not_ended_is_counted(tmp_path: Path, cache_dir: Path) -> None:
    results = load(make_ledger(tmp_path, cache_dir, num_complete=4))
    assert results.counts == {"planned": 20, "complete": 4, "failed": 0, "interrupted": 0, "missing": 16}
    text = text_of(results)
    assert "6 configurations of 20 proposed, 4 complete, 2 failed, undefined or not ended, 14 not proposed" in text
    assert "Importances are not shown: 4 complete configurations, at least 10" in text
    empty = load(make_ledger(tmp_path / "empty", cache_dir, num_complete=0))
    assert "No configuration is known yet." in text_of(empty)


def test_the_whole_report_is_written(ledger: Ledger, cache_dir: Path) -> None:
    report = write_report(ledger, cache_dir=cache_dir, examples=False)
    page = Path(report.html).read_text()
    assert 'id="search"' in page
    assert 'id="effects"' not in page  # there are no pairs
    assert read_figures(page)["figure-search"]["data"]
    assert "augmentation=strong" not in page  # arms have short labels, all different
    labels = load_results(ledger).labels.values()
    assert len({*labels}) == len(labels)
    assert any(label.startswith("strong · ") and f">{label}<" in page for label in labels)


def test_a_grid_has_no_such_section(ledger: Ledger) -> None:
    results = load(ledger)
    del results.plan["search"]
    assert search_section(results) is None
