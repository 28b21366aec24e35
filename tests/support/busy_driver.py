"""A driver whose slots write the records of made-up trials, all at once, while one shipper sends them. Tests only."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.shipper import Shipper
from orchestrator.tracking.tracker import Tracker
from tests.support.ledger_records import CREATED_MS, add_epochs, begin, complete, make_ledger

NUM_SLOTS, NUM_EPOCHS = 16, 12
#: As of trials of seconds: the shipper meets records that are being written.
_EPOCH_SECONDS = 0.1


def run_slot(ledger: Ledger, shipper: Shipper, signatures: list[str]) -> None:
    """Write trial after trial, epoch by epoch, and tell the shipper of each."""
    for signature in signatures:
        begin(ledger, signature, study=ledger.study)
        for epoch in range(1, NUM_EPOCHS + 1):
            add_epochs(ledger, signature, first=epoch, last=epoch)
            shipper.notify("trial", signature)
            time.sleep(_EPOCH_SECONDS)
        # Without the metric of ``complete`` whose name MLflow cannot keep.
        changes = {"metrics": {"id/accuracy": 0.9, "robustness/mean_accuracy": 0.7}, "epochs": NUM_EPOCHS}
        complete(ledger, signature, finished_ms=CREATED_MS + 1000 * NUM_EPOCHS, **changes)
        shipper.notify("trial", signature)


def main(storage: str, study: str, tracking_uri: str, trials_per_slot: str) -> None:
    """Run a study of made-up trials; exit with the number of records that MLflow lacks at the end."""
    slots = [[f"t{slot}x{trial}" for trial in range(int(trials_per_slot))] for slot in range(NUM_SLOTS)]
    signatures = tuple(signature for slot in slots for signature in slot)
    ledger = make_ledger(Path(storage), signatures, study)
    shipper = Shipper(
        lambda: Tracker(tracking_uri, ledger, about=ledger.read_plan()),
        ledger,
        resumed=signatures,
        interval_seconds=0.5,
    )
    shipper.start()
    threads = [threading.Thread(target=run_slot, args=(ledger, shipper, slot)) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = shipper.finish(200)
    shipper.conclude(None, is_complete=True)
    sys.exit(left)


if __name__ == "__main__":
    main(*sys.argv[1:])
