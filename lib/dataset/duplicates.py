"""Which photos show the same picture: copies, mirror images, re-crops, shifts; and which share
their background.

A comparison by one hash per picture misses re-crops. So the middle of each picture, mirrored or not
and at several scales, is looked for inside each other picture by normalised cross-correlation of
the fine detail, and a find counts only when the colours agree over all that the two then have in
common: the same subject before another background does not pass that.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

SIDE = 64  # pixels of the longer side at which pictures are compared


SCALES = tuple(1.06**-n for n in range(13))  # a re-crop down to half the width is found


# Correlation of the detail from which a find is looked at; share of the common pixels that must lie
# within CLOSE grey levels. Mirrored, re-cropped and brightened photographs agree in 0.95 or more,
# two drawings of one jacket before two plain backgrounds in 0.81.
FOUND, AGREE, CLOSE = 0.45, 0.88, 30


SAME_BACKGROUND = 0.7


def thumbnail(picture):
    """A small copy of an RGB picture, its longer side 2 * SIDE pixels: what the functions here
    compare.
    """
    scale = 2 * SIDE / max(picture.size)
    return picture.resize([max(8, round(n * scale)) for n in picture.size], Image.Resampling.BOX)


def _soft(picture):
    return np.asarray(
        picture.filter(ImageFilter.BoxBlur(1)), np.float32
    )  # forgives half a pixel of misplacement


def _detail(picture):
    grey = picture.convert("L")
    return np.asarray(grey, np.float32) - np.asarray(
        grey.filter(ImageFilter.GaussianBlur(2)), np.float32
    )


def _scaled(picture, scale):
    size = [max(4, round(n * scale / 2)) for n in picture.size]  # / 2: thumbnails are twice SIDE
    return picture.resize(size, Image.Resampling.BOX)


def _spectrum(values):
    return np.fft.rfft2(values, (SIDE, SIDE))


@lru_cache(maxsize=1024)
def _window(shape):
    """Spectrum of a patch of ones: correlating with it sums over every place where a piece of that
    shape could lie.
    """
    return np.conj(_spectrum(np.ones(shape)))


class _Prepared:
    """What one thumbnail brings to all its comparisons: spectra of its detail, and of its own
    middle at every scale, both ways round.
    """

    def __init__(self, thumb):
        self.scaled = [_scaled(thumb, scale) for scale in SCALES]
        self.soft, detail = _soft(self.scaled[0]), _detail(self.scaled[0])
        self.spectrum, self.energy = _spectrum(detail), _spectrum(detail**2)
        self.histogram = _histogram(np.asarray(thumb).reshape(-1, 3))
        middles = []
        for piece in self.scaled:
            top, left = piece.height // 4, piece.width // 4
            middles.append(_detail(piece)[top : piece.height - top, left : piece.width - left])
        self.shapes, self.norms = (
            [m.shape for m in middles],
            [float(np.linalg.norm(m)) for m in middles],
        )
        self.spectra = np.conj([[_spectrum(m[:, ::way]) for m in middles] for way in (1, -1)])

    def find(self, other):
        """The best place of `other`'s middle in this picture: (correlation, agreement of the
        colours, whether it is mirrored).
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
            here = np.sqrt(
                np.maximum(local[k, : valid.shape[1], : valid.shape[2]], (0.3 * norm) ** 2)
            )
            scores = valid / (norm * here)
            mirrored, y, x = np.unravel_index(scores.argmax(), scores.shape)
            if scores[mirrored, y, x] > best:
                best, place = float(scores[mirrored, y, x]), (k, bool(mirrored), y, x)
        if best < FOUND:
            return best, 0.0, False
        k, mirrored, y, x = place
        centre = [
            (n + size) / 2
            for n, size in zip((y, x), (y + other.shapes[k][0], x + other.shapes[k][1]))
        ]
        agreement = 0.0
        for piece in other.scaled[
            max(k - 1, 0) : k + 2
        ]:  # the scales next to the best, and a pixel to every side
            piece = _soft(piece)[:, :: -1 if mirrored else 1]
            top, left = (round(c - n / 2) for c, n in zip(centre, piece.shape))
            agreement = max(
                agreement,
                *(
                    _agreement(self.soft, piece, top + v, left + h)
                    for v in (-1, 0, 1)
                    for h in (-1, 0, 1)
                ),
            )
        return best, agreement, mirrored


def _agreement(whole, piece, y, x):
    """Share of the pixels common to `whole` and `piece`, laid at (y, x), whose colours agree; 0
    when too little is common.
    """
    height, width = piece.shape[:2]
    top, left, bottom, right = (
        max(y, 0),
        max(x, 0),
        min(y + height, whole.shape[0]),
        min(x + width, whole.shape[1]),
    )
    if (bottom - top) * (right - left) < 0.5 * height * width:
        return 0.0
    difference = whole[top:bottom, left:right] - piece[top - y : bottom - y, left - x : right - x]
    difference -= np.median(difference, axis=(0, 1))  # forgives another exposure
    return float((np.abs(difference).max(axis=-1) < CLOSE).mean())


def _histogram(pixels):
    cells = (pixels.astype(np.int64) // 64) @ np.array([16, 4, 1])
    return np.bincount(cells, minlength=64) / len(pixels)


def twins(thumbs):
    """Pairs of thumbnails that show the same picture: a list of (i, j, mirrored), i < j."""
    prepared, found = [_Prepared(thumb) for thumb in thumbs] if len(thumbs) > 1 else [], []
    for j in range(len(prepared)):
        for i in range(j):
            a, b = prepared[i], prepared[j]
            if np.minimum(a.histogram, b.histogram).sum() < 0.3:
                # a re-crop keeps most of its colours; this saves most of the work in big folders
                continue
            for hit in (a.find(b), b.find(a)):
                if hit[1] > AGREE:
                    found.append((i, j, hit[2]))
                    break
    return found


def same_background(thumbs):
    """Indices of the largest set of thumbnails whose outer rims have the same colours (a set of one
    when there is none).
    """
    rims = []
    for thumb in thumbs:
        pixels, n = np.asarray(thumb), min(thumb.size) // 7
        rim = np.ones(pixels.shape[:2], bool)
        rim[n:, n:-n] = False  # the lower edge has no say: there stands the subject
        rims.append(_histogram(pixels[rim]))
    close = [
        [j for j, b in enumerate(rims) if np.minimum(a, b).sum() > SAME_BACKGROUND] for a in rims
    ]
    return max(close, key=len, default=[])
