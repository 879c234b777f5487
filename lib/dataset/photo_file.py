"""Decode one photo file, whatever its format, mode, size or damage, as upright 8-bit RGB.

    photo = open_photo("IMG_0042.HEIC", size=256)
    photo.picture, photo.size, photo.findings       # without metadata; nothing is written

What a file is, its first bytes say, whatever its name (`format_of`). A new format belongs into
`SIGNATURES`, `DECODERS` and `READABLE`, one that cannot be read into `REFUSED`.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, features

from lib.files import BadInput, printable

READABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
READABLE += (".heic", ".heif", ".hif", ".avif", ".jfif", ".jpe", ".mpo", ".apng", ".jp2", ".tga")

_EXPORT_HEIC = (
    "on an iPhone choose Settings > Camera > Formats > Most Compatible, or export it as JPEG"
)

# Files that their owner takes for photos and that cannot be read, each with the way out.
# Everything else is a stray.
REFUSED = {
    **dict.fromkeys(
        ".raw .dng .crw .cr2 .cr3 .nef .nrw .arw .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr".split(),
        "export it as JPEG from your camera's program",
    ),
    ".jxl": _EXPORT_HEIC,
    **dict.fromkeys(
        (".psd", ".svg", ".xcf", ".kra", ".ai", ".ico", ".ppm", ".pgm", ".exr", ".hdr", ".dds"),
        "export it as PNG",
    ),
}

DECODERS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000")

# How a file of each format begins, as a regular expression. Those that cannot be read are called by
# their ending.
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "GIF": rb"GIF8",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    ".cr2": rb"II\*\0....CR",  # in TIFF's form, whose decoder would find a thumbnail
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    ".jxl": rb"\xff\x0a|\0\0\0\x0cJXL ",
    ".psd": rb"8BPS",
}

# HEIC and AVIF are told apart by the brands behind "ftyp".
BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"},
}

# TGA has no signature, but fields that take few values: it counts where the name says so too.
TGA = rb".[\0\1][\1-\3\x09-\x0b].{13}[\x08\x10\x18\x20]"

RENAMED = {"MPO": "JPEG", "HEIF": "HEIC"}  # Pillow's names of formats, where not ours

# A JPEG is decoded at an eighth of its size, so even a 200 megapixel phone photo is cheap.
MOST_PIXELS_JPEG, MOST_PIXELS = 250_000_000, 100_000_000

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


class DecodedPhoto(NamedTuple):
    """What `open_photo` found in a file.

    - picture: upright 8-bit RGB in sRGB, without metadata, perhaps smaller than the file's
    - size: (width, height) in pixels of the full upright picture
    - format: "JPEG", "HEIC", ...; mode: Pillow's name of the file's kind of pixels
    - findings: short sentences on what was decided or should be known
    """

    picture: Image.Image
    size: tuple[int, int]
    format: str
    mode: str
    findings: tuple[str, ...]


def open_photo(path: str | Path, size: int | None = None, side: int | None = None) -> DecodedPhoto:
    """Decode one photo as upright 8-bit RGB on white, in sRGB, without metadata.

    `size`: the pixels that are wanted for `side` pixels of the original (its shorter side if None);
    a bigger picture is then decoded smaller, which is faster. None decodes all of it. Raises
    `BadInput`.
    """
    path, name = Path(path), printable(Path(path).name)
    container = ""
    try:
        container = _check_format(path, name)
        with _trusting_nothing(), _open_image(path, container) as image:
            kind, mode = image.format or "", image.mode
            kind = RENAMED.get(kind, kind)
            _check_size(name, image, kind)
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
    # On damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        reason = f"{container}: {_short(error)}" if container else _short(error)
        raise BadInput(
            f"{name}: is damaged or cut short ({reason}); copy it again from its source, or take it"
            " out"
        ) from error
    if kind == "TIFF":  # Pillow turns these upright itself
        full = image.size
    elif turn in TURNS:
        rgb = rgb.transpose(TURNS[turn])
        full = (full[1], full[0]) if turn >= 5 else full
    rgb.info = {}
    return DecodedPhoto(rgb, full, kind, mode, tuple(findings))


def upright(picture: Image.Image | str | Path) -> Image.Image:
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
    # What Pillow raises on missing, foreign and damaged files.
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(
            f"The picture {picture} cannot be read ({error}): make it again or restore it."
        ) from error


def crop_photo(path: str | Path, crop: Sequence[int], size: tuple[int, int]) -> Image.Image:
    """The `crop` of a photo as an RGB picture of `size` (width, height). Raises `BadInput`.

    `crop`: left, top, right, bottom in pixels of the upright photo.
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


