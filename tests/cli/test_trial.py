from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.trial import run_single
from orchestrator.ledger.ledger import Ledger
from orchestrator.study.study_file import Study, load_study
from tests.conftest import FinishedStudy
from tests.support.tiny_study import Place, copy_place
from trainables.errors import LeaseError, StudyError

CALL = """
import sys
from orchestrator.cli.main import main
try:
    main()
finally:
    print("imported:", *sorted({"ray", "mlflow"} & set(sys.modules)))
"""


@pytest.fixture
def place(finished_study: FinishedStudy, tmp_path: Path) -> Place:
    return copy_place(finished_study.place, tmp_path)


def run(place: Place, signature: str) -> str:
    study: Study = load_study(place.study)
    return run_single(study, signature, storage=str(place.storage), echo=lambda line: None)


def comparable(result: dict[str, Any] | None) -> dict[str, Any]:
    assert result is not None
    return {key: result[key] for key in ("metrics", "evaluations", "checkpoint_sha256", "epochs", "best_epoch")}


def test_a_trial_alone_reaches_the_same_result_without_ray(place: Place) -> None:
    ledger = Ledger(str(place.storage), "tiny")
    before = next(record for record in ledger.records("trial") if record.config["needs"])
    shutil.rmtree(ledger.folder("trial", before.signature).uri)
    done = subprocess.run(
        [sys.executable, "-c", CALL, "trial", str(place.study), before.signature[:10], "--storage", str(place.storage)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("imported:\n")
    assert "epoch 3  " in done.stdout
    assert comparable(ledger.read("trial", before.signature).result) == comparable(before.result)


def test_an_unknown_or_ambiguous_signature_lists_what_there_is(place: Place) -> None:
    for signature in ("nonsense", ""):
        with pytest.raises(StudyError, match="looked for exactly one stage or trial") as caught:
            run(place, signature)
        assert "pretraining=scratch, augmentation=strong" in str(caught.value)


def test_a_trial_whose_stage_is_missing_says_what_to_run_first(place: Place) -> None:
    ledger = Ledger(str(place.storage), "tiny")
    trial = next(record for record in ledger.records("trial") if record.config["needs"])
    (stage,) = trial.config["needs"]
    shutil.rmtree(ledger.folder("stage", stage).uri)
    with pytest.raises(StudyError, match=rf"starts from the stage {stage}, which is not complete; run that first"):
        run(place, trial.signature)


def test_a_running_study_is_not_disturbed(place: Place) -> None:
    from orchestrator.ledger.lease import Lease

    ledger = Ledger(str(place.storage), "tiny")
    trial = next(record for record in ledger.records("trial") if not record.config["needs"])
    with Lease(ledger), pytest.raises(LeaseError, match="is being run by process"):
        run(place, trial.signature)
