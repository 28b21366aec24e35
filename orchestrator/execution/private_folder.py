"""Folder of this user alone, short enough for the names of sockets in it: ``TMPDIR`` of a batch system often is not."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from trainables.errors import InfrastructureError


def find_private_folder(*, room: int, purpose: str) -> Path:
    """Return a folder that belongs to this user, created if needed, in which nobody else may write.

    It lies in the folder for temporary files, or in a shorter one where names would be too long for a socket.

    Args:
        room: bytes that the folder's path may have at most.
        purpose: what the folder is for, for the message of the error.

    Raises:
        InfrastructureError: no folder is short enough and private to this user.
    """
    name = f"robustsweep-{os.getuid()}"
    problems = []
    # The last is removed when the user logs out, a run with nohup included.
    for place in filter(None, [tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR")]):
        folder = Path(place) / name
        if len(os.fsencode(folder)) > room:
            problems.append(f"{place} is too long for the name of a socket")
            continue
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()  # of a link that somebody else made, not of what it leads to
        except OSError as error:
            problems.append(str(error))
            continue
        is_private = stat.S_ISDIR(found.st_mode) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if found.st_uid == os.getuid() and is_private and os.access(folder, os.W_OK | os.X_OK):
            return folder
        problems.append(f"{folder} is not a folder of this user alone")
    raise InfrastructureError(
        f"found no folder for {purpose} ({'; '.join(problems)}): set TMPDIR to a folder of yours whose path has at "
        f"most {room - len(name) - 1} characters"
    )
