"""What a stored config may be."""

from __future__ import annotations

import pytest

from trainables.config import SCHEMA_VERSION, TrialConfig, read_trial_config
from trainables.errors import ConfigError


def test_a_stored_config_is_read_as_it_was_written() -> None:
    config = TrialConfig(seed=3)
    assert read_trial_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_a_config_of_another_version_is_refused_in_words(version: int) -> None:
    stored = TrialConfig().model_dump(mode="json") | {"schema_version": version}
    with pytest.raises(ConfigError, match=rf"found {version}, expected {SCHEMA_VERSION}.*run the study again"):
        read_trial_config(stored)
