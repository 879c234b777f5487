"""Which photos show the same picture: copies, mirror images, re-crops, shifts; and which share their background.

A comparison by one hash per picture misses re-crops. So the middle of each picture, mirrored or not and at several scales, is
looked for inside each other picture by normalised cross-correlation of the fine detail, and a find counts only when the colours
agree over all that the two then have in common: the same subject before another background does not pass that.
"""

import numpy as np
from PIL import Image, ImageFilter

SIDE = 64                                       # pixels of the longer side at which pictures are compared
SCALES = tuple(1.06 ** -n for n in range(13))   # a re-crop down to half the width is found
FOUND, AGREE, CLOSE = 0.45, 0.84, 30            # correlation of the detail; share of common pixels within CLOSE grey levels
SAME_BACKGROUND = 0.7


def thumbnail(picture):
    """A small copy of an RGB picture, its longer side 2 * SIDE pixels: what the functions here compare."""
    scale = 2 * SIDE / max(picture.size)
    return picture.resize([max(8, round(n * scale)) for n in picture.size], Image.Resampling.BOX)


def _detail(picture):
    grey = np.asarray(picture.convert("L"), np.float32)
    return grey - np.asarray(picture.convert("L").filter(ImageFilter.GaussianBlur(2)), np.float32)


def _soft(picture):
    return np.asarray(picture.filter(ImageFilter.BoxBlur(1)), np.float32)       # forgives half a pixel of misplacement


def _scaled(picture, scale):
    size = [max(4, round(n * scale / 2)) for n in picture.size]     # / 2: thumbnails are twice SIDE
    return picture.resize(size, Image.Resampling.BOX)


class _Prepared:
    """What one thumbnail brings to all its comparisons: spectra of its detail, and of its own middle at every scale, both ways round."""

    def __init__(self, thumb):
        self.whole = _scaled(thumb, 1)
        self.soft = _soft(self.whole)
        detail = _detail(self.whole)
        self.spectrum = np.fft.rfft2(detail, (SIDE, SIDE))
        self.energy = np.fft.rfft2(detail ** 2, (SIDE, SIDE))
        self.histogram = _histogram(np.asarray(thumb).reshape(-1, 3))
        self.pieces, spectra, windows = [], [], []
        for mirrored in (False, True):
            for scale in SCALES:
                piece = _scaled(thumb, scale)
                piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else piece
                top, left = piece.height // 4, piece.width // 4
                middle = _detail(piece)[top: piece.height - top, left: piece.width - left]
                self.pieces.append((piece, middle.shape, float(np.linalg.norm(middle)), mirrored))
                spectra.append(np.fft.rfft2(middle, (SIDE, SIDE)))
                windows.append(np.fft.rfft2(np.ones(middle.shape), (SIDE, SIDE)))
        self.spectra, self.windows = np.conj(spectra), np.conj(windows)

    def find(self, other):
        """The best place of `other`'s middle in this picture: (correlation, agreement of the colours, whether it is mirrored)."""
        match = np.fft.irfft2(self.spectrum * other.spectra, (SIDE, SIDE))
        local = np.sqrt(np.maximum(np.fft.irfft2(self.energy * other.windows, (SIDE, SIDE)), 0))
        best = 0.0, None
        for i, (piece, shape, norm, _) in enumerate(other.pieces):
            valid = match[i, : self.whole.height - shape[0] + 1, : self.whole.width - shape[1] + 1]
            if norm < 1 or not valid.size:
                continue
            # A floor on the energy keeps noise on an empty wall from looking like a perfect match.
            scores = valid / (norm * np.maximum(local[i, : valid.shape[0], : valid.shape[1]], 0.3 * norm))
            y, x = np.unravel_index(scores.argmax(), scores.shape)
            if scores[y, x] > best[0]:
                best = float(scores[y, x]), (i, y - piece.height // 4, x - piece.width // 4)
        if best[0] < FOUND:
            return best[0], 0.0, False
        i, y, x = best[1]
        mirrored = other.pieces[i][3]
        agreement = 0.0
        for k in range(max(i - 1, 0), min(i + 2, len(other.pieces))):       # the scales next to it, and a pixel to every side
            if other.pieces[k][3] == mirrored:
                piece = _soft(other.pieces[k][0])
                dy, dx = (round((a - b) / 2) for a, b in zip(other.pieces[i][0].size[::-1], piece.shape))
                agreement = max(agreement, *(_agreement(self.soft, piece, y + dy + v, x + dx + h) for v in (-1, 0, 1) for h in (-1, 0, 1)))
        return best[0], agreement, mirrored


def _agreement(whole, piece, y, x):
    """Share of the pixels common to `whole` and `piece`, laid at (y, x), whose colours agree; 0 when too little is common."""
    height, width = piece.shape[:2]
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + height, whole.shape[0]), min(x + width, whole.shape[1])
    if (bottom - top) * (right - left) < 0.5 * height * width:
        return 0.0
    difference = whole[top:bottom, left:right] - piece[top - y: bottom - y, left - x: right - x]
    difference -= np.median(difference, axis=(0, 1))        # forgives another exposure
    return float((np.abs(difference).max(axis=-1) < CLOSE).mean())


def _histogram(pixels):
    cells = (pixels.astype(np.int64) // 64) @ np.array([16, 4, 1])
    return np.bincount(cells, minlength=64) / len(pixels)


def twins(thumbs):
    """Pairs of thumbnails that show the same picture: a list of (i, j, mirrored), i < j."""
    prepared, found = [_Prepared(thumb) for thumb in thumbs], []
    for j in range(len(prepared)):
        for i in range(j):
            a, b = prepared[i], prepared[j]
            if np.minimum(a.histogram, b.histogram).sum() < 0.3:
                continue                        # a re-crop keeps most of its colours; this saves most of the work in big folders
            for hit in (a.find(b), b.find(a)):
                if hit[1] > AGREE:
                    found.append((i, j, hit[2]))
                    break
    return found


def same_background(thumbs):
    """Indices of the largest set of thumbnails whose outer rims have the same colours (a set of one when there is none)."""
    rims = []
    for thumb in thumbs:
        pixels, n = np.asarray(thumb), min(thumb.size) // 7
        rim = np.ones(pixels.shape[:2], bool)
        rim[n:, n:-n] = False           # the lower edge has no say: there stands the subject
        rims.append(_histogram(pixels[rim]))
    close = [[j for j, b in enumerate(rims) if np.minimum(a, b).sum() > SAME_BACKGROUND] for a in rims]
    return max(close, key=len, default=[])
