"""MLflow behind nginx with TLS: the configuration of docs/mlflow_teams.md, with other names, ports and folders."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.ledger.derived import PAGE
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.mlflow_auth import OPTIONS, USERS, check_secret, create_user, login, write_settings
from tests.support.mlflow_stores import Server, check_shown, show
from tests.support.processes import wait_until
from tests.support.tiny_study import copy_place, make_place

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
DOCUMENT = Path(__file__).parents[2] / "docs" / "mlflow_teams.md"
#: What surrounds the servers of the document in nginx.conf; one process, which a test can end.
FRAME = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{servers}
}}
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(NGINX is None or shutil.which("openssl") is None, reason="needs nginx and openssl"),
]


@dataclass(frozen=True)
class Proxy:
    """A running nginx before a running MLflow."""

    port: int
    #: Port of the server that sends everybody to TLS.
    plain_port: int
    folder: Path
    #: MLflow's own address, which nobody but nginx uses.
    behind: str

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"


def find_ports() -> tuple[int, int]:
    """Return two free ports."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def make_certificate(folder: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", str(folder / "certificate.pem")]
    subprocess.run([*command, "-keyout", str(folder / "certificate.key")], check=True, capture_output=True)


def adapt_document(proxy: Proxy, mlflow_port: int) -> str:
    """Return the servers of the document, with the names, ports and files of this test."""
    (servers,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    replaced = {
        "listen 443 ssl;": f"listen 127.0.0.1:{proxy.port} ssl;",
        "listen 80;": f"listen 127.0.0.1:{proxy.plain_port};",
        "mlflow.example.org;": "localhost;",
        "/etc/ssl/mlflow.example.org.pem": str(proxy.certificate),
        "/etc/ssl/private/mlflow.example.org.key": str(proxy.folder / "certificate.key"),
        "http://127.0.0.1:5000;": f"http://127.0.0.1:{mlflow_port};",
        "Host $host;": "Host $http_host;",  # the address has a port: so the document says
    }
    for before, after in replaced.items():
        assert before in servers, before
        servers = servers.replace(before, after)
    return servers


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    (port, plain_port), folder = find_ports(), tmp_path_factory.mktemp("server")
    options = (*OPTIONS, "--allowed-hosts", f"localhost:{port}")
    server = Server(folder, num_workers=2, options=options, variables=write_settings(folder))
    proxy = Proxy(port, plain_port, tmp_path_factory.mktemp("nginx"), server.url)
    make_certificate(proxy.folder)
    assert NGINX is not None
    try:
        server.start()
        config = proxy.folder / "nginx.conf"
        config.write_text(FRAME.format(folder=proxy.folder, servers=adapt_document(proxy, server.port)))
        command = [NGINX, "-p", str(proxy.folder), "-c", str(config), "-e", str(proxy.folder / "error.log")]
        with (proxy.folder / "said").open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            wait_until(lambda: process.poll() is not None or answers(proxy.port), "nginx listens or has ended")
            assert process.poll() is None, (proxy.folder / "said").read_text()
            context = ssl.create_default_context(cafile=str(proxy.certificate))
            create_user(proxy.url, "ada", USERS["ada"], context=context)
            yield proxy
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    finally:
        server.kill()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_study_over_tls(proxy: Proxy, finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = make_place(tmp_path / "place", finished_study.place.study.parent / "cache")
    trust = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(proxy.certificate)}
    run = place.call("run", "--mlflow", proxy.url, **login("ada"), **trust)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "not shipped" not in run.stdout + run.stderr
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (login("ada") | trust).items():
            patch.setenv(name, value)
        check_shown(show(proxy.url, "tiny"), Ledger(str(place.storage), "tiny"))
    report = Path(place.ledger, PAGE).stat().st_size
    assert report > 2**20, "what nginx takes unless told otherwise: this would not have tested client_max_body_size"
    check_secret(tmp_path, run.stdout, run.stderr)
    check_secret(proxy.folder)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"])
def test_the_authority_is_named_in_a_variable(
    proxy: Proxy, finished_study: FinishedStudy, tmp_path: Path, variable: str
) -> None:
    place = copy_place(finished_study.place, tmp_path)
    unknown = place.call("doctor", "--mlflow", proxy.url, **login("ada"))
    assert (unknown.returncode, "in MLFLOW_TRACKING_SERVER_CERT_PATH" in unknown.stdout) == (3, True), unknown.stdout
    known = place.call("doctor", "--mlflow", proxy.url, **login("ada"), **{variable: str(proxy.certificate)})
    assert known.returncode == 0, known.stdout
    wrong = place.call("sync", "--mlflow", proxy.url, **login("ada", "wrong-password-77"),
                       **{variable: str(proxy.certificate)})  # fmt: skip
    assert (wrong.returncode, "HTTP 401" in wrong.stderr) == (3, True), wrong.stderr
    check_secret(tmp_path, *(each.stdout + each.stderr for each in (unknown, known, wrong)))


def test_the_address_without_tls_is_refused_with_the_right_one(
    proxy: Proxy, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    place = copy_place(finished_study.place, tmp_path)
    sent_on = place.call("sync", "--mlflow", f"http://localhost:{proxy.plain_port}", **login("ada"))
    assert sent_on.returncode == 3
    assert "it redirects to https://localhost" in " ".join(sent_on.stderr.split())
    assert "Traceback" not in sent_on.stderr
    check_secret(tmp_path, sent_on.stdout + sent_on.stderr)


def test_the_server_itself_answers_for_the_named_host_only(proxy: Proxy) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        create_user(proxy.behind, "nobody", "nobody-password")
    with error.value:
        assert (error.value.code, b"Invalid Host header" in error.value.read()) == (403, True)
