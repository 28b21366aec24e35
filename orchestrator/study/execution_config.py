"""The ``execution`` section of a study file: where and how trials run, budget, notifications. Never hashed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trainables.errors import InfrastructureError
from trainables.frozen import Frozen, PositiveInt, Weight

Event = Literal["end", "failure", "budget"]

# A class of pydantic has ABCMeta.register, which nothing calls; its instances have the field.
warnings.filterwarnings("ignore", 'Field name "register" in "ExecutionConfig" shadows', UserWarning)


class NotifyConfig(Frozen):
    """Notifications of a run: their events, and the source of the target URLs. No URL is stored in the study file."""

    urls_env: str = Field(
        "ROBUSTSWEEP_NOTIFY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$",
        description="Environment variable with URLs of apprise, separated by blanks.",
    )
    urls_file: Path | None = Field(None, description="File outside the study with URLs of apprise, one a line.")
    on: list[Event] = Field(["end", "failure", "budget"], min_length=1, description="failure: the first of a run.")


#: Limit → its unit in messages.
BUDGET_UNITS = {"trials": "trials", "wall_hours": "wall hours", "gpu_hours": "GPU-hours", "money": "money"}


class Budget(Frozen):
    """Limits for all runs of a study together; at least one is set."""

    trials: PositiveInt | None = Field(None, description="Trials that have begun, however they ended; not stages.")
    wall_hours: float | None = Field(None, gt=0, le=1e6, description="Hours in which a driver executes the study.")
    gpu_hours: float | None = Field(None, gt=0, le=1e9, description="Of trials and stages, lost attempts included.")
    money: float | None = Field(None, gt=0, le=1e12, description="GPU-hours times price_per_gpu_hour.")

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if not self.limits():
            raise ValueError(f"expected at least one of {', '.join(BUDGET_UNITS)}")
        return self

    def limits(self) -> dict[str, float]:
        """Return limit → amount that may be taken, for the limits that are set."""
        return {name: value for name, value in self if value is not None}


def _check_user(path: Path) -> Path:
    try:
        path.expanduser()
    except RuntimeError as error:
        if path.parts[0] != "~":  # ~nobody/…
            raise ValueError(f"found {str(path)!r}: {error}") from None
        raise InfrastructureError(
            f"looked for {path} and found no home folder: this user has no entry on this machine, and HOME is not set; "
            "set HOME to a folder that can be written, or give a path without ~ (execution.cache_dir)"
        ) from None
    return path


UserPath = Annotated[Path, AfterValidator(_check_user)]


class ExecutionConfig(Frozen):
    """Settings for the execution of a study. Never hashed, because no result depends on them."""

    cpus_per_trial: float = Field(1.0, ge=0.001, le=10_000, description="CPU cores of a trial or stage.")
    gpus_per_trial: Annotated[float, Field(ge=0, le=1000)] | Literal["auto"] = Field(
        "auto",
        description="GPUs of a trial or stage, fractions share one; auto: what memory allows once it is known from "
        "finished trials, 1 before, 0 without a GPU. What has no memory with a fraction goes on with a larger one.",
    )
    processes_per_stage: PositiveInt = Field(
        1,
        description="Processes that train a stage together, each with a GPU of its own, or without GPUs with "
        "cpus_per_trial cores; more than 1: in Ray.",
    )
    processes_per_trial: PositiveInt = Field(
        1, description="The same of a trial's training; one process evaluates it afterwards."
    )
    max_concurrent_trials: PositiveInt | None = Field(None, description="Null: as many as resources allow.")
    max_retries: int = Field(2, ge=0, le=1000, description="Of a trial lost to infrastructure: a node, memory, a hang.")
    stall_minutes: float = Field(30.0, gt=0, le=1e6, description="A trial that reports nothing for so long is ended.")
    orphan_minutes: float = Field(
        3.0, gt=0, le=1e6, description="A trial whose slot has not heard from the driver for so long ends, and waits."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one, else cpu.")
    cache_dir: UserPath = Field(
        Path("~/.cache/robustsweep"), description="Decoded images, one copy per node.", validate_default=True
    )
    shift_cache_gib: Weight = Field(
        20.0, description="Disk per node for shifted copies of test sets; 0: every trial shifts anew."
    )
    evaluation_batch_size: PositiveInt = Field(256, description="Images per batch in evaluation.")
    acceleration: Literal["off", "probe"] = Field(
        "off",
        description="probe: memory format, precision and compiling are timed once, and the same for all trials; of "
        "classifications only: segmentations take the device's default, as with off.",
    )
    local_executor: bool = Field(
        True,
        description="Where there is no GPU and no cluster, the driver runs trials until Ray is up.",
    )
    storage: str = Field("results", description="Root of the ledger: a folder (from where one starts) or fsspec URI.")
    mlflow: str | None = Field(None, description="MLflow tracking URI; null: a SQLite file beside the ledger.")
    address: str | None = Field(None, description="Ray cluster to join; null: this machine.")
    optuna: str | None = Field(
        None, description="Optuna storage that shows a search; null: a SQLite file beside the ledger."
    )
    budget: Budget | None = Field(None, description="What all runs may take together; null: no limit.")
    price_per_gpu_hour: float | None = Field(None, gt=0, le=1e6, description="In any currency.")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="Port of metrics for Prometheus while a study runs; 0: a free one; null: none."
    )
    metrics_address: str = Field("127.0.0.1", description="Address of this machine at which they are served.")
    metrics_file: UserPath | None = Field(
        None, description="File of the same metrics (*.prom), for node-exporter's textfile collector."
    )
    notify: NotifyConfig | None = Field(None, description="Notifications when a run ended or a trial failed.")
    register: Literal["best"] | None = Field(
        None,
        description="best: once the study is complete, the model that validation chooses is registered in MLflow under "
        "the study's name, with the alias best.",
    )

    @model_validator(mode="after")
    def _check_price(self) -> Self:
        if self.budget is not None and self.budget.money is not None and self.price_per_gpu_hour is None:
            raise ValueError("found budget.money without a price, expected price_per_gpu_hour beside budget")
        return self
