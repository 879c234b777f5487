"""Which photos show the same picture, and which share their background.

The same picture means copies, mirror images, re-crops and shifts. A comparison by one hash per
picture misses re-crops. So the middle of each picture, mirrored or not and at several scales, is
looked for inside each other picture by normalised cross-correlation of the fine detail, and a find
counts only when the colours agree over all that the two then have in common: the same subject
before another background does not pass that.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

SIDE = 64  # pixels of the longer side at which pictures are compared
SCALES = tuple(1.06**-n for n in range(13))  # a re-crop down to half the width is found


# Correlation of the detail from which a find is looked at; share of the common pixels that must lie
# within CLOSE grey levels. Mirrored, re-cropped and brightened photographs agree in 0.95 or more,
# two drawings of one jacket before two plain backgrounds in 0.81.
FOUND, AGREE, CLOSE = 0.45, 0.88, 30

SAME_BACKGROUND = 0.7  # share of the colours of two rims that must be common

Pixels = np.ndarray


def thumbnail(picture: Image.Image) -> Image.Image:
    """A small copy of an RGB picture, its longer side 2 * SIDE: what the functions here compare."""
    return _resized(picture, 2 * SIDE / max(picture.size), 8)


def _resized(picture: Image.Image, scale: float, least: int) -> Image.Image:
    width, height = (max(least, round(n * scale)) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def _soft(picture: Image.Image) -> Pixels:
    """The pixels, blurred a little, which forgives half a pixel of misplacement."""
    return np.asarray(picture.filter(ImageFilter.BoxBlur(1)), np.float32)


def _detail(picture: Image.Image) -> Pixels:
    grey = picture.convert("L")
    blurred = np.asarray(grey.filter(ImageFilter.GaussianBlur(2)), np.float32)
    return np.asarray(grey, np.float32) - blurred


def _spectrum(values: Pixels) -> Pixels:
    return np.fft.rfft2(values, (SIDE, SIDE))


@lru_cache(maxsize=1024)
def _window(shape: tuple[int, int]) -> Pixels:
    """Spectrum of a patch of ones of that shape.

    Correlating with it sums over every place where such a patch could lie.
    """
    return np.conj(_spectrum(np.ones(shape)))


class _Prepared:
    """What one thumbnail brings to all its comparisons.

    Spectra of its detail, and of its own middle at every scale, both ways round.
    """

    def __init__(self, thumb: Image.Image):
        # / 2: thumbnails are twice SIDE.
        self.scaled = [_resized(thumb, scale / 2, 4) for scale in SCALES]
        self.soft, detail = _soft(self.scaled[0]), _detail(self.scaled[0])
        self.spectrum, self.energy = _spectrum(detail), _spectrum(detail**2)
        self.histogram = _histogram(np.asarray(thumb).reshape(-1, 3))
        middles = []
        for copy in self.scaled:
            top, left = copy.height // 4, copy.width // 4
            middles.append(_detail(copy)[top : copy.height - top, left : copy.width - left])
        self.shapes = [middle.shape for middle in middles]
        self.norms = [float(np.linalg.norm(middle)) for middle in middles]
        self.spectra = np.conj([[_spectrum(m[:, ::way]) for m in middles] for way in (1, -1)])

    def find(self, other: "_Prepared") -> tuple[float, bool]:
        """How the best place of `other`'s middle in this picture fits it.

        (agreement of the colours, whether it is mirrored); no agreement where the detail does not
        correlate.
        """
        match = np.fft.irfft2(self.spectrum * other.spectra, (SIDE, SIDE))
        local = np.fft.irfft2(
            self.energy * np.array([_window(shape) for shape in other.shapes]), (SIDE, SIDE)
        )
        best, place = 0.0, None
        for k, ((height, width), norm) in enumerate(zip(other.shapes, other.norms)):
            valid = match[:, k, : self.soft.shape[0] - height + 1, : self.soft.shape[1] - width + 1]
            if norm < 1 or not valid.size:
                continue
            # A floor on the energy keeps noise on an empty wall from looking like a perfect match.
            energy = local[k, : valid.shape[1], : valid.shape[2]]
            scores = valid / (norm * np.sqrt(np.maximum(energy, (0.3 * norm) ** 2)))
            mirrored, y, x = np.unravel_index(scores.argmax(), scores.shape)
            if scores[mirrored, y, x] > best:
                best, place = float(scores[mirrored, y, x]), (k, bool(mirrored), y, x)
        if place is None or best < FOUND:
            return 0.0, False
        k, mirrored, y, x = place
        middle = other.shapes[k]
        centre = (y + y + middle[0]) / 2, (x + x + middle[1]) / 2
        agreements = []
        # At the scales next to the best, and a pixel to every side.
        for copy in other.scaled[max(k - 1, 0) : k + 2]:
            pixels = _soft(copy)[:, :: -1 if mirrored else 1]
            top, left = (round(c - n / 2) for c, n in zip(centre, pixels.shape))
            agreements += [
                _agreement(self.soft, pixels, top + down, left + right)
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
            ]
        return max(agreements), mirrored


def _agreement(picture: Pixels, other: Pixels, y: int, x: int) -> float:
    """Share of the pixels common to `picture` and `other`, laid at (y, x), whose colours agree.

    0 when too little is common.
    """
    height, width = other.shape[:2]
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + height, picture.shape[0]), min(x + width, picture.shape[1])
    if (bottom - top) * (right - left) < 0.5 * height * width:
        return 0.0
    difference = picture[top:bottom, left:right] - other[top - y : bottom - y, left - x : right - x]
    difference -= np.median(difference, axis=(0, 1))  # forgives another exposure
    return float((np.abs(difference).max(axis=-1) < CLOSE).mean())


def _histogram(pixels: Pixels) -> Pixels:
    """Shares of the 64 cells that the colours fall into, for pixels [N, 3]."""
    cells = (pixels.astype(np.int64) // 64) @ np.array([16, 4, 1])
    return np.bincount(cells, minlength=64) / len(pixels)


def same_pictures(thumbs: Sequence[Image.Image]) -> list[tuple[int, int, bool]]:
    """Pairs of thumbnails that show the same picture: (i, j, mirrored), i < j."""
    prepared = [_Prepared(thumb) for thumb in thumbs] if len(thumbs) > 1 else []
    found = []
    for j, second in enumerate(prepared):
        for i, first in enumerate(prepared[:j]):
            # A re-crop keeps most of its colours; this saves most of the work in big folders.
            if np.minimum(first.histogram, second.histogram).sum() >= 0.3:
                finds = first.find(second), second.find(first)
                ways = [mirrored for agreement, mirrored in finds if agreement > AGREE]
                found += [(i, j, mirrored) for mirrored in ways[:1]]
    return found


def same_background(thumbs: Sequence[Image.Image]) -> list[int]:
    """Indices of the largest set of thumbnails whose outer rims have the same colours.

    A set of one when there is none.
    """
    rims = []
    for thumb in thumbs:
        pixels, n = np.asarray(thumb), min(thumb.size) // 7
        rim = np.ones(pixels.shape[:2], bool)
        rim[n:, n:-n] = False  # the lower edge has no say: there stands the subject
        rims.append(_histogram(pixels[rim]))
    close = [
        [j for j, second in enumerate(rims) if np.minimum(first, second).sum() > SAME_BACKGROUND]
        for first in rims
    ]
    return max(close, key=len, default=[])
