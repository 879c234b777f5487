"""A stand-in for the six parts of torchvision.transforms that diffusers' DreamBooth scripts call,
for machines without torchvision.

What it costs or gains them: `Resize` is PIL's bilinear `Image.resize` and `ToTensor` one copy
through numpy, as torchvision itself treats PIL images, so a step should take as long. Importing
torchvision takes time, which their cold start is spared here.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import torch
from PIL import Image


class InterpolationMode:
    """Names of PIL's filters."""

    NEAREST, BILINEAR, BICUBIC, LANCZOS = (
        Image.Resampling[name] for name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")
    )


class Compose:
    """One transform after another."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    """The shorter side of a PIL image becomes `size` pixels."""

    def __init__(self, size, interpolation=InterpolationMode.BILINEAR):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        short = min(image.size)
        size = tuple(
            self.size if side == short else int(self.size * side / short) for side in image.size
        )
        return image if size == image.size else image.resize(size, self.interpolation)


class CenterCrop:
    """The middle `size` x `size` pixels of a PIL image."""

    def __init__(self, size):
        self.size = size

    def corner(self, room):
        """Where the crop begins, for `room` pixels to spare."""
        return room // 2

    def __call__(self, image):
        left, top = (self.corner(side - self.size) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class RandomCrop(CenterCrop):
    """Any `size` x `size` pixels of a PIL image."""

    def corner(self, room):
        """Where the crop begins, for `room` pixels to spare."""
        return int(torch.randint(0, room + 1, (1,))) if room else 0


class ToTensor:
    """A PIL image as [channels, height, width] in 0 to 1."""

    def __call__(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    """(values - mean) / std for each channel."""

    def __init__(self, mean, std):
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, tensor):
        return (tensor - self.mean) / self.std


def install():
    """Let `from torchvision import transforms` find this module where there is no torchvision. True
    if that was needed.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        from transformers.utils import is_torchvision_available

        # it remembers "no", and looks for nothing here that the scripts do not call
        is_torchvision_available()
        package = ModuleType("torchvision")
        package.__spec__, package.__path__, package.transforms = (
            ModuleSpec("torchvision", None),
            [],
            sys.modules[__name__],
        )
        sys.modules |= {"torchvision": package, "torchvision.transforms": package.transforms}
        return True
    return False
