"""Decode one photo file, whatever its format, mode, size or damage, as upright 8-bit RGB without
metadata.
"""

import io
import math
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

from lib.files.errors import BadInput
from lib.files.text import printable

READABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


# Files that their owner takes for photos and that Pillow cannot read, each with the way out.
# Everything else is a stray.
REFUSED = {
    ".heic": (
        "on an iPhone choose Settings > Camera > Formats > Most Compatible, or export it as JPEG"
    ),
    ".raw": "export it as JPEG from your camera's program",
    ".psd": "export it as PNG",
    ".svg": "export it as PNG",
}


REFUSED |= dict.fromkeys((".heif", ".avif", ".jxl"), REFUSED[".heic"])


REFUSED |= dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"), REFUSED[".raw"])


DECODERS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


MOST_PIXELS = {
    "JPEG": 250_000_000
}  # a JPEG is decoded at an eighth of its size, so even a 200 megapixel phone photo is cheap


MOST_PIXELS_OTHERS = 100_000_000


SMALLEST = 16  # pixels: below this there is no subject to learn


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_photo(path, size=None, side=None):
    """Decode one photo as upright 8-bit RGB on white, in sRGB, without metadata.

    `size`: the pixels that are wanted for `side` pixels of the original (its shorter side if None);
    a bigger picture is then decoded smaller, which is faster. None decodes all of it. Returns
    (picture, (width, height) of the full upright picture, format, mode in the file, findings).
    Raises `BadInput`.
    """
    path, name = Path(path), printable(Path(path).name)
    try:
        _refuse_format(path, name)
        with _trusting_nothing(), Image.open(path, formats=DECODERS) as image:
            kind, mode = "JPEG" if image.format == "MPO" else image.format, image.mode
            if image.width * image.height > MOST_PIXELS.get(kind, MOST_PIXELS_OTHERS):
                raise BadInput(
                    f"{name}: is {image.width} x {image.height} pixels, too many to decode safely;"
                    " save a smaller copy of it"
                )
            if min(image.size) < SMALLEST:
                raise BadInput(
                    f"{name}: is only {image.width} x {image.height} pixels, so it shows nothing to"
                    " learn; use a larger one"
                )
            turn, findings = _metadata(image, kind)
            full = image.size
            shortest = size and min(image.size) * size // (side or min(image.size))
            if shortest and kind == "JPEG":
                image.draft(None, (shortest, shortest))
            image.load()
            rgb = _to_rgb(image, shortest, findings)
    except BadInput:
        raise
    except PermissionError as error:
        raise BadInput(
            f"{name}: may not be read; change its permissions, or copy it to where you may read it"
        ) from error
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and more
        raise BadInput(
            f"{name}: is damaged or cut short ({_short(error)}); copy it again from its source, or"
            " take it out"
        ) from error
    if kind == "TIFF":  # Pillow turns these upright itself
        full = image.size
    elif turn in TURNS:
        rgb, full = rgb.transpose(TURNS[turn]), full[::-1] if turn >= 5 else full
    rgb.info = {}
    return rgb, full, kind, mode, tuple(findings)


def upright(picture):
    """A picture (PIL or path) as an upright RGB image: EXIF rotation applied, transparency on
    white. BadInput if it cannot be read.
    """
    try:
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (
        OSError,
        SyntaxError,
        ValueError,
    ) as error:  # what Pillow raises on missing, foreign and damaged files
        raise BadInput(
            f"The picture {picture} cannot be read ({error}): make it again or restore it."
        ) from error


