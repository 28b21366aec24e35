"""Connection to Ray: start it on this machine or join a cluster, and check whether it still answers."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# Set before ray is imported. The ledger is the truth: no snapshots, no log files per trial, no usage report; the driver
# handles signals.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(10**9))
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # only the older output is silent when told so
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray would start a worker per CPU in advance, with the imports of ours: 1.3 CPU s on 2 cores.
os.environ.setdefault("RAY_enable_worker_prestart", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# Ray's own handler of signals prints a C++ stack trace of this process when SIGTERM asks it to stop.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# Hides the raylet log of a lost node, which Ray prints on the driver's terminal whatever ``log_to_driver`` is.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

from orchestrator.execution.private_folder import find_private_folder
from trainables.cpus import count_cpus
from trainables.errors import InfrastructureError, redact

try:
    Path.home()
except RuntimeError:  # neither HOME nor an entry for this user, as in some containers: importing Ray would fail
    os.environ["HOME"] = str(find_private_folder(room=4000, purpose="Ray's files"))

import ray
from ray import tune
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray.tune.execution import class_cache

#: Other modules import ray and tune from here: Ray reads the variables above when it is imported.
__all__ = ["PATIENCE_SECONDS", "Cluster", "check_reachable", "connect", "disconnect", "find_peers", "ray", "tune"]

# Tune passes the driver's cloud keys to its actors in a runtime environment, and Ray writes that into log files which
# everybody on the machine can read. Actors have the keys of the node that they run on.
class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}

#: A head, or a raylet of this machine, that does not answer for so long is lost. Ray would end this process 60 s after
#: its head (gcs_rpc_server_reconnect_timeout_s), without advice on how to continue, and wait for its raylet for ever.
PATIENCE_SECONDS = 30.0

#: Longest path of Ray's folder: that of a socket (Linux 107 bytes, macOS 103), less what Ray adds.
_MAX_TEMP_DIR_BYTES = (103 if sys.platform == "darwin" else 107) - len(
    "/session_2026-11-29_22-51-21_839759_4194304/sockets/plasma_store"  # date, microseconds, process
)


class Cluster(NamedTuple):
    """A Ray that was joined or started."""

    resources: dict[str, float]
    #: Address of its dashboard for a browser, None if it has none.
    dashboard: str | None


def connect(address: str | None) -> Cluster:
    """Start a local Ray, or join the cluster at ``address``; return its resources and its dashboard.

    Without an address a Ray that happens to run on this machine is never joined.

    Raises:
        InfrastructureError: Ray does not start, or the cluster does not answer.
    """
    if address is not None:
        _check_listens(address)
    else:
        _provide_token()
    _listen_to_all(address is not None)
    try:
        context = ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
            # Nothing of size passes through the object store.
            **(
                {"object_store_memory": 100 * 2**20, "num_cpus": count_cpus(), "_temp_dir": _choose_temp_dir()}
                if address is None
                else {}
            ),
        )
        resources: dict[str, float] = ray.cluster_resources()
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        what = f"could not join the Ray cluster at {address}" if address else "could not start Ray on this machine"
        raise InfrastructureError(f"{what}: {error}; robustsweep doctor looks at what is there") from error
    return Cluster(resources, make_dashboard_url(context.dashboard_url))


def make_dashboard_url(place: str | None) -> str | None:
    """Return the URL of a dashboard without user names and passwords, None if there is none.

    Args:
        place: ``host:port``, as Ray tells it, or the URL in ``RAY_OVERRIDE_DASHBOARD_URL``.
    """
    if not place:
        return None
    return redact(place if place.startswith(("http://", "https://")) else f"http://{place}")


def _listen_to_all(asked: bool) -> None:
    """Make the Ray that starts next listen to other machines, or to this one alone.

    Ray has a switch for that on Windows and macOS, where it listens to this machine unless told otherwise. On Linux a
    local Ray would be open to the network, behind its token.
    """
    ray_constants.ENABLE_RAY_CLUSTER = asked
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = str(int(asked))  # for the processes that it starts


def _choose_temp_dir() -> str | None:
    """Return the folder for Ray's sockets and logs; None for its default, if that is short enough and can be written.

    Raises:
        InfrastructureError: no folder is short enough and private to this user.
    """
    default = get_default_ray_temp_dir()
    if len(os.fsencode(default)) <= _MAX_TEMP_DIR_BYTES and os.access(Path(default).parent, os.W_OK | os.X_OK):
        return None
    return str(find_private_folder(room=_MAX_TEMP_DIR_BYTES - len("/ray"), purpose="Ray's sockets") / "ray")


def _provide_token() -> None:
    """Set a token for the processes of a local Ray if Ray cannot keep one in ``~/.ray``, where it expects to.

    It is in the environment of these processes alone, and valid as long as they live.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    try:
        folder = Path.home() / ".ray"
        if os.access(folder / "auth_token", os.R_OK):
            return
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # a home that is read-only, a file, or not known
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _check_listens(address: str) -> None:
    """Raise at once if nothing listens at ``address``, where Ray itself would try for several minutes."""
    if not address.rpartition(":")[2].isdecimal():
        return  # "auto"
    try:
        check_reachable(address.removeprefix("ray://"))
    except OSError as error:
        raise InfrastructureError(
            f"could not join the Ray cluster at {address}: {error}; is its head running, and may this machine reach it?"
        ) from error


def check_reachable(address: str) -> None:
    """Raise ``OSError`` if no connection to ``address`` (``host:port``) can be opened within 10 s."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=10.0).close()


def disconnect() -> None:
    """Leave the cluster, or stop the local Ray."""
    ray.shutdown()


def find_peers() -> set[str]:
    """Return the addresses that a run cannot do without: the head, and the raylet of this machine."""
    context = ray.get_runtime_context()
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return {context.gcs_address, f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}"}
