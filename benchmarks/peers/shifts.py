"""What the public packages make of images, and how long it takes; runs in the environment of ``shift_images.py``.

``python peers/shifts.py IMAGES.npz RESULT.npz [NAME …]``: for every corruption of imagecorruptions, or the named
ones, and severity the shifted images, and the CPU seconds of each; without names also what the deterministic ones of
medmnistc make.
"""

# ruff: noqa: BLE001 - a peer may fail in any way: what fails is reported
import json
import sys
import time
import types
import warnings
from contextlib import contextmanager, nullcontext

import cv2
import numpy as np
import skimage.filters
from PIL import Image

#: medmnistc: class → (our name, parameters of the class).
MEDMNISTC = {
    "enhance.Brightness": ("brightness_up", [1.1, 1.2, 1.3, 1.4, 1.5]),
    "enhance.Contrast": ("contrast_down", [0.9, 0.8, 0.7, 0.6, 0.4]),
    "enhance.Saturate": ("saturate", [0.05, 0.1, 0.15, 0.2, 0.25]),
    "compression.Pixelate": ("pixelate", [0.8, 0.6, 0.5, 0.4, 0.35]),
    "compression.JPEGCompression": ("jpeg", [30, 25, 20, 10, 5]),
    "filter.DefocusBlur": ("defocus_blur", [(4, 0.1), (5, 0.2), (6, 0.3), (7, 0.4), (8, 0.5)]),
    "microscopy.BlackCorner": ("black_corner", [1.1, 1.05, 1.0, 0.95, 0.9]),
}


def repair_imagecorruptions():
    """Return the package; its calls of scikit-image and NumPy use names that no longer exist."""
    original = skimage.filters.gaussian

    def gaussian(*args, multichannel=None, **options):
        return original(*args, **options, **({"channel_axis": -1} if multichannel else {}))

    skimage.filters.gaussian = gaussian
    np.float_ = np.float64
    import imagecorruptions

    return imagecorruptions


@contextmanager
def drawing_ahead():
    """Within, glass_blur's two random numbers per pixel come from many drawn at once: the same, four times as fast."""
    original, pairs = np.random.randint, {}

    def randint(low, high=None, size=None):
        if size != (2,):
            return original(low, high, size)
        found = next(pairs.get((low, high), iter(())), None)
        if found is None:
            pairs[low, high] = iter(original(low, high, (1_000_000, 2)).tolist())
            found = next(pairs[low, high])
        return found

    np.random.randint = randint
    try:
        yield
    finally:
        np.random.randint = original


def run_imagecorruptions(images, names, seed, outputs, seconds, failed):
    """Corrupt every image in every way, or the named ones, at every severity."""
    package = repair_imagecorruptions()
    for name in names or package.get_corruption_names("all"):
        for severity in range(1, 6):
            np.random.seed(10 * seed + severity)
            started = time.process_time()
            try:
                with drawing_ahead() if names else nullcontext():  # without names, it is timed
                    shifted = [package.corrupt(image, severity, name) for image in images]
            except Exception as error:
                failed[name] = repr(error)
                break
            seconds[f"{name}/{severity}"] = time.process_time() - started
            outputs[f"imagecorruptions/{name}/{severity}"] = np.stack(shifted)


def run_medmnistc(images, outputs, failed):
    """Corrupt every image in the deterministic ways; wand and torchvision, which other ways need, are left out."""
    for name in ("wand", "wand.image", "wand.api", "torchvision", "torchvision.transforms"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["wand.image"].Image = object
    sys.modules["wand.api"].library = None
    sys.modules["torchvision.transforms.functional"] = types.ModuleType("functional")
    sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
    for path, (name, parameters) in MEDMNISTC.items():
        module, kind = path.split(".")
        try:
            made = getattr(__import__(f"medmnistc.corruptions.{module}", fromlist=[kind]), kind)(parameters)
            for severity in range(5):
                shifted = [np.asarray(made.apply(Image.fromarray(image), severity)) for image in images]
                outputs[f"medmnistc/{name}/{severity + 1}"] = np.stack(shifted)
        except Exception as error:
            failed[f"medmnistc {name}"] = repr(error)


def main():
    """Run everything."""
    warnings.simplefilter("ignore")
    cv2.setNumThreads(1)
    with np.load(sys.argv[1]) as archive:
        images, seed = archive["images"], int(archive["seed"])
    outputs, seconds, failed = {}, {}, {}
    names = sys.argv[3:]
    run_imagecorruptions(images, names, seed, outputs, seconds, failed)
    if not names:
        run_medmnistc(images, outputs, failed)
    facts = json.dumps({"seconds": seconds, "failed": failed})
    np.savez(sys.argv[2], facts=np.array(facts), **{key.replace("/", "|"): value for key, value in outputs.items()})


if __name__ == "__main__":
    main()
