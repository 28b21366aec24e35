"""What imagecorruptions makes of images with the random numbers of ``shift_draws.py``; for the peer's environment.

``python peers/shift_draws.py DRAWS.npz RESULT.npz NAME …``: the images in DRAWS corrupted in the named ways. Each way
answers what the package asks of ``np.random`` with what ours drew.
"""

import sys
import types
import warnings
from contextlib import contextmanager

import cv2
import numpy as np
from scipy.stats import poisson
from shifts import repair_imagecorruptions


@contextmanager
def answering_draws(answers):
    """Let ``np.random.<name>`` be what is given for the name, within."""
    originals = {name: getattr(np.random, name) for name in answers}
    for name, answer in answers.items():
        setattr(np.random, name, answer)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(np.random, name, original)


def add_normals(draws, index, severity):
    """Gaussian and speckle noise: a normal number per value."""
    noise = draws["normals"][index].astype(np.float64)
    return {"normal": lambda size, scale: scale * noise}


def count_photons(draws, index, severity):
    """Shot noise: the count at the drawn quantile of every value's Poisson distribution."""
    quantile = draws["uniforms"][index].astype(np.float64) + 2.0**-25  # the middle of a draw's 2⁻²⁴

    def count(rates):
        found, row = np.unique(rates, return_inverse=True)
        most = int(poisson.isf(2.0**-30, found[-1])) + 1
        table = poisson.cdf(np.arange(most + 1), found[:, None]) + np.arange(len(found))[:, None]
        row = row.reshape(rates.shape)
        return np.searchsorted(table.ravel(), quantile + row) - row * (most + 1)

    return {"poisson": count}


def flip_values(draws, index, severity):
    """Impulse noise asks twice: how near a value is to be flipped, and to which side; one number of ours says both."""
    drawn = draws["uniforms"][index].astype(np.float64)
    asked = iter((2.0 * np.minimum(drawn, 1.0 - drawn), 1.0 - drawn))
    return {"default_rng": lambda seed: types.SimpleNamespace(random=lambda shape: next(asked))}


def blur_moving(draws, index, severity):
    """Motion blur: its angle."""
    return {"uniform": lambda low, high: float(draws["angle"][index])}


def deform(draws, index, severity):
    """Elastic transform: displacements, those to the right first."""
    asked = iter(draws["moves"][index][::-1])
    return {"uniform": lambda low, high, size: high * next(asked)}


def blur_through_glass(draws, index, severity):
    """Glass blur: pairs from the last pixel to the first, right before down."""
    pairs = draws[f"glass|{severity}"][:, index]
    reach = -int(pairs.min())
    height, width = pairs.shape[1:3]
    visited = pairs[:, reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    asked = iter(visited[:, ::-1, ::-1, ::-1].reshape(-1, 2).tolist())
    return {"randint": lambda low, high, size: next(asked)}


def let_snow_fall(draws, index, severity):
    """Snow: the angle of the fall, and normal numbers, of which only those in the middle are enlarged to the image."""
    flakes = draws[f"flakes|{severity}"][index].astype(np.float64)

    def layer(size, loc, scale):
        noise = np.zeros(size)
        top, left = ((whole - part) // 2 for whole, part in zip(size, flakes.shape, strict=True))
        noise[top : top + flakes.shape[0], left : left + flakes.shape[1]] = flakes
        return loc + scale * noise

    return {"normal": layer, "uniform": lambda low, high: float(draws["fall"][index])}


def let_fog_rise(draws, index, severity):
    """Fog: octave by octave the numbers in the middle of squares, of their upper edges, of their left edges."""
    field = draws["fog"][index].astype(np.float64)

    def places():
        step = len(field)
        while step >= 2:
            corner, middle = slice(None, None, step), slice(step // 2, None, step)
            yield from ((middle, middle), (corner, middle), (middle, corner))
            step //= 2

    asked = places()
    return {"uniform": lambda low, high, size: high * field[next(asked)]}


def splash(draws, index, severity):
    """Spatter: a normal number per pixel."""
    liquid = draws["liquid"][index].astype(np.float64)
    return {"normal": lambda size, loc, scale: loc + scale * liquid}


WAYS = {
    "gaussian_noise": add_normals,
    "speckle_noise": add_normals,
    "shot_noise": count_photons,
    "impulse_noise": flip_values,
    "motion_blur": blur_moving,
    "elastic_transform": deform,
    "glass_blur": blur_through_glass,
    "snow": let_snow_fall,
    "fog": let_fog_rise,
    "spatter": splash,
}


def main():
    """Corrupt every image in the named ways, at every severity."""
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    package = repair_imagecorruptions()
    with np.load(sys.argv[1]) as archive:
        draws = {key: archive[key] for key in archive.files}
    made = {}
    for name in sys.argv[3:]:
        for severity in range(1, 6):
            shifted = []
            for index, image in enumerate(draws["images"]):
                with answering_draws(WAYS[name](draws, index, severity)):
                    shifted.append(package.corrupt(image, severity, name))
            made[f"{name}|{severity}"] = np.stack(shifted)
    np.savez(sys.argv[2], **made)


if __name__ == "__main__":
    main()
