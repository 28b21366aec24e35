"""``docs/wishes.md``: what is said to be held by a test or shown by a picture is."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT

TEXT = (ROOT / "docs/wishes.md").read_text(encoding="utf-8")
WISHES = re.split(r"^\d+\. ", TEXT, flags=re.MULTILINE)[1:]


def test_there_are_ten_wishes() -> None:
    assert re.findall(r"^(\d+)\. \*\*", TEXT, flags=re.MULTILINE) == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("wish", WISHES, ids=[re.findall(r"\*\*(.*?)\*\*", wish)[0] for wish in WISHES])
def test_a_wish_names_tests_and_pictures_that_exist(wish: str) -> None:
    tests, pictures = re.findall(r"`(tests/\S+\.py)::(\w+)`", wish), re.findall(r"!\[[^\]]+\]\((\S+)\)", wish)
    assert tests
    for file, name in tests:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
    for picture in pictures:
        assert (ROOT / "docs" / picture).is_file()
