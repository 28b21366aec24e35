"""Who is told what, with a real web server and a real mail server."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.driver import notifications
from orchestrator.driver.notifications import Notifier, read_urls
from orchestrator.driver.prepare import prepare
from orchestrator.driver.run import notifying
from orchestrator.study.execution_config import NotifyConfig
from orchestrator.study.study_file import parse_study
from tests.support.message_servers import Hooks, Mails, serving
from tests.support.plans import make_stage, make_trial
from trainables.errors import StudyError

VARIABLE = "ROBUSTSWEEP_NOTIFY"
#: Of apprise, below Python 3.13.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    level = logging.getLogger("apprise").level
    yield
    logging.getLogger("apprise").setLevel(level)


@pytest.fixture
def hooks() -> Iterator[tuple[Hooks, str]]:
    pytest.importorskip("apprise")
    server = Hooks()
    with serving(server) as port:
        yield server, f"json://127.0.0.1:{port}/s3cr3t"


class Said:
    """A notifier, and what it warned of."""

    def __init__(self, *urls: str, **settings: Any) -> None:
        self.warnings: list[str] = []
        config = NotifyConfig.model_validate(settings)
        self.notifier = Notifier(config, study="s", warn=self.warnings.append, environ={VARIABLE: " ".join(urls)})


# ------------------------------------------------------------------ what arrives


def test_a_web_hook_is_told_of_all_three_events(hooks: tuple[Hooks, str]) -> None:
    server, url = hooks
    said = Said(url)
    with said.notifier as notifier:
        notifier.notify_failure(make_trial("arm"), {"message": "the loss became nan\nTraceback: …"})
        notifier.notify("budget", "10 of 10 trials")
        notifier.notify("end", "all 16 trials are complete")
    assert said.warnings == []
    assert server.paths == ["/s3cr3t"] * 3
    assert [(post["title"], post["type"]) for post in server.posted] == [
        ("RobustSweep, s: a trial failed", "failure"),
        ("RobustSweep, s: the budget is spent", "warning"),
        ("RobustSweep, s: the run has ended", "info"),
    ]
    trial = make_trial("arm")
    assert server.posted[0]["message"] == (
        f"trial arm, replicate 0 [{trial.signature}]: the loss became nan. The study goes on."
    )
    assert server.posted[2]["message"] == "all 16 trials are complete"


def test_an_e_mail_is_sent() -> None:
    pytest.importorskip("apprise")
    server = Mails()
    with serving(server) as port:
        said = Said(f"mailto://127.0.0.1:{port}?mode=insecure&from=sweep@example.org&to=me@example.org&format=text")
        with said.notifier as notifier:
            notifier.notify("end", "all 16 trials are complete")
    assert said.warnings == []
    (mail,) = server.received
    assert mail["Subject"] == "RobustSweep, s: the run has ended"
    assert mail["To"] == "me@example.org"
    assert "all 16 trials are complete" in mail.get_content()


def test_everybody_is_told(hooks: tuple[Hooks, str]) -> None:
    server, url = hooks
    with Said(url, f"{url}/other").notifier as notifier:
        notifier.notify("end", "x")
    assert server.paths == ["/s3cr3t", "/s3cr3t/other"]


def test_only_the_first_failure_of_a_run_is_told(hooks: tuple[Hooks, str]) -> None:
    server, url = hooks
    with Said(url).notifier as notifier:
        for work in (make_stage("stage"), make_trial("trial")):
            notifier.notify_failure(work, {"message": "m"})
    assert [post["message"][:11] for post in server.posted] == ["stage stage"]


def test_what_nobody_asked_for_is_not_sent(hooks: tuple[Hooks, str]) -> None:
    server, url = hooks
    with Said(url, on=["failure"]).notifier as notifier:
        notifier.notify("end", "x")
        notifier.notify("budget", "x")
    assert server.posted == []


def test_an_error_that_ends_the_run_is_told_without_its_secrets(hooks: tuple[Hooks, str]) -> None:
    server, url = hooks
    with pytest.raises(RuntimeError), Said(url).notifier:
        raise RuntimeError("no such store: postgresql://me:hunter2@db/x")
    assert server.posted[0]["message"] == "stopped by an error: no such store: postgresql://***@db/x"


def test_whoever_interrupts_knows_it(hooks: tuple[Hooks, str]) -> None:
    server, url = hooks
    with pytest.raises(KeyboardInterrupt), Said(url).notifier:
        raise KeyboardInterrupt
    assert server.posted == []


def test_without_a_section_nobody_is_told_whatever_the_environment_says(hooks: tuple[Hooks, str]) -> None:
    server, url = hooks
    warnings: list[str] = []
    with Notifier(None, study="s", warn=warnings.append, environ={VARIABLE: url}) as notifier:
        notifier.notify("end", "x")
    assert (server.posted, warnings) == ([], [])


def test_a_run_that_may_start_nothing_tells_so(
    hooks: tuple[Hooks, str], tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = hooks
    monkeypatch.setenv(VARIABLE, url)
    text = f"study: s\ndata: {{kind: digits}}\nexecution: {{cache_dir: {cache_dir}, notify: {{}}}}\n"
    prepared = prepare(parse_study(text, source="s.yaml"), storage=str(tmp_path))
    console = Console(file=StringIO())
    for actions in (
        replace(prepared.actions, start=(), held_back=prepared.actions.open),
        replace(prepared.actions, start=()),  # all is complete: nobody waits for that
    ):
        with notifying(replace(prepared, actions=actions), console):
            pass
    assert [post["message"] for post in server.posted] == ["nothing is started: 1 stages and trials are held back"]
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


# ------------------------------------------------------------------ what cannot be sent


def test_what_is_not_taken_is_a_warning_without_the_url(hooks: tuple[Hooks, str]) -> None:
    server, url = hooks
    server.answer = 500
    said = Said(url)
    with said.notifier as notifier:
        notifier.notify("end", "x")
    (warning,) = said.warnings
    assert warning.startswith("could not send 'the run has ended' to URL 1 of 1 (JSON): it was not taken; ")
    assert "s3cr3t" not in warning


def test_nobody_there_and_nonsense_are_warnings(hooks: tuple[Hooks, str], caplog: pytest.LogCaptureFixture) -> None:
    server, url = hooks
    said = Said("nonsense://s3cr3t", "json://127.0.0.1:1/s3cr3t", url)
    with said.notifier as notifier:
        notifier.notify("end", "x")
    assert len(said.warnings) == 2
    assert said.warnings[0] == "URL 1 of 3 is not one that apprise knows: nothing is sent there"
    assert "URL 2 of 3 (JSON)" in said.warnings[1]
    assert "s3cr3t" not in "".join(said.warnings) + caplog.text
    assert len(server.posted) == 1  # the others are told all the same


def test_whoever_is_slow_is_not_waited_for(hooks: tuple[Hooks, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "PATIENCE_SECONDS", 0.05)
    server, url = hooks
    server.delay_seconds = 1.0
    said = Said(url)
    with said.notifier as notifier:
        notifier.notify("end", "x")
    assert said.warnings == ["not everything could be sent within 0 s"]
    said.notifier._thread.join(30)  # not left behind for the next test


def test_an_apprise_that_does_not_work_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "apprise", None)  # importing it fails
    said = Said("json://127.0.0.1:1")
    with said.notifier as notifier:
        notifier.notify("end", "x")
    assert said.warnings == ["no further notifications are sent: apprise failed with ModuleNotFoundError"]


def test_without_apprise_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "find_spec", lambda name: None)
    said = Said("json://127.0.0.1:1")
    with said.notifier as notifier:
        notifier.notify("end", "x")
    assert said.warnings == [
        "no notifications will be sent: apprise is not installed; pip install 'robustsweep[notify]'"
    ]


# ------------------------------------------------------------------ where the URLs come from


def test_urls_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("# mine\njson://a\n\n  mailto://b  \n")
    file.chmod(0o600)
    warnings: list[str] = []
    config = NotifyConfig(urls_env="MINE", urls_file=file)
    assert read_urls(config, {"MINE": "slack://x\njson://y"}, warnings.append) == [
        "slack://x", "json://y", "json://a", "mailto://b",
    ]  # fmt: skip
    assert warnings == []
    file.chmod(0o644)
    read_urls(config, {}, warnings.append)
    assert warnings == [f"others on this machine may read {file}, which holds secrets; chmod 600 {file}"]


def test_no_urls_are_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert read_urls(NotifyConfig(), {}, warnings.append) == []
    assert read_urls(NotifyConfig(urls_file=tmp_path / "none"), {}, warnings.append) == []
    assert warnings[0] == "no notifications will be sent: the environment variable ROBUSTSWEEP_NOTIFY is not set"
    assert "No such file" in warnings[1]
    assert warnings[2].endswith(f"is not set, and {tmp_path / 'none'} has none")


def test_a_url_in_the_study_file_is_refused() -> None:
    for where in ("urls_env: 'json://host/hook'", "urls: ['json://host/hook']", "on: [sometimes]", "on: []"):
        text = f"study: s\ndata: {{kind: digits}}\nexecution: {{notify: {{{where}}}}}\n"
        with pytest.raises(StudyError, match=r"execution\.notify"):
            parse_study(text, source="s.yaml")
