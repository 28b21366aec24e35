"""A PostgreSQL server of our own, on a loopback port and under an unprivileged user. Tests only."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

PASSWORD = "hunter2-is-secret"
_USERS = ("postgres", "nobody")


class Postgres:
    """A database server with a new, empty cluster; a context manager that stops it and removes its files.

    Skips the test where PostgreSQL is not installed.

    Args:
        prefix: words before its commands, that run it on another host.
    """

    def __init__(self, *, prefix: Sequence[str] = ()) -> None:
        if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
            pytest.skip("PostgreSQL's initdb and pg_ctl are not on PATH")
        # Not below pytest's folders: those belong to whoever runs the tests, and nobody else may look into them.
        self.folder = Path(tempfile.mkdtemp(prefix="robustsweep-postgres-"))
        self._prefix = [*prefix, "env", f"--chdir={self.folder}"] if prefix else []
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # it refuses to run as root
            user = next(each for each in pwd.getpwall() if each.pw_name in _USERS)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @property
    def uri(self) -> str:
        """For MLflow, password included."""
        return f"postgresql://keeper:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Postgres:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        self._call("initdb", "--username=keeper", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off"
        self._call("pg_ctl", "start", "--wait", "-l", str(self.folder / "log"), "-o", options)

    def kill(self) -> None:
        """End it without a shutdown, as a power cut would; every connection is lost."""
        self._call("pg_ctl", "stop", "--mode=immediate", "--wait", check=False)

    def _call(self, program: str, *arguments: str, check: bool = True) -> None:
        command = [*self._prefix, *self._as_user, program, *arguments, "-D", str(self.folder / "data")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.folder, text=True,
                              stdin=subprocess.DEVNULL, check=False)  # fmt: skip
        assert done.returncode == 0 or not check, f"{program}: {done.stdout}"
