"""MLflow's own application with basic authentication, as docs/mlflow_teams.md has it: its settings, its users.

The application needs Flask-WTF for one thing, the form of its page that creates users. Where that is not installed an
empty module stands in for it: the tests create users through the API.
"""

from __future__ import annotations

import importlib.util
import json
import os
import ssl
import urllib.request
from pathlib import Path

from tests.support import postgres as databases
from tests.support.faulty_proxy import encode_user

ADMIN = ("admin", "admin-password-58c1")
#: User name → password; each value occurs nowhere else.
USERS = {name: f"{name}-password-{number:04x}" for number, name in enumerate(("ada", "ben", "cleo", "dan"), 0xBEE0)}
OPTIONS = ("--app-name", "basic-auth")
_CONFIG = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
_STAND_IN = "class CSRFProtect:\n    def init_app(self, app): pass\n"


def write_settings(folder: Path) -> dict[str, str]:
    """Write the settings of the application into the server's folder; return the variables that it needs."""
    (folder / "auth.ini").write_text(_CONFIG.format(folder=folder))
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "flask-secret-2b77",
    }
    if importlib.util.find_spec("flask_wtf") is None:
        (folder / "flask_wtf").mkdir()
        (folder / "flask_wtf" / "__init__.py").write_text("")
        (folder / "flask_wtf" / "csrf.py").write_text(_STAND_IN)
        variables["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return variables


def login(name: str, password: str | None = None) -> dict[str, str]:
    """Return the variables with which a driver shows who it is."""
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password or USERS[name]}


def ask_as_admin(url: str, path: str, *, context: ssl.SSLContext | None = None, **fields: str) -> None:
    """Do what docs/mlflow_teams.md does with curl."""
    headers = {"Content-Type": "application/json", "Authorization": encode_user(*ADMIN)}
    request = urllib.request.Request(f"{url}/api/{path}", json.dumps(fields).encode(), headers)
    urllib.request.urlopen(request, context=context).close()


def create_user(url: str, name: str, password: str, *, context: ssl.SSLContext | None = None) -> None:
    ask_as_admin(url, "2.0/mlflow/users/create", context=context, username=name, password=password)


def check_secret(folder: Path, *said: str) -> None:
    """No password, nor the header that shows it, is in a file of the studies or in what was said."""
    secrets = [*USERS.values(), ADMIN[1], databases.PASSWORD, "wrong-password-77", "eve-password-c0de"]
    secrets += [encode_user(*user).split()[1] for user in (*USERS.items(), ADMIN)]
    texts = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    texts |= {f"said {number}": each.encode() for number, each in enumerate(said)}
    assert [(name, secret) for name, each in texts.items() for secret in secrets if secret.encode() in each] == []
