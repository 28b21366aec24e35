"""What the public packages make of images, and how long it takes; runs in the environment of ``shift_images.py``.

``python shift_peer.py IMAGES.npz RESULT.npz``: for every corruption of imagecorruptions and severity the shifted
images, and the CPU seconds of each; for the deterministic ones of medmnistc the images.
"""

# ruff: noqa: BLE001 - a peer may fail in any way: what fails is reported
import json
import sys
import time
import types
import warnings

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


def run_imagecorruptions(images, outputs, seconds, failed):
    """Corrupt every image in every way at every severity."""
    package = repair_imagecorruptions()
    for name in package.get_corruption_names("all"):
        for severity in range(1, 6):
            np.random.seed(severity)
            started = time.process_time()
            try:
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
    images = np.load(sys.argv[1])["images"]
    outputs, seconds, failed = {}, {}, {}
    run_imagecorruptions(images, outputs, seconds, failed)
    run_medmnistc(images, outputs, failed)
    facts = json.dumps({"seconds": seconds, "failed": failed})
    np.savez(sys.argv[2], facts=np.array(facts), **{key.replace("/", "|"): value for key, value in outputs.items()})


main()
