"""What the public package strong-augment does with images; runs in the throw-away environment of ``augmentation.py``.

python peers/augmentation.py IMAGES.npz RESULT.npz policy        # CPU seconds of its policy
python peers/augmentation.py IMAGES.npz RESULT.npz operations    # every operation at the magnitudes in IMAGES.npz
"""

import json
import sys
import time

import cv2
import numpy as np
from strong_augment import StrongAugment
from strong_augment._augment import _apply_operation

cv2.setNumThreads(1)


def time_policy(images):
    """Return the CPU seconds of the policy on all images, after a warm-up on a few."""
    np.random.seed(0)
    augment = StrongAugment(seed=0)
    for image in images[:8]:
        augment(image)
    started = time.process_time()
    for image in images:
        augment(image)
    return time.process_time() - started


def run_operations(images, cases):
    """Return the images by name|number; ``cases`` are (name, arguments)."""
    np.random.seed(0)
    return {
        f"{name}|{number}": np.stack(
            [_apply_operation(image.copy(), operation_name=name, **arguments) for image in images]
        )
        for number, (name, arguments) in enumerate(cases)
    }


def main():
    """Read, run, write."""
    source, target, what = sys.argv[1:]
    with np.load(source) as archive:
        images, cases = archive["images"], json.loads(str(archive["cases"]))
    if what == "policy":
        np.savez(target, seconds=time_policy(images))
    else:
        np.savez(target, **run_operations(images, cases))


if __name__ == "__main__":
    main()
