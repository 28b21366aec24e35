"""Strong augmentation of image and mask per image, as albumentations would; runs in a Python of its own.

python peers/segmentation_augmentation.py IMAGES.npz RESULT.npz    # CPU seconds, and the library that was used

Crop, flips, then two to four of the strong policy's operations. With OpenCV where it is installed, else with Pillow;
noise is NumPy's in both, tables are OpenCV's ``LUT`` or NumPy's ``take``.
"""

import io
import sys
import time

import numpy as np

try:
    import cv2
except ImportError:
    cv2 = None
    from PIL import Image, ImageFilter, ImageOps

LEVELS = np.arange(256, dtype=np.float32)


def to_table(values):
    """Return a table of 256 grey values."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def look_up(image, table):
    """Return the image with every value replaced."""
    return cv2.LUT(image, table) if cv2 else table[image]


def to_gray(image):
    """Return the grey values."""
    if cv2:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(Image.fromarray(image).convert("L"))


def scale_channel(image, m, channel):
    """Return the image with a brighter or darker channel."""
    image = image.copy()
    image[..., channel] = look_up(np.ascontiguousarray(image[..., channel]), to_table(LEVELS * m))
    return image


def blend(first, second, m):
    """Return m·first + (1 − m)·second."""
    if cv2:
        return cv2.addWeighted(first, m, second, 1 - m, 0)
    return to_table(m * first.astype(np.float32) + (1 - m) * second.astype(np.float32))


def turn_hue(image, m):
    """Return the image with its hue turned by m."""
    if cv2:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), np.mod(LEVELS + 180 * m, 180).astype(np.uint8))
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    hue = hue.point(np.mod(LEVELS + 256 * m, 256).astype(np.uint8).tolist())
    return np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))


def saturate(image, m):
    """Return more or less of the colour."""
    gray = to_gray(image)
    return blend(image, np.repeat(gray[..., None], 3, axis=2), m)


def change_contrast(image, m):
    """Return more or less contrast around the mean grey value."""
    return look_up(image, to_table(m * LEVELS + (1 - m) * to_gray(image).mean()))


def convolve(image, kernel):
    """Return the image filtered by a 3 × 3 kernel."""
    if cv2:
        return cv2.filter2D(image, -1, kernel)
    return np.asarray(Image.fromarray(image).filter(ImageFilter.Kernel((3, 3), kernel.ravel().tolist(), scale=1)))


def sharpen(image, m):
    """Return a sharper image."""
    kernel = np.full((3, 3), -m)
    kernel[1, 1] = 1 - m + 9 * m
    return convolve(image, kernel)


def emboss(image, m):
    """Return an embossed image."""
    kernel = m * np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
    kernel[1, 1] += 1 - m
    return convolve(image, kernel)


def blur(image, m):
    """Return a blurred image."""
    if cv2:
        side = max(3, round(3.5 * m) // 2 * 2 + 1)
        return cv2.GaussianBlur(image, (side, side), max(m, 1e-3))
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(m)))


def add_noise(image, m):
    """Return the image mixed with noise that all channels share."""
    noise = np.random.randint(0, 255, image.shape[:2], dtype=np.uint8)
    return blend(np.repeat(noise[..., None], 3, axis=2), image, m)


def encode_jpeg(image, m):
    """Return the image as JPEG keeps it."""
    if cv2:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, m])
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=m)
    return np.asarray(Image.open(buffer))


def change_tone(image, first, second):
    """Return the image with its values on a Bézier curve."""
    t = LEVELS / 255
    return look_up(image, to_table(255 * (3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3)))


def stretch(image):
    """Return every channel stretched to 0–255."""
    if not cv2:
        return np.asarray(ImageOps.autocontrast(Image.fromarray(image)))
    channels = []
    for channel in cv2.split(image):
        low, high, _, _ = cv2.minMaxLoc(channel)
        channels.append(cv2.LUT(channel, to_table((LEVELS - low) * 255 / max(high - low, 1))))
    return cv2.merge(channels)


def equalize(image):
    """Return every channel with an even histogram."""
    if not cv2:
        return np.asarray(ImageOps.equalize(Image.fromarray(image)))
    return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(image)])


def draw_real(low, high):
    """Return a real magnitude."""
    return float(np.random.uniform(low, high))


OPERATIONS = (
    *(lambda image, c=c: scale_channel(image, draw_real(0, 2), c) for c in range(3)),
    lambda image: turn_hue(image, draw_real(-0.5, 0.5)),
    lambda image: saturate(image, draw_real(0, 2)),
    lambda image: look_up(image, to_table(LEVELS * draw_real(0.1, 2))),
    lambda image: change_contrast(image, draw_real(0.1, 2)),
    lambda image: look_up(image, to_table(255 * (LEVELS / 255) ** draw_real(0.1, 2))),
    lambda image: look_up(image, to_table(np.where(np.random.randint(0, 256) > LEVELS, LEVELS, 255 - LEVELS))),
    lambda image: look_up(image, to_table(np.arange(256) & (0xFF00 >> np.random.randint(1, 9) & 0xFF))),
    lambda image: sharpen(image, draw_real(0, 1)),
    lambda image: emboss(image, draw_real(0, 1)),
    lambda image: blur(image, draw_real(0, 3)),
    lambda image: add_noise(image, draw_real(0, 0.2)),
    lambda image: encode_jpeg(image, int(np.random.randint(0, 101))),
    lambda image: change_tone(image, draw_real(0, 1), draw_real(0, 1)),
    stretch,
    equalize,
    lambda image: np.repeat(to_gray(image)[..., None], 3, axis=2),
)


def crop(image, mask):
    """Return a random part of both, at the size of the whole."""
    height, width = mask.shape
    area, ratio = np.random.uniform(0.5, 1) * height * width, np.exp(np.random.uniform(-1, 1) * np.log(4 / 3))
    box_height, box_width = min(height, round((area / ratio) ** 0.5)), min(width, round((area * ratio) ** 0.5))
    top, left = np.random.randint(height - box_height + 1), np.random.randint(width - box_width + 1)
    box = slice(top, top + box_height), slice(left, left + box_width)
    if cv2:
        size = (width, height)
        return cv2.resize(image[box], size), cv2.resize(mask[box], size, interpolation=cv2.INTER_NEAREST)
    edges = (left, top, left + box_width, top + box_height)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=edges)
    moved = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST, box=edges)
    return np.asarray(resized), np.asarray(moved)


def augment(image, mask):
    """Return the augmented pair."""
    image, mask = crop(image, mask)
    for axis in (0, 1):
        if np.random.rand() < 0.5:
            image, mask = np.ascontiguousarray(np.flip(image, axis)), np.ascontiguousarray(np.flip(mask, axis))
    number = np.random.choice([2, 3, 4], p=[0.5, 0.3, 0.2])
    for index in np.random.choice(len(OPERATIONS), number, replace=False):
        image = OPERATIONS[index](image)
    return image, mask


def main():
    """Read, augment, write."""
    source, target = sys.argv[1:]
    with np.load(source) as archive:
        images, masks = archive["images"], archive["masks"]
    if cv2:
        cv2.setNumThreads(1)
    np.random.seed(0)
    for image, mask in zip(images[:8], masks[:8], strict=True):
        augment(image, mask)
    started = time.process_time()
    for image, mask in zip(images, masks, strict=True):
        augment(image, mask)
    np.savez(target, seconds=time.process_time() - started, library="OpenCV" if cv2 else "Pillow and NumPy")


if __name__ == "__main__":
    main()