def cut(path, crop, size):
    """The `crop` (left, top, right, bottom in upright pixels) of a photo as an RGB picture of
    `size` (width, height). Raises `BadInput`.
    """
    # Twice the pixels wanted leave the resampling filter enough to work on.
    rgb, (width, height), *_ = open_photo(path, size=2 * size[0], side=crop[2] - crop[0])
    x, y = rgb.width / width, rgb.height / height
    left, top, right, bottom = crop[0] * x, crop[1] * y, crop[2] * x, crop[3] * y
    # Cut first: resize alone would let what lies beside the crop, such as a black bar, bleed into
    # its edge.
    rgb = rgb.crop((int(left), int(top), math.ceil(right), math.ceil(bottom)))
    box = (left - int(left), top - int(top), right - int(left), bottom - int(top))
    return rgb.resize(size, Image.Resampling.LANCZOS, box=box)


def _refuse_format(path, name):
    if not path.exists():
        raise BadInput(f"{name}: is a broken link; put the photo itself into the folder")
    if path.stat().st_size == 0:
        raise BadInput(f"{name}: is empty (0 bytes); copy it again from its source, or take it out")
    with open(path, "rb") as file:
        head = file.read(16)
    disguised = {b"ftypavif": ".avif", b"ftypavis": ".avif"} | {
        b"ftyp" + brand: ".heic" for brand in (b"heic", b"heix", b"mif1", b"msf1")
    }
    kind = disguised.get(head[4:12], path.suffix.lower())
    if kind in REFUSED:
        raise BadInput(
            f"{name}: is a {kind[1:].upper()} file, which cannot be read here; {REFUSED[kind]}"
        )
    known = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"II", b"MM", b"GIF8")
    if not head.startswith(known):
        raise BadInput(
            f"{name}: is no picture although its name says so; take it out, or save the picture"
            " again as JPEG or PNG"
        )


@contextmanager
def _trusting_nothing():
    """Pillow's limits are global: ours replace its guess about huge pictures, and cut-off files
    must raise whatever others set.
    """
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which is dropped anyway
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _short(error):
    return (
        str(error).split("\n")[0].replace("cannot identify image file", "unknown contents")
        or type(error).__name__
    )[:80]


def _metadata(image, kind):
    """EXIF orientation (1 to 8), and findings about what the file holds beside one opaque picture."""
    findings = []
    try:
        exif = image.getexif()
        turn, gps = exif.get(ExifTags.Base.Orientation, 1), bool(exif.get_ifd(ExifTags.IFD.GPSInfo))
    except Exception:  # damaged EXIF never makes a picture unusable
        turn, gps = 1, False
    if gps:
        findings.append(
            "holds the GPS position of where it was taken; the data set leaves it out, strip it"
            " before sharing the photo"
        )
    if kind != "JPEG" and getattr(image, "n_frames", 1) > 1:
        findings.append(
            f"has {image.n_frames} frames, of which only the first is used; save another frame as a"
            " picture if you want that"
        )
    return turn, findings


def _to_rgb(image, shortest, findings):
    """8-bit RGB on white from whatever mode the file has; appends to `findings` what was decided."""
    if image.mode.startswith(("I", "F")):
        findings.append(
            f"has more than 8 bits per pixel (mode {image.mode}) and is scaled to 8; export it as"
            " 8-bit if it looks wrong"
        )
        values = np.nan_to_num(np.asarray(image).astype(np.float32))
        top = (
            65535
            if image.mode.startswith("I;16")
            else next((t for t in (1, 255, 65535) if values.max() <= t), values.max())
        )
        image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    clear = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    profile = image.info.get("icc_profile")
    if image.mode in ("P", "PA", "1") or (clear and image.mode != "RGBA"):
        image = image.convert("RGBA" if clear else "RGB")
    factor = min(image.size) // shortest if shortest else 1
    image = image.reduce(factor) if factor > 1 else image
    if clear and image.getextrema()[3][0] < 255:
        findings.append(
            "is partly transparent and is put on white; put it on a background of your own if white"
            " is wrong"
        )
    if clear:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK"):
        image = _to_srgb(image, profile)
    return image.convert("RGB")


def _to_srgb(image, profile):
    # phones save Display P3, presses their own CMYK: read as plain RGB the colours would be off
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(
            image, own, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile, or one for another mode
