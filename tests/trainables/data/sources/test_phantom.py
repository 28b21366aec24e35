"""The phantom: lesions where the mask says, sites that differ, a nuisance that agrees as often as asked."""

import numpy as np
import pytest

from trainables.data.sources.phantom import plan_phantom, render_phantom
from trainables.data.sources.phantom_rendering import render_scenes
from trainables.data.sources.phantom_scenes import NUISANCES
from trainables.data_config import PhantomData
from trainables.errors import ConfigError

SMALL = PhantomData(num_images=120, num_external_sites=1, num_external_images=40)


@pytest.fixture(scope="module")
def phantom():
    return render_phantom(SMALL)


def test_same_seed_same_images_other_seed_others(phantom):
    assert np.array_equal(render_phantom(SMALL).images, phantom.images)
    other = render_phantom(SMALL.model_copy(update={"seed": 1}))
    assert (other.images != phantom.images).mean() > 0.5


def test_an_image_is_the_same_alone_and_in_a_batch(phantom):
    for row in (0, 37, 159):
        image, mask = render_scenes(phantom.plan.scenes, np.array([row]), size=64, channels=3)
        assert np.array_equal(image[0], phantom.images[row])
        assert np.array_equal(mask[0], phantom.masks[row])


def test_label_is_presence_of_lesions(phantom):
    assert ((phantom.masks > 0).any(axis=(1, 2)) == (phantom.plan.labels > 0)).all()
    assert np.bincount(phantom.plan.labels[:120]).tolist() == pytest.approx([60, 60], abs=10)


def test_masks_have_the_size_of_the_lesions(phantom):
    """π·r² of the drawn radii, for lesions that lie wholly inside."""
    scenes = phantom.plan.scenes
    radius, is_lesion = scenes.blobs[..., 2], scenes.blobs[..., 7] > 0
    drawn = (np.pi * radius**2 * is_lesion).sum(axis=1)
    covered = (phantom.masks > 0).sum(axis=(1, 2))
    sick = drawn > 20
    assert covered[sick] / drawn[sick] == pytest.approx(1, abs=0.3)
    assert covered.sum() / drawn.sum() == pytest.approx(1, abs=0.03)
    counts = ((radius > 0) & is_lesion).sum(axis=1)
    assert all(len(np.unique(mask)) - 1 == count for mask, count in zip(phantom.masks, counts, strict=True))


def test_lesions_are_where_the_mask_says(phantom):
    """Rendered without its lesions, an image differs inside the mask and (blur and noise apart) not outside."""
    plan = phantom.plan
    blobs = plan.scenes.blobs.copy()
    blobs[blobs[..., 7] > 0, 2] = 0
    healthy = type(plan.scenes)(**{**vars(plan.scenes), "blobs": blobs})
    images, masks = render_scenes(healthy, np.arange(160), size=64, channels=3)
    assert not masks.any()
    change = np.abs(images.astype(int) - phantom.images).max(axis=1)
    assert change[phantom.masks > 0].mean() > 15
    assert change[phantom.masks == 0].mean() < 0.5


def test_masks_scale_with_the_image():
    large = render_phantom(PhantomData(num_images=12, num_external_sites=0, image_size=128))
    small = render_phantom(PhantomData(num_images=12, num_external_sites=0, image_size=64))
    assert (large.masks > 0).sum() / (small.masks > 0).sum() == pytest.approx(4, rel=0.15)


def test_grades_have_more_lesions():
    phantom = render_phantom(PhantomData(num_images=200, num_external_sites=0, num_classes=5, image_size=32))
    labels, area = phantom.plan.labels, (phantom.masks > 0).sum(axis=(1, 2))
    means = [area[labels == grade].mean() for grade in range(5)]
    assert means == sorted(means)
    assert means[0] == 0


def test_patients_share_site_grade_and_split(phantom):
    plan = phantom.plan
    for group in set(plan.groups):
        rows = [row for row, other in enumerate(plan.groups) if other == group]
        assert len(rows) == 2
        assert len({(plan.labels[row], plan.sites[row], plan.splits[row]) for row in rows}) == 1
    assert len(set(plan.ids)) == 160


def test_external_site_looks_different(phantom):
    plan = phantom.plan
    means = {
        site: phantom.images[[row for row, other in enumerate(plan.sites) if other == site]].mean(axis=(0, 2, 3))
        for site in set(plan.sites)
    }
    known = np.stack([means[f"site-{index}"] for index in range(3)])
    spread = np.abs(known - known.mean(axis=0)).max()
    assert np.abs(means["external-0"] - known.mean(axis=0)).max() > max(10, spread)


