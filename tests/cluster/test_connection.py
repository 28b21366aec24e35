from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.connection import make_dashboard_url
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.usage import describe_compute, find_dashboard, record_dashboard


@pytest.mark.parametrize(
    ("told", "url"),
    [
        (None, None),
        ("", None),
        ("10.0.0.1:8265", "http://10.0.0.1:8265"),
        ("https://ray.example/dash?token=abc", "https://ray.example/dash?token=***"),
        ("https://me:secret@ray.example", "https://***@ray.example"),
    ],
)
def test_a_dashboard_is_a_url_without_secrets(told: str | None, url: str | None) -> None:
    assert make_dashboard_url(told) == url


def test_the_report_names_the_dashboard_of_the_last_cluster(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "s")
    assert find_dashboard(ledger) is None
    assert describe_compute(ledger, None) == {}
    record_dashboard(ledger, "http://10.0.0.1:8265")
    assert find_dashboard(ledger) == "http://10.0.0.1:8265"
    assert describe_compute(ledger, None) == {"Ray dashboard": "http://10.0.0.1:8265 while the cluster runs"}
