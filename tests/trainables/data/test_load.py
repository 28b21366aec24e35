import importlib
import subprocess
import sys
from typing import get_args

from trainables.data.load import SOURCES, load_dataset
from trainables.data_config import DataConfig, PhantomData, UnlabelledFolderData


def test_phantom_through_the_front_door(tmp_path):
    config = PhantomData(
        num_images=60, num_external_sites=1, num_external_images=20, image_size=16, external_sites=("site-2",)
    )
    dataset = load_dataset(config, cache_dir=tmp_path)
    assert set(dataset.external) == {"site-2", "external-0"}
    assert dataset.modality == "fundus"
    train = dataset.splits["train"]
    assert train.masks is not None
    assert [int((mask > 0).sum()) for mask in train.masks] == train.metadata["lesion_area_px"]
    assert set(train.metadata) == {"lesion_count", "lesion_area_px", "nuisance"}


def test_every_kind_of_data_has_a_source():
    kinds = {each.model_fields["kind"].default for each in (*get_args(get_args(DataConfig)[0]), UnlabelledFolderData)}
    assert kinds - {"datasets"} == {*SOURCES}
    for kind, module in SOURCES.items():
        assert callable(getattr(importlib.import_module(f"trainables.data.{module}"), f"build_{kind}_source"))


def test_loading_data_does_not_import_torch(tmp_path):
    """Planning needs fingerprints, and has to stay fast."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom trainables.config import DigitsData\n"
        "from trainables.data.load import load_dataset\n"
        f"load_dataset(DigitsData(), cache_dir=Path({str(tmp_path)!r}))\n"
        "sys.exit(' '.join({'torch', 'torchvision', 'medmnist', 'ray', 'mlflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