def _check_format(path: Path, name: str) -> str:
    """ "HEIC", "AVIF", or "" for a picture of another format; BadInput for what cannot be one."""
    if not path.exists():
        raise BadInput(f"{name}: is a broken link; put the photo itself into the folder")
    if path.stat().st_size == 0:
        raise BadInput(f"{name}: is empty (0 bytes); copy it again from its source, or take it out")
    found, kind = format_of(path), path.suffix.lower()
    container = found if found in BRANDS else ""
    if container == "AVIF" and not features.check("avif"):
        raise BadInput(
            f"{name}: is an AVIF file, which this Pillow was built without; run `pip install"
            " --upgrade pillow`, or export it as JPEG"
        )
    if container == "HEIC" and not find_spec("pillow_heif"):
        raise BadInput(
            f"{name}: is a HEIC file, and the package that reads those is not installed; run `pip"
            f" install pillow-heif`, or {_EXPORT_HEIC}"
        )
    if container:
        return container
    # Camera's own formats are in TIFF's form, so that of these the name decides.
    if found in REFUSED or (kind in REFUSED and found in ("", "TIFF")):
        kind = found if found in REFUSED else kind
        raise BadInput(
            f"{name}: is a {kind[1:].upper()} file, which cannot be read here; {REFUSED[kind]}"
        )
    if not found:
        raise BadInput(
            f"{name}: is no picture although its name says so; take it out, or save the picture"
            " again as JPEG or PNG"
        )
    return ""


def format_of(path: Path) -> str:
    """What a file is by its content: a name of `DECODERS`, "HEIC", "TGA", an ending of `REFUSED`,
    or "" for what is no picture. Raises OSError.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    if container := _container(head):
        return container
    for kind, signature in SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            return kind
    named = path.suffix.lower() == ".tga"
    return "TGA" if named and re.match(TGA, head, re.DOTALL) else ""


def _container(head: bytes) -> str:
    """ "HEIC" or "AVIF" by the brands in a file's first box (ISO/IEC 14496-12), else ""."""
    if head[4:8] != b"ftyp":
        return ""
    length = int.from_bytes(head[:4], "big")
    # The major brand, its version in four bytes, and the brands that the file is compatible with.
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(length, len(head)), 4))}
    return next((container for container, ours in BRANDS.items() if brands & ours), "")


def _open_image(path: Path, container: str) -> ImageFile.ImageFile | Image.Image:
    if container == "HEIC":
        from pillow_heif import HeifImageFile  # late: a library of its own, for these files alone

        return HeifImageFile(path)
    return Image.open(path, formats=["TGA"] if format_of(path) == "TGA" else DECODERS)


def _check_size(name: str, image: Image.Image, kind: str) -> None:
    most = MOST_PIXELS_JPEG if kind == "JPEG" else MOST_PIXELS
    if image.width * image.height > most:
        raise BadInput(
            f"{name}: is {image.width} x {image.height} pixels, too many to decode safely;"
            " save a smaller copy of it"
        )
    if min(image.size) < SMALLEST:
        raise BadInput(
            f"{name}: is only {image.width} x {image.height} pixels, so it shows nothing to"
            " learn; use a larger one"
        )


@contextmanager
def _trusting_nothing() -> Iterator[None]:
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


def _short(error: Exception) -> str:
    return (
        str(error).split("\n")[0].replace("cannot identify image file", "unknown contents")
        or type(error).__name__
    )[:80]


def _metadata(image: Image.Image, kind: str) -> tuple[int, list[str]]:
    """EXIF orientation (1 to 8; a HEIC comes upright), and findings about what the file holds."""
    try:
        exif = image.getexif()
        turn, gps = exif.get(ExifTags.Base.Orientation, 1), bool(exif.get_ifd(ExifTags.IFD.GPSInfo))
    except Exception:  # damaged EXIF never makes a picture unusable
        turn, gps = 1, False
    frames, bits = getattr(image, "n_frames", 1), image.info.get("bit_depth", 8)
    findings = {
        "holds the GPS position of where it was taken; the data set leaves it out, strip it before"
        " sharing the photo": gps,
        f"has {frames} frames, of which only the {'main one' if kind == 'HEIC' else 'first'} is"
        " used; save another frame as a picture if you want that": kind != "JPEG" and frames > 1,
        f"has {bits} bits per colour and is scaled to 8; export it as 8-bit if it looks wrong": (
            kind == "HEIC" and bits > 8
        ),
    }
    return turn, [finding for finding, holds in findings.items() if holds]


def _to_rgb(image: Image.Image, shortest: int | None, findings: list[str]) -> Image.Image:
    """8-bit RGB on white from any mode; appends to `findings` what was decided."""
    if image.mode.startswith(("I", "F")):
        findings.append(
            f"has more than 8 bits per pixel (mode {image.mode}) and is scaled to 8; export it as"
            " 8-bit if it looks wrong"
        )
        image = _to_8_bits(image)
    clear = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    profile = image.info.get("icc_profile")
    if image.mode in ("P", "PA", "1") or (clear and image.mode != "RGBA"):
        image = image.convert("RGBA" if clear else "RGB")
    factor = min(image.size) // shortest if shortest else 1
    image = image.reduce(factor) if factor > 1 else image
    if clear and np.asarray(image.getchannel("A")).min() < 255:
        findings.append(
            "is partly transparent and is put on white; put it on a background of your own if white"
            " is wrong"
        )
    if clear:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK"):
        image = _to_srgb(image, profile)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of whole or real numbers, its largest possible value as 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    if image.mode.startswith("I;16"):
        top = 65535
    else:
        top = next((top for top in (1, 255, 65535) if values.max() <= top), values.max())
    return Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    # Phones save Display P3, presses their own CMYK: read as plain RGB the colours would be off.
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        to = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, own, to, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile, or one for another mode
