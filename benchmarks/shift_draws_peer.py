"""What imagecorruptions makes of images with the random numbers of ``shift_draws.py``; for the peer's environment."""

import itertools
import sys
import warnings
from contextlib import contextmanager

import numpy as np
from shift_peer import repair_imagecorruptions


@contextmanager
def answering(name, answer):
    """Let ``np.random.<name>`` call ``answer`` within."""
    original = getattr(np.random, name)
    setattr(np.random, name, answer)
    try:
        yield
    finally:
        setattr(np.random, name, original)


def blur_moving(package, draws, index, severity):
    """Return motion_blur with the drawn angle."""
    with answering("uniform", lambda low, high: float(draws["angle"][index])):
        return package.corrupt(draws["images"][index], severity, "motion_blur")


def deform(package, draws, index, severity):
    """Return elastic_transform with the drawn displacements; it asks for those to the right first."""
    asked = iter(draws["moves"][index][::-1])
    with answering("uniform", lambda low, high, size: high * next(asked)):
        return package.corrupt(draws["images"][index], severity, "elastic_transform")


def blur_through_glass(package, draws, index, severity):
    """Return glass_blur with the drawn pairs: it goes from the last pixel to the first, right before down."""
    pairs = draws[f"glass|{severity}"][:, index]
    reach = -int(pairs.min())
    height, width = pairs.shape[1:3]
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    asked = (pairs[place][::-1] for place in itertools.product(range(len(pairs)), rows, columns))
    with answering("randint", lambda low, high, size: next(asked)):
        return package.corrupt(draws["images"][index], severity, "glass_blur")


def main():
    """Corrupt every image in the three ways."""
    warnings.simplefilter("ignore")
    package = repair_imagecorruptions()
    with np.load(sys.argv[1]) as archive:
        draws = {key: archive[key] for key in archive.files}
    ways = {"motion_blur": blur_moving, "elastic_transform": deform, "glass_blur": blur_through_glass}
    made = {
        f"{name}|{severity}": np.stack([way(package, draws, index, severity) for index in range(len(draws["images"]))])
        for name, way in ways.items()
        for severity in range(1, 6)
    }
    np.savez(sys.argv[2], **made)


if __name__ == "__main__":
    main()
