"""Registration of the chosen model in MLflow: one version per network, linked to the trial's run, no pickle.

The version holds the network as ``torch.export`` writes it (``.pt2``: a graph and raw tensors, which MLflow checks for
pickles before loading), and the model card. Loading needs torch and MLflow, not this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

from orchestrator.analysis.wording import sentence
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection.export import (
    CARD,
    CARD_PAGE,
    Exported,
    compute_logits,
    make_slug,
)
from orchestrator.selection.ranking import Selection
from orchestrator.tracking.client import LoggedModelOutput, connect, find_run, translating_errors
from orchestrator.tracking.guard.places import check_identifier
from orchestrator.tracking.projection import MAX_TAG_LENGTH
from orchestrator.tracking.registry.models import (
    default_store,
    download_file,
    find_versions,
    load_torch_model,
    save_torch_model,
    upload_model,
)
from trainables.errors import CheckpointError, ConfigError, StudyError, redact
from trainables.exported.check import TOLERANCES, Check, compare

#: The network among the files of a version.
_NETWORK = "data/model.pt2"
#: Tags of a version that may be the same: the same trial with the same weights is registered once.
_KEYS = ("robustsweep.signature", "robustsweep.checkpoint_sha256")


@dataclass(frozen=True)
class Registered:
    """One version in the registry."""

    name: str
    version: str
    alias: str | None
    #: URI for ``mlflow.pytorch.load_model``.
    uri: str
    run_id: str
    #: False if the version was registered before.
    is_new: bool
    check: Check


def register_model(
    tracking_uri: str,
    ledger: Ledger,
    selection: Selection,
    exported: Exported,
    *,
    name: str,
    alias: str | None,
    write_line: Callable[[str], None],
) -> Registered:
    """Register the exported network unless it is registered already, and check the registered version.

    What the registry holds is compared byte by byte with what this process has written, and only that is loaded: to
    load what a server answers with would run code. A version with these tags and another network, as another release
    of torch writes it, counts as another one.

    Args:
        tracking_uri: absolute URI of the store.
        ledger: ledger of the study.
        selection: chosen arm and replicate.
        exported: exported files and network.
        name: name of the registered model.
        alias: alias to set on the version, which removes it from another version; None leaves all aliases as they are.
        write_line: callback that receives the lines for the user.

    Raises:
        StudyError: the name or the alias cannot be used, or the trial is not in MLflow.
        TrackingError: MLflow cannot be reached.
        CheckpointError: the network, or what MLflow returns of it, differs; a new version is deleted again.
        ConfigError: torch cannot export the network.
    """
    _check_names(name, alias)
    with (
        translating_errors(tracking_uri, f"register {name!r}"),
        default_store(tracking_uri),
        TemporaryDirectory() as place,
    ):
        client = connect(tracking_uri)
        run = find_run(client, ledger.study, selection.signature)
        if run is None:
            raise StudyError(
                f"looked for the run of trial {selection.signature} in MLflow at {redact(tracking_uri)} and found "
                "none; ship the study first with `robustsweep sync`"
            )
        tags, files = _describe(ledger, selection, exported), Path(place) / "model"
        check = _save(exported, files)
        found = _find_registered(client, name, tags, files)
        version = found or _create(client, run, selection, files, config=exported.model.config, name=name, tags=tags)
        if found is None:
            _check_stored(client, name, version, files)
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        if alias is not None:
            _move_alias(client, name, alias, version, write_line)
    uri = f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}"
    write_line(f"checked: {check.describe()}")
    write_line(f"{'was registered already' if found else 'registered'}: {name} version {version}, load it from {uri}")
    return Registered(name, version, alias, uri, check_identifier(run.info.run_id), found is None, check)


def _check_names(name: str, alias: str | None) -> None:
    if not re.fullmatch(r"[^/:'\"\\]{1,250}", name):
        raise StudyError(f"--register: found {name!r}, expected 1 to 250 characters without / : \\ and quotes")
    bad = alias is not None and (
        not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias) or re.fullmatch(r"v\d+|latest", alias)
    )
    if bad:
        raise StudyError(
            f"--alias: found {alias!r}, expected letters, digits, _ and -, and neither 'latest' nor a version like 'v1'"
        )


def _describe(ledger: Ledger, selection: Selection, exported: Exported) -> dict[str, str]:
    tags = {
        "robustsweep.study": ledger.study,
        "robustsweep.signature": selection.signature,
        "robustsweep.checkpoint_sha256": exported.model.config.weights_sha256,
        "robustsweep.arm": selection.arm.name,
        "robustsweep.replicate": str(selection.replicate),
        "robustsweep.rule": selection.rule,
        "robustsweep.selected_by": selection.column,
        "robustsweep.oracle": str(selection.oracle).lower(),
        "robustsweep.exported_to": exported.folder.uri,
    }
    return {key: value[:MAX_TAG_LENGTH] for key, value in tags.items()}


def _save(exported: Exported, folder: Path) -> Check:
    """Write the files of a version to a folder, and compare the network's logits with those of the exported files."""
    config = exported.model.config
    try:
        save_torch_model(exported.model, folder, metadata=config.provenance | {"classes": list(config.classes)})
    except RuntimeError as error:  # torch.export raises it and its subclasses
        cause = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"torch could not export {config.architecture.name} for MLflow: {cause}; the folder "
            f"{exported.folder.uri} holds the same network, without --register"
        ) from error
    for file in (CARD, CARD_PAGE):
        (folder / file).write_bytes(exported.folder.read(file))
    logits = compute_logits(load_torch_model(folder), exported.images)
    what = f"{_NETWORK} for MLflow against model.safetensors"
    return compare(logits, exported.logits, what=what, tolerance=TOLERANCES["float32"])


