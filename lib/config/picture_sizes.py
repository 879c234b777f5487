"""Sizes for pictures that are not square: about the square's pixels, in the aspects of diffusers'
own tables, from 1 : 4 to 4 : 1.

    bucket((3024, 4032), 512)       # -> (448, 576), width and height

SDXL was trained on such sizes (Podell et al. 2023, arXiv 2307.01952, appendix I); each batch holds
pictures of one.
"""

from functools import cache

ASPECTS = ("square", "photo")  # a picture's aspect: cut to a square, or the photo's own


@cache
def buckets(side):
    """{height / width: (height, width)} of the sizes that have about side x side pixels, multiples
    of 8.
    """
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN

    sizes = [
        tuple(8 * round(pixels * side / 1024 / 8) for pixels in size)
        for size in ASPECT_RATIO_1024_BIN.values()
    ]
    return {height / width: (height, width) for height, width in sizes}


def bucket(size, side):
    """The (width, height) nearest in aspect to a picture's `size` (width, height); (side, side) for
    a square.
    """
    width, height = size
    if width == height:
        return side, side
    from diffusers.image_processor import PixArtImageProcessor

    return PixArtImageProcessor.classify_height_width_bin(height, width, buckets(side))[::-1]


def trimmed(crop, side):
    """`crop` [left, top, right, bottom], cut evenly on two sides to the aspect of its bucket."""
    left, top, right, bottom = crop
    width, height = bucket((right - left, bottom - top), side)
    wide, high = (
        min(right - left, round((bottom - top) * width / height)),
        min(bottom - top, round((right - left) * height / width)),
    )
    left, top = left + (right - left - wide) // 2, top + (bottom - top - high) // 2
    return [left, top, left + wide, top + high]
