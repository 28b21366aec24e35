"""Commands ``robustsweep submit``, ``logs`` and ``stop``: a study as a job of a Ray cluster (``cluster/jobs``)."""

from __future__ import annotations

import os
import shlex
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Mlflow, Overrides, Storage, StudyFile, StudyOrName
from orchestrator.cluster.exit_codes import INCOMPLETE
from orchestrator.driver.terminal.echo import echo, print_output
from trainables.errors import StudyError

if TYPE_CHECKING:
    from orchestrator.cluster.jobs.study_jobs import Jobs
    from orchestrator.study.study_file import Study

JobServerAddress = Annotated[
    str, typer.Option("--address", help="Job server of the cluster: http://HEAD:8265.", show_default=False)
]


def submit(  # noqa: PLR0913 - the options of a command are its arguments
    study: StudyFile,
    address: JobServerAddress,
    *,
    storage: Storage = None,
    mlflow: Mlflow = None,
    overrides: Overrides = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed trials again.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="How often a driver that died is submitted again.")] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job's end.")] = False,
    working_dir: Annotated[
        Path | None, typer.Option(help="Folder that is uploaded.", show_default="the current one")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Pattern, as in a .gitignore, of what is not uploaded. Repeatable.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="Name of an environment variable for the job; no secret. Repeatable.")
    ] = None,
    program: Annotated[
        str, typer.Option(help="How robustsweep is called on the head's machine.", metavar="COMMAND")
    ] = "robustsweep",
    shared_storage: Annotated[
        bool, typer.Option("--shared-storage", help="The cluster has the storage's folder under the same path.")
    ] = False,
) -> None:
    """Run a study as a job of a Ray cluster and follow it. A second submission attaches to the job that runs."""
    from orchestrator.cluster.jobs.entrypoint import build_entrypoint, check_no_secret, check_storage, find_in_upload
    from orchestrator.cluster.jobs.study_jobs import Submission
    from orchestrator.cluster.jobs.upload import find_upload, read_variables
    from orchestrator.study.study_file import load_study

    if detach and retries:
        raise StudyError("got --detach and --retries; somebody has to watch the driver to submit it again: give one")
    loaded = load_study(study, overrides or ())
    flags = {"--storage": storage, "--mlflow": mlflow, "--set": overrides}
    check_no_secret(loaded, flags)
    jobs = _open_jobs(loaded, address, storage)
    check_storage(jobs.ledger, address, is_shared=shared_storage)
    variables = read_variables(env or (), os.environ)
    upload = find_upload(working_dir or Path.cwd(), exclude or ())
    words = ["run", str(find_in_upload(study, upload)), "--address", "auto"]
    words += ["--storage", jobs.ledger.root.uri.removesuffix(f"/{loaded.study}")]
    words += [word for flag, value in (("--mlflow", mlflow),) if value for word in (flag, value)]
    words += [word for value in overrides or () for word in ("--set", value)] + ["--retry-failed"] * retry_failed
    jobs.say(f"upload: {upload.describe()}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="robustsweep-") as folder:
        package = Path(folder, "package.zip")
        upload.pack(package)
        submission = Submission(build_entrypoint(jobs.ledger, words, program=program), package, variables)
        if detach:
            jobs.start(submission)
            jobs.say(_describe_commands(study, address, storage))
            return
        try:
            code = jobs.run(submission, retries=retries)
        except KeyboardInterrupt:
            jobs.say("not followed any more; if it was submitted, the job goes on")
            jobs.say(_describe_commands(study, address, storage))
            raise typer.Exit(INCOMPLETE) from None
    raise typer.Exit(code)


def logs(
    study: StudyOrName,
    address: JobServerAddress,
    storage: Storage = None,
    overrides: Overrides = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the attempt.", show_default="the last")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what the driver of a submitted study has printed."""
    from orchestrator.cli.lookup import open_study

    loaded = open_study(study, storage=storage, overrides=overrides or ())
    jobs = _open_jobs(loaded, address, storage)
    found = jobs.attempts.latest() if attempt is None else jobs.attempts.read(attempt)
    if found is None:
        which = "it was never submitted" if attempt is None else f"there is no attempt {attempt}"
        raise StudyError(f"looked for a job of the study {loaded.study!r} in {jobs.ledger.root.uri}: {which}")
    if follow:
        try:
            raise typer.Exit(jobs.conclude(found.job, jobs.follow(found.job)))
        except KeyboardInterrupt:
            raise typer.Exit(INCOMPLETE) from None
    if jobs.server.find(found.job) is None:
        raise StudyError(f"looked for the job {found.job}, and the cluster at {address} has no such job")
    jobs.write(jobs.server.read_log(found.job))


def stop(study: StudyOrName, address: JobServerAddress, storage: Storage = None, overrides: Overrides = None) -> None:
    """Stop the job of a study in order; what is finished stays, and submitting it again goes on."""
    from orchestrator.cli.lookup import open_study

    loaded = open_study(study, storage=storage, overrides=overrides or ())
    jobs = _open_jobs(loaded, address, storage)
    jobs.write = lambda _: None
    jobs.say(jobs.stop())


def _open_jobs(study: Study, address: str, storage: str | None) -> Jobs:
    """Return the jobs of a study; what a job prints goes to standard output, and what happens to standard error."""
    from orchestrator.cluster.jobs.ray_server import RayJobServer
    from orchestrator.cluster.jobs.study_jobs import Jobs
    from orchestrator.ledger.ledger import Ledger

    ledger = Ledger(storage or study.execution.storage, study.study)
    return Jobs(RayJobServer(address), ledger, say=lambda text: echo(text, err=True), write=print_output)


def _describe_commands(study: Path, address: str, storage: str | None) -> str:
    """Return how to follow and to stop a job."""
    words = shlex.join([str(study), "--address", address, *(["--storage", storage] if storage else [])])
    return f"Follow it with: robustsweep logs {words} --follow; stop it with: robustsweep stop {words}"