def _find_registered(client: Any, name: str, tags: dict[str, str], files: Path) -> str | None:
    """Return the newest version that has these tags and this network, None if there is none."""
    for version in find_versions(client, name):
        is_alike = all(version.tags.get(key) == tags[key] for key in _KEYS)
        if is_alike and _has_network(client, name, str(version.version), files):
            return check_identifier(version.version)
    return None


def _has_network(client: Any, name: str, version: str, files: Path) -> bool:
    """Return whether the registry's copy of the network is the same as the one in ``files``."""
    with TemporaryDirectory() as place:
        return _is_same(download_file(client, name, version, _NETWORK, Path(place)), files / _NETWORK)


def _is_same(stored: Path, own: Path) -> bool:
    """Return whether two ``.pt2`` files hold the same; they are zip files without compression that name their time."""
    try:
        with ZipFile(stored) as found, ZipFile(own) as expected:
            lists = [
                [(member.filename, member.file_size, member.compress_type) for member in archive.infolist()]
                for archive in (found, expected)
            ]  # sizes first: what would unpack to more is not read
            if lists[0] != lists[1]:
                return False
            return all(found.read(name) == expected.read(name) for name in expected.namelist())
    except (BadZipFile, RuntimeError, EOFError):  # RuntimeError: encrypted
        return False


def _create(
    client: Any, run: Any, selection: Selection, files: Path, *, config: Any, name: str, tags: dict[str, str]
) -> str:
    """Upload the files of a new version and link it to the run; return the version."""
    run_id = run.info.run_id
    logged = client.create_logged_model(
        run.info.experiment_id, name=re.sub(r"[^\w-]+", "-", make_slug(selection)), source_run_id=run_id, tags=tags
    )
    upload_model(client, logged.model_id, files)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    if not list(find_versions(client, name)) and not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    who = "an ORACLE" if selection.oracle else "in-distribution validation"
    created = client.create_model_version(
        name,
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        model_id=logged.model_id,
        tags=tags,
        description=f"{selection.label}, replicate {selection.replicate}, chosen by {selection.column} ({who}, rule "
        f"{selection.rule}). Takes uint8 images n × {config.images.channels} × {config.images.size_px} × "
        f"{config.images.size_px}, returns logits. Card: {CARD} among the model's artifacts."
        f"{''.join(f' {sentence(remark)}.' for remark in selection.remarks)}"[:5000],
    )
    return check_identifier(created.version)


def _check_stored(client: Any, name: str, version: str, files: Path) -> None:
    """Raise, and delete the new version again, unless the registry returns the network that was uploaded."""
    if _has_network(client, name, version, files):
        return
    source = client.get_model_version(name, version).source
    client.delete_model_version(name, version)
    client.delete_logged_model(source.removeprefix("models:/"))
    raise CheckpointError(
        f"MLflow's {name} version {version}: its {_NETWORK} is not the one that was uploaded; the version was deleted "
        "again: look at the server's storage, and register anew"
    )


def _move_alias(client: Any, name: str, alias: str, version: str, write_line: Callable[[str], None]) -> None:
    before = client.get_registered_model(name).aliases.get(alias)
    if before is not None and str(before) != str(version):
        write_line(f"alias {alias} moves from version {before} to version {version}")
    client.set_registered_model_alias(name, alias, version)
