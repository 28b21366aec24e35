"""Names of objects on S3, from several pages and with every character that a key may have."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest

from tests.support.object_stores import connect, serve_s3
from trainables.errors import StorageError
from trainables.storage.folder import Folder

DIGITS = "0123456789abcdef"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """A store with a bucket that lists three names per answer; what to put into the environment to reach it."""
    pytest.importorskip("moto", reason="the server comes with the extra dev")
    pytest.importorskip("s3fs", reason="its client comes with the extra cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
        with serve_s3() as environment:
            connect(environment).mkdir("studies")
            for name, value in environment.items():
                patch.setenv(name, value)
            yield environment


def test_all_pages_and_all_characters_are_found(store: dict[str, str]) -> None:
    names = ["config.json", "a b&<c>+%2B.json", "größe.json", "deep/er/file.npz"]
    trials = ("0a", "0b", "f0")
    objects = {f"studies/x y/ü/trials/{trial}/{name}": b"123" for trial in trials for name in names}
    connect(store).pipe(objects)
    found = Folder("s3://studies/x y/ü/trials").grandchildren(DIGITS)
    assert found == {trial: {"config.json", "a b&<c>+%2B.json", "größe.json", "deep"} for trial in trials}
    assert Folder("s3://studies/x y/ü/nothing").grandchildren(DIGITS) == {}


def test_other_listings_of_the_same_client_keep_their_sizes(store: dict[str, str]) -> None:
    connect(store).pipe({f"studies/sizes/aa/{number}": b"x" * number for number in range(5)})
    assert Folder("s3://studies/sizes").grandchildren(DIGITS) == {"aa": {"0", "1", "2", "3", "4"}}
    fs = fsspec.filesystem("s3")
    assert sorted(each["size"] for each in fs.find("studies/sizes", detail=True).values()) == [0, 1, 2, 3, 4]


def test_a_bucket_that_is_missing_is_told(store: dict[str, str]) -> None:
    with pytest.raises(StorageError, match=r"could not list s3://absent/s/trials/\w\*: .*bucket"):
        Folder("s3://absent/s/trials").grandchildren(DIGITS)
