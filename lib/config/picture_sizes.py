"""Sizes for pictures that are not square: about the square's pixels, in the aspects of diffusers'
own tables, from 1 : 4 to 4 : 1.

    bucket((3024, 4032), 512)       # -> (448, 576), width and height

SDXL was trained on such sizes (Podell et al. 2023, arXiv 2307.01952, appendix I); each batch holds
pictures of one.
"""

from functools import cache

ASPECTS = ("square", "photo")  # a picture's aspect: cut to a square, or the photo's own


@cache
def buckets(side: int) -> dict[float, tuple[int, int]]:
    """{height / width: (height, width)} of sizes of about side x side pixels, multiples of 8."""
    # Late: importing diffusers takes seconds.
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN

    found = {}
    for height, width in ASPECT_RATIO_1024_BIN.values():
        height, width = (8 * round(pixels * side / 1024 / 8) for pixels in (height, width))
        found[height / width] = (height, width)
    return found


def bucket(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The (width, height) nearest in aspect to a picture's `size` (width, height).

    (side, side) for a square.
    """
    width, height = size
    if width == height:
        return side, side
    from diffusers.image_processor import PixArtImageProcessor  # late, as above

    height, width = PixArtImageProcessor.classify_height_width_bin(height, width, buckets(side))
    return width, height


def trimmed(crop: list[int], side: int) -> list[int]:
    """`crop` [left, top, right, bottom], cut evenly on two sides to the aspect of its bucket."""
    left, top, right, bottom = crop
    width, height = bucket((right - left, bottom - top), side)
    new_width = min(right - left, round((bottom - top) * width / height))
    new_height = min(bottom - top, round((right - left) * height / width))
    left += (right - left - new_width) // 2
    top += (bottom - top - new_height) // 2
    return [left, top, left + new_width, top + new_height]
