"""Claims of attempts: of several processes that train one stage or trial, only the newest attempt can write.

An attempt takes a claim under the number that it was handed out with. A later claim ends all earlier ones, whatever
their processes are doing: one that was suspended between two instructions, or on a machine that was cut off, changes
nothing when it goes on. No lock is held, so nobody waits for a process that does not answer.

On a disk the claim is the name of a folder, ``claims/<signature>/<number>.<try>.<token>``, and every change is one call
of the operating system with a path in that folder: new content is written there and renamed to its place, what is to go
is renamed into it. Renaming the folder, which is how the next claim is taken, makes such calls fail.

On an object store the claim is an object of that name, the highest counts, and every object is written on condition
that it is still what this attempt has seen (S3's If-Match, Azure's too; ``object_store.make_condition``). Where a store
ignores the condition or its library does not offer it, the claim is only looked up before the write.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from trainables.errors import StorageError, SupersededError
from trainables.storage.folder import Folder, explain_failure, replace_synced
from trainables.storage.object_store import find_version, make_condition

#: Folder of a ledger in which claims lie.
CLAIMS = "claims"
#: Characters of a token that are random; those before them name the driver, if several drivers share a study.
_NUM_RANDOM = 12


class Claim(NamedTuple):
    """Claim of one attempt; a larger one ends it."""

    #: From 1, counted by whoever hands the stage or trial out.
    number: int
    #: Processes started for it before this one: a slot tries again after a crash.
    tries: int
    token: str

    @property
    def name(self) -> str:
        """Name of its folder or object."""
        return f"{self.number}.{self.tries}.{self.token}"

    @property
    def holder(self) -> str:
        """Driver for which it was taken (``exchange_claim``); "" where a study has one driver."""
        return self.token[:-_NUM_RANDOM]


def parse_claim(name: str) -> Claim | None:
    """Return the claim with this name, None if it is not the name of a claim."""
    parts = name.split(".")
    if len(parts) != 3 or not (parts[0].isdecimal() and parts[1].isdecimal() and parts[2].isalnum()):
        return None
    return Claim(int(parts[0]), int(parts[1]), parts[2])


def find_claim(claims: Folder) -> Claim | None:
    """Return the claim that counts, None if there is none.

    Args:
        claims: folder of the claims of one stage or trial.
    """
    return max(filter(None, map(parse_claim, claims.children())), default=None)


def take_claim(claims: Folder, number: int, *, before: Claim | None = None) -> Claim:
    """Acquire the claim of an attempt, which ends all earlier ones; return it.

    Args:
        claims: folder of the claims of one stage or trial.
        number: number of the attempt.
        before: claim that this attempt had when its last process was started.

    Raises:
        SupersededError: a newer attempt, or another one of the same number, has the claim.
        StorageError: the storage refused the write.
    """
    mine = Claim(number, 0 if before is None else before.tries + 1, uuid.uuid4().hex[:_NUM_RANDOM])
    claims.guard()
    return _take_on_disk(claims, mine, before) if claims.is_local else _take_by_creating(claims, mine, before)


def exchange_claim(claims: Folder, found: Claim | None, number: int, *, holder: str) -> Claim:
    """Acquire the claim of an attempt in place of the one that was found; return it.

    Of several drivers that have found the same, one succeeds: on a disk by renaming it, on an object store by creating
    an object that bears the number. Where the store has no such step, both may succeed, and the larger claim counts.

    Args:
        claims: folder of the claims of one stage or trial.
        found: claim that counted when the caller looked, None if there was none.
        number: number of the attempt, larger than that of ``found``, or the same if the attempt had that claim.
        holder: letters and digits that name the driver.

    Raises:
        SupersededError: another claim counts by now, or another driver takes it in this moment.
        StorageError: the storage refused the write.
    """
    tries = found.tries + 1 if found is not None and found.number == number else 0
    mine = Claim(number, tries, holder + uuid.uuid4().hex[:_NUM_RANDOM])
    claims.guard()
    if claims.is_local:
        _exchange_on_disk(claims, found, mine)
    elif find_claim(claims) != found or claims.create(f"{mine.number}.{mine.tries}", b"") is False:
        raise _refuse_exchange(claims, mine)
    else:
        claims.write(mine.name, b"")
        if find_claim(claims) != mine:
            raise _refuse_exchange(claims, mine)
    return mine


def _refuse_exchange(claims: Folder, mine: Claim) -> SupersededError:
    return SupersededError(f"attempt {mine.number} at {claims.name} was about to start; another driver has taken it")


def _exchange_on_disk(claims: Folder, found: Claim | None, mine: Claim) -> None:
    try:
        if found is not None:
            os.rename(f"{claims.uri}/{found.name}", f"{claims.uri}/{mine.name}")
        else:
            _create_on_disk(claims, mine)
    except FileNotFoundError as error:
        raise _refuse_exchange(claims, mine) from error
    except OSError as error:
        if found is not None or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise explain_failure(f"could not write {claims.uri}/{mine.name}", error) from error
        if find_claim(claims) is None:
            _remove_strangers(claims)  # for the next one that tries
        raise _refuse_exchange(claims, mine) from error


def release_claim(claims: Folder, claim: Claim) -> None:
    """Remove a claim if it still counts: nothing can be written under it any more, nor under an earlier one."""
    if not claims.is_local:
        if _counts(claims, claim):
            for name in {*claims.children(), claim.name}:
                claims.remove(name)
        return
    gone = f"{claims.uri}.{claim.token}"
    with suppress(FileNotFoundError):
        os.rename(f"{claims.uri}/{claim.name}", gone)
        with suppress(OSError):  # a new claim has been taken in this moment
            os.rmdir(claims.uri)
        shutil.rmtree(gone, ignore_errors=True)


def _counts(claims: Folder, claim: Claim) -> bool:
    """Return whether a claim is there and none is larger."""
    found = find_claim(claims)
    if found is None or found < claim:  # it was removed, or an object store's listing lags behind
        return not claims.is_local and claims.exists(claim.name)
    return found == claim


def _check_order(claims: Folder, found: Claim | None, mine: Claim, before: Claim | None) -> None:
    if found is not None and found != before and found.number >= mine.number:
        raise SupersededError(
            f"attempt {mine.number} at {claims.name} was about to start, and attempt {found.number} has started "
            "meanwhile; it goes on alone"
        )


def _take_on_disk(claims: Folder, mine: Claim, before: Claim | None) -> Claim:
    while True:
        found = find_claim(claims)
        _check_order(claims, found, mine, before)
        try:
            if found is not None:
                os.rename(f"{claims.uri}/{found.name}", f"{claims.uri}/{mine.name}")
            else:
                _create_on_disk(claims, mine)
            return mine
        except FileNotFoundError:
            continue  # another attempt was faster, or the last one has released its claim
        except OSError as error:
            if found is None and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                _remove_strangers(claims)  # or another attempt has created it in this moment
                continue
            raise explain_failure(f"could not write {claims.uri}/{mine.name}", error) from error


def _create_on_disk(claims: Folder, mine: Claim) -> None:
    """Create the folder of the claims with the claim in it, in one step: two of them must never count."""
    temporary = Path(f"{claims.uri}.{mine.token}")
    (temporary / mine.name).mkdir(parents=True)
    try:
        os.rename(temporary, claims.uri)  # fails unless there is none, or an empty one
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove_strangers(claims: Folder) -> None:
    """Remove what is no claim: with it in the folder none could be created."""
    for name in claims.children():
        if parse_claim(name) is None:
            claims.remove(name)


def _take_by_creating(claims: Folder, mine: Claim, before: Claim | None) -> Claim:
    _check_order(claims, find_claim(claims), mine, before)
    claims.write(mine.name, b"")
    if not _counts(claims, mine):  # of two in the same moment, the larger name counts for both
        raise SupersededError(f"attempt {mine.number} at {claims.name} started in the same moment as another one")
    return mine


class ClaimedFolder(Folder):
    """Folder of a stage or trial for one attempt: every change is refused once another attempt has the claim.

    Args:
        uri: folder of the stage or trial.
        claims: folder of its claims.
        claim: claim of this attempt.
        guard: called before every change.
    """

    def __init__(
        self, uri: str | Path, *, claims: Folder, claim: Claim, guard: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(uri, guard=guard)
        self._claims, self._claim = claims, claim
        #: Of an object store: object → its version when this attempt has last written or looked at it; None: missing.
        self._versions: dict[str, str | None] = {}

    def __truediv__(self, name: str) -> Folder:
        """Return a folder below, of the same attempt."""
        return ClaimedFolder(self._at(name), claims=self._claims, claim=self._claim, guard=self.guard)

    @property
    def is_superseded(self) -> bool:
        """Whether another attempt has the claim, or it was released."""
        return not _counts(self._claims, self._claim)

    def _at_claim(self, name: str) -> str:
        return f"{self._claims.uri}/{self._claim.name}/{name}"

    def _refuse(self, attempt: str) -> SupersededError:
        found = find_claim(self._claims)
        by = "another process has ended it" if found is None else f"attempt {found.number} has taken over"
        return SupersededError(f"{attempt}: refused, since {by} from attempt {self._claim.number}; nothing is lost")

    def _explain(self, attempt: str, error: OSError) -> Exception:
        """Return the error of a change that failed, which is that of the claim if it has been lost."""
        if (isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE) and self.is_superseded:
            return self._refuse(attempt)
        return explain_failure(attempt, error)

    def write(self, name: str, data: bytes) -> None:
        """Write ``data`` to ``name`` atomically if this attempt still counts, see ``Folder.write``.

        Raises:
            SupersededError: another attempt has the claim; nothing was changed.
        """
        if not self.is_local:
            self._put(name, data)
            return
        self.guard()
        path, temporary = self._at(name), self._at_claim(uuid.uuid4().hex)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            replace_synced(temporary, path, data)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise self._explain(f"could not write {path}", error) from error

    def append_line(self, name: str, line: str) -> None:
        """Append one line to ``name`` by writing all of it anew, since an open file could be written to by anybody."""
        before = self.read(name) if self.exists(name) else b""
        self.write(name, before[: before.rfind(b"\n") + 1] + (line + "\n").encode())

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file, replacing a file of the new name. On an object store, the old one stays until it is replaced.

        Raises:
            SupersededError: another attempt has the claim; nothing was changed.
        """
        old, new = self._at(name), self._at(new_name)
        self.guard()
        if not self.is_local:
            self._check_claim(f"rename {old}")
            # By the store, without a condition: too late, it copies what the newer attempt has written.
            self._ask(f"rename {old} to {new_name}", lambda fs: fs.cp_file(old, new))
            self._versions.pop(new_name, None)
            return
        held, gone = (self._at_claim(uuid.uuid4().hex) for _ in range(2))
        try:
            _link(old, held)
            os.replace(held, new)  # at no moment is the content without a name in this folder
            os.rename(old, gone)
        except OSError as error:
            raise self._explain(f"could not rename {old} to {new_name}", error) from error
        with suppress(FileNotFoundError):  # another attempt has taken the claim, and what lies in it
            os.unlink(gone)

    def remove(self, name: str) -> None:
        """Remove the file or folder ``name`` if it exists.

        Raises:
            SupersededError: another attempt has the claim; nothing was changed.
        """
        self.guard()
        path = self._at(name)
        if not self.is_local:
            self._check_claim(f"remove {path}")
            super().remove(name)
            self._versions.pop(name, None)
            return
        gone = self._at_claim(uuid.uuid4().hex)
        try:
            os.rename(path, gone)
        except FileNotFoundError as error:
            if self.is_superseded:
                raise self._refuse(f"could not remove {path}") from error
            return
        except OSError as error:
            raise explain_failure(f"could not remove {path}", error) from error
        if os.path.isdir(gone):
            shutil.rmtree(gone, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):  # another attempt has taken the claim, and what lies in it
                os.unlink(gone)

    def read(self, name: str) -> bytes:
        """Return the content of ``name``, see ``Folder.read``."""
        if not self.is_local and name not in self._versions:
            self._look_up(name)  # before reading: what is written meanwhile must not count as seen
        return super().read(name)

    def create(self, name: str, data: bytes) -> bool | None:
        """Not offered: two attempts are told apart by their claims."""
        raise NotImplementedError

    # ------------------------------------------------------------------ object stores

    def _check_claim(self, attempt: str) -> None:
        if self.is_superseded:
            raise self._refuse(f"could not {attempt}")

    def _look_up(self, name: str) -> str | None:
        path = self._at(name)

        def look(fs: Any) -> object:
            try:
                return fs.info(path)
            except FileNotFoundError:
                return None

        self._versions[name] = find_version(self._ask(f"look at {path}", look))
        return self._versions[name]

    def _put(self, name: str, data: bytes) -> None:
        """Write an object if this attempt counts, and on condition that it is what this attempt has seen last."""
        self.guard()
        path = self._at(name)
        seen = self._versions[name] if name in self._versions else self._look_up(name)
        self._check_claim(f"write {path}")
        try:
            written = self._ask(
                f"write {path}", lambda fs: fs.pipe_file(path, data, **make_condition(fs, seen, len(data)))
            )
        except StorageError:
            now = self._look_up(name)
            self._check_claim(f"write {path}")
            if now == seen:  # the condition held: the store had another reason to refuse
                raise
            if now is None or super().read(name) != data:  # else the answer to this write was lost
                self._put(name, data)  # it is what an earlier attempt wrote before it noticed
            return
        version = find_version(written)
        if version is None:
            self._versions.pop(name, None)
        else:
            self._versions[name] = version


def _link(old: str, new: str) -> None:
    """Give a file a second name; copy it where the file system has no links."""
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        shutil.copyfile(old, new)