def test_adding_an_external_site_leaves_the_cameras_of_others():
    one = plan_phantom(PhantomData(num_images=24, num_external_sites=1, num_external_images=8))
    two = plan_phantom(PhantomData(num_images=24, num_external_images=8, num_external_sites=2))
    for site in ("site-0", "site-2", "external-0"):
        cameras = [plan.scenes.camera[plan.sites.index(site)] for plan in (one, two)]
        assert np.array_equal(*cameras)


@pytest.mark.parametrize(("rho", "rho_test"), [(0.9, None), (0.9, 0.1), (1.0, 0.0)])
def test_nuisance_agrees_as_often_as_asked(rho, rho_test):
    plan = plan_phantom(
        PhantomData(num_images=2000, num_external_images=1000, nuisance="corner_tag", rho=rho, rho_test=rho_test)
    )
    agrees = plan.nuisance == (plan.labels > 0)
    expected = {"train": rho, "val": rho, "test": rho if rho_test is None else rho_test, "external/external-0": 0.5}
    for split, share in expected.items():
        assert agrees[plan.splits == split].mean() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("nuisance", [name for name in NUISANCES if name != "none"])
def test_nuisance_changes_exactly_the_images_that_have_it(nuisance):
    settings = {"num_images": 24, "num_external_sites": 0, "image_size": 32}
    plain = render_phantom(PhantomData(**settings))
    marked = render_phantom(PhantomData(**settings, nuisance=nuisance, rho=1.0))
    changed = (plain.images != marked.images).any(axis=(1, 2, 3))
    assert (changed == (marked.plan.labels > 0)).all()
    assert np.array_equal(plain.masks, marked.masks)


@pytest.mark.parametrize("nuisance", [name for name in NUISANCES if name != "none"])
@pytest.mark.parametrize("image_size", [48, 64])
def test_nuisance_leaves_the_pixels_of_lesions_as_they_are(nuisance, image_size):
    settings = {"num_images": 60, "num_external_sites": 0, "num_classes": 3, "image_size": image_size}
    plain = render_phantom(PhantomData(**settings))
    marked = render_phantom(PhantomData(**settings, nuisance=nuisance, rho=1.0))
    change = np.abs(plain.images.astype(int) - marked.images).max(axis=1)
    lesions, is_sick = plain.masks > 0, marked.plan.labels > 0
    assert lesions.sum() > 200
    assert not change[lesions].any()
    elsewhere = change[is_sick][~lesions[is_sick]]
    assert elsewhere.any()
    if nuisance != "corner_tag":  # it changes the rest of the eye
        assert elsewhere.mean() > 1.5


def test_blurred_images_are_the_sick_ones():
    """Measured in the healthy part of the images: the size of differences between neighbouring pixels."""
    settings = {"num_images": 400, "num_external_sites": 0, "image_size": 48, "nuisance": "sharpness"}

    def sharpness(phantom):
        grey = phantom.images.astype(float).mean(axis=1)
        steps = np.abs(np.diff(grey, axis=2))
        healthy = (phantom.masks[:, :, 1:] == 0) & (phantom.masks[:, :, :-1] == 0)
        return (steps * healthy).sum(axis=(1, 2)) / healthy.sum(axis=(1, 2))

    phantom = render_phantom(PhantomData(**settings, rho=1.0))
    found, is_sick = sharpness(phantom), phantom.plan.labels > 0
    assert found[is_sick].mean() < 0.9 * found[~is_sick].mean()
    reverse = render_phantom(PhantomData(**settings, rho=0.0))
    found = sharpness(reverse)
    assert found[is_sick].mean() > 1.1 * found[~is_sick].mean()


def test_by_default_there_are_six_external_sites_that_differ():
    phantom = render_phantom(PhantomData(num_images=24, image_size=32))
    sites = np.array(phantom.plan.sites)
    names = [f"external-{index}" for index in range(6)]
    assert sorted(set(sites)) == [*names, "site-0", "site-1", "site-2"]
    assert all((sites == name).sum() == 100 for name in names)
    means = np.stack([phantom.images[sites == name].mean(axis=(0, 2, 3)) for name in names])
    distances = np.abs(means[:, None] - means).max(axis=2)
    assert distances[~np.eye(6, dtype=bool)].min() > 0.5


def test_no_nuisance_is_zero(phantom):
    assert not phantom.plan.nuisance.any()


def test_grey_phantom():
    assert render_phantom(PhantomData(num_images=12, num_external_sites=0, channels=1)).images.shape == (12, 1, 64, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 10}, "at least 12"),
        ({"lesion_radius_px": (3.0, 1.0)}, "smallest <= largest"),
        ({"lesion_radius_px": (10.0, 14.0), "num_classes": 5}, "leaves room for"),
    ],
)
def test_impossible_phantoms_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        plan_phantom(PhantomData(**settings))
