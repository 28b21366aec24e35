from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.paths import DATA
from tests.support.tiny_configs import random_dataset, tiny_trial
from trainables.errors import ConfigError
from trainables.models.networks import Classifier
from trainables.ops.stain_normalisation import MACENKO_REFERENCE, REINHARD_REFERENCE, StainNormaliser, choose_tiles
from trainables.seeding import normal, uniform
from trainables.trial import build_initial_model

METHODS = ["macenko", "reinhard"]
STAINS = torch.tensor(MACENKO_REFERENCE[:6]).view(2, 3)


def draw_tiles(count: int, size: tuple[int, int] = (40, 56), *, strength: float = 1.0, stains=STAINS) -> torch.Tensor:
    """Tiles of haematoxylin and eosin blobs by Beer and Lambert, with some bare glass."""
    seeds = torch.arange(count)
    height, width = size
    fields = uniform(seeds, 2, height // 4 + 1, width // 4 + 1, stream="fields")
    fields = torch.nn.functional.interpolate(fields, size, mode="bilinear", align_corners=True)
    amount = (2.0 * strength * (fields - 0.25).clamp(min=0.0)).clamp(max=2.5)
    density = (amount[:, :, None] * stains[None, :, :, None, None]).sum(1)
    noise = 2.0 * normal(seeds, 3, height, width, stream="noise")
    return (240.0 * torch.exp(-density) + noise).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(28, 28), (40, 56), (64, 33)])
def test_a_tile_alone_is_what_it_is_in_a_batch(method: str, size: tuple[int, int]) -> None:
    tiles, normalise = draw_tiles(7, size), StainNormaliser(method)
    together = normalise(tiles)
    assert together.dtype == torch.uint8
    for index in range(7):
        assert torch.equal(normalise(tiles[index : index + 1])[0], together[index])
    assert torch.equal(normalise(tiles.flip(0)), together.flip(0))


@pytest.mark.parametrize("method", METHODS)
def test_what_has_no_staining_comes_back_bit_for_bit(method: str) -> None:
    noise = torch.randint(235, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    flat = [torch.full((1, 3, 32, 32), value, dtype=torch.uint8) for value in (0, 100, 255)]
    one_speck = torch.full((1, 3, 32, 32), 250, dtype=torch.uint8)
    one_speck[:, :, 3, 3] = torch.tensor([90, 40, 120], dtype=torch.uint8)
    unusable = torch.cat([noise, *flat, one_speck])
    tiles = torch.cat([unusable, draw_tiles(2, (32, 32))])
    found = StainNormaliser(method)(tiles)
    assert torch.equal(found[:-2], unusable)
    assert not torch.equal(found[-2:], tiles[-2:])


@pytest.mark.parametrize("method", METHODS)
def test_another_staining_of_the_same_tissue_ends_nearer(method: str) -> None:
    # Another laboratory: other proportions, other hues.
    other = torch.tensor([[0.65, 0.65, 0.40], [0.10, 0.90, 0.42]])
    tiles, again = draw_tiles(6), draw_tiles(6, strength=0.7, stains=other)
    before = (tiles.float() - again.float()).abs().mean()
    normalise = StainNormaliser(method)
    after = (normalise(tiles).float() - normalise(again).float()).abs().mean()
    assert after < 0.6 * before


def test_macenko_finds_the_stains_that_were_put_in() -> None:
    found, usable = StainNormaliser("macenko")._method.measure(draw_tiles(6, (96, 96)))
    assert usable.all()
    wanted = STAINS / STAINS.norm(dim=1, keepdim=True)
    for stain, columns in zip(wanted, (found[:, :3], found[:, 3:6]), strict=True):
        cosine = (columns.float() * stain).sum(1) / columns.float().norm(dim=1)
        assert cosine.min() > 0.98


def test_reinhard_reaches_the_mean_and_deviation_of_its_target() -> None:
    normalise = StainNormaliser("reinhard")
    found, _ = normalise._method.measure(normalise(draw_tiles(4, (64, 64))))
    # Saturated pixels are cut off: near, not equal.
    torch.testing.assert_close(found[:, :3].mean(0), torch.tensor(REINHARD_REFERENCE[:3]).double(), atol=0.1, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_fitted_target_is_the_median_of_usable_tiles(method: str) -> None:
    tiles = torch.cat([draw_tiles(5), torch.full((3, 3, 40, 56), 255, dtype=torch.uint8)])
    normaliser = StainNormaliser(method)
    normaliser.fit([tiles[:4], tiles[4:]])
    expected = normaliser._method.measure(tiles[:5])[0].median(0).values
    assert torch.equal(normaliser.target, expected)
    with pytest.raises(ConfigError, match="looked for stained tissue in 3 training images and found none"):
        StainNormaliser(method).fit([tiles[5:]])


def test_tiles_to_fit_are_spread_evenly() -> None:
    assert choose_tiles(5) == [[0, 1, 2, 3, 4]]
    rows = [row for batch in choose_tiles(1000) for row in batch]
    assert len(rows) == len(set(rows)) == 256
    assert rows[-1] > 990


def colour_trial(**regulariser: object) -> Classifier:
    settings = tiny_trial(regulariser={"kind": "stain_normalisation", **regulariser})
    return build_initial_model(settings, random_dataset(channels=3), encoder=None)


def test_it_is_part_of_the_model_and_its_target_of_the_weights() -> None:
    tiles = draw_tiles(3, (16, 16))
    model = colour_trial(method="reinhard", target="training")
    assert "stain.target" in model.state_dict()
    normalised = StainNormaliser("reinhard")
    normalised.target.copy_(model.state_dict()["stain.target"])
    expected = (normalised(tiles).float() / 255 - model.mean) / model.std
    torch.testing.assert_close(model.normalise(tiles), expected)
    assert not any(name.startswith("stain") for name in model.encoder_state())


def test_grey_images_have_no_staining() -> None:
    settings = tiny_trial(regulariser={"kind": "stain_normalisation"})
    with pytest.raises(ConfigError, match="images of 1 channel, expected RGB tiles"):
        build_initial_model(settings, random_dataset(), encoder=None)


@pytest.mark.real_data
@pytest.mark.parametrize("method", METHODS)
def test_large_real_images_survive(method: str) -> None:
    paths = sorted((DATA / "retina-vessels" / "drive" / "test" / "images").glob("*"))[:1]
    if not paths:
        pytest.skip("the development images are not here")
    from PIL import Image

    image = torch.from_numpy(np.array(Image.open(paths[0]).convert("RGB"))).permute(2, 0, 1)[None]
    found = StainNormaliser(method)(image)
    assert found.shape == image.shape


def test_the_graph_after_reinhard_has_nothing_that_onnx_lacks() -> None:
    """A matrix inverse above all. To write the file itself takes half a minute."""
    program = torch.export.export(StainNormaliser("reinhard").eval(), (draw_tiles(2),))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert len(names) > 10
    assert not [name for name in names if "linalg" in name]
