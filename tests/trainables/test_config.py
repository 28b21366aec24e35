"""What a config may be, and what a stored one may be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainables.config import SCHEMA_VERSION, Execution, TrialConfig, read_trial_config
from trainables.errors import ConfigError


def test_a_stored_config_is_read_as_it_was_written() -> None:
    config = TrialConfig(seed=3)
    assert read_trial_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_a_config_of_another_version_is_refused_in_words(version: int) -> None:
    stored = TrialConfig().model_dump(mode="json") | {"schema_version": version}
    with pytest.raises(ConfigError, match=rf"found {version}, expected {SCHEMA_VERSION}.*run the study again"):
        read_trial_config(stored)


@pytest.mark.parametrize(
    "section",
    [
        {"training": {"learning_rate": 1e300}},  # torch refuses it in the first step
        {"training": {"learning_rate": 1e-300}},  # no weight is ever updated
        {"training": {"backbone_learning_rate_factor": 1e300}},
        {"training": {"gradient_clip_norm": 1e-300}},
        {"training": {"warmup_epochs": 1e308}},  # the number of steps is infinite
        {"regulariser": {"kind": "weight_decay", "weight": 1e300}},
        {"regulariser": {"kind": "spectral_decoupling", "weight": 1e300}},
        {"regulariser": {"kind": "spectral_decoupling", "weight": -1.0}},  # no lowest loss
        {"regulariser": {"kind": "spectral_decoupling", "weight": [0.1, -1.0]}},
        {"regulariser": {"kind": "spectral_decoupling", "gamma": 1e300}},
        {"regulariser": {"kind": "sam", "rho": 1e300}},
        {"regulariser": {"kind": "group_dro", "step_size": 1e300}},
        {"regulariser": {"kind": "group_dro", "adjustment": 1e300}},
        {"augmentation": {"kind": "randaugment", "num_ops": 2**30}},
        {"augmentation": {"kind": "augmix", "width": 2**30}},
        {"augmentation": {"kind": "augmix", "max_depth": 2**30}},
        {"pretraining": {"kind": "contrastive", "batch_size": 1}},  # the loss is 0 whatever the weights
        {"pretraining": {"kind": "contrastive", "method": {"kind": "simclr", "learning_rate": 1e300}}},
        {"pretraining": {"kind": "contrastive", "method": {"kind": "simclr", "learning_rate": 1e-300}}},
        {"pretraining": {"kind": "contrastive", "method": {"kind": "simclr", "weight_decay": 1e300}}},
        {
            "pretraining": {"kind": "contrastive", "method": {"kind": "simclr", "temperature": 1e-30}}
        },  # lightly refuses it
        {"pretraining": {"kind": "contrastive", "method": {"kind": "moco", "projection_dim": 2**30}}},
        {"pretraining": {"kind": "contrastive", "method": {"kind": "byol", "hidden_dim": 2**30}}},
        {"pretraining": {"kind": "contrastive", "method": {"kind": "byol", "temperature": 0.2}}},  # not BYOL's
        {"pretraining": {"kind": "contrastive", "method": "byol", "epochs": 10}},  # all of them warm-up
        {"pretraining": {"kind": "supervised", "data": {"kind": "digits"}, "epochs": 3, "warmup_epochs": 3}},
        {"pretraining": {"kind": "contrastive", "method": {"kind": "byol", "weight_decay": 0}}},  # lars would be sgd
        {
            "pretraining": {
                "kind": "contrastive",
                "data": {"kind": "unlabelled_folder", "path": "a", "val_fraction": 0.1},
            }
        },
        {"pretraining": {"kind": "contrastive", "data": {"kind": "unlabelled_folder", "path": "a", "ordinal": True}}},
        {"pretraining": {"kind": "contrastive", "batch_size": 64, "micro_batch_size": 65}},
    ],
    ids=str,
)
def test_numbers_with_which_no_trial_can_learn_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrialConfig.model_validate(section)


def test_a_shift_cache_larger_than_any_disk_is_refused() -> None:
    with pytest.raises(ValidationError):
        Execution(shift_cache_gib=1e300)


def test_a_stored_value_that_is_not_allowed_any_more_is_named() -> None:
    stored = TrialConfig().model_dump(mode="json")
    stored["training"]["learning_rate"] = 1e-300
    with pytest.raises(ConfigError, match=r"training.learning_rate: read the config of a stored trial, found 1e-300"):
        read_trial_config(stored)
