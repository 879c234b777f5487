"""Made-up photos for tests of data sets: sharp, each of its own, none like another."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lib.files.errors import BadInput


def picture(seed, size=(200, 200), subject=None):
    """A sharp picture of its own: a background of random coloured cells, rectangles and ellipses;
    `subject` fixes what is in the middle.
    """
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for i in range(25):
        x, y, w, h = rng.uniform(0, 1, 4) * [*size, size[0] / 4, size[1] / 4]
        (draw.rectangle if i % 2 else draw.ellipse)(
            [x, y, x + w, y + h], fill=tuple(rng.integers(0, 256, 3).tolist())
        )
    if subject is not None:
        w, h = size
        image.paste(picture(subject, (w // 3, h // 3)), (w // 3, h // 3))
    return image


def refusal(function, *arguments, **named):
    """The one sentence with which a call is refused."""
    with pytest.raises(BadInput) as caught:
        function(*arguments, **named)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and 20 < len(text) < 600
    return text
