"""LPIPS (Zhang et al. 2018, arXiv 1801.03924), the distance in DreamBooth's DIV, where it can be had.

It takes the packages lpips and torchvision (on Colab: `pip install lpips`) and AlexNet's weights. Both networks' weights come as pickles
only; torch reads them with `weights_only`, so that no code in them runs.
"""

import os
from pathlib import Path

import numpy as np
import torch

from .decode import upright

MEGABYTES = 233  # AlexNet, all of it; LPIPS needs its convolutions


def load_lpips(device="cpu"):
    """(function, "") or (None, why not): the function gives the mean LPIPS of all pairs of different pictures, N >= 2 of one size.

    AlexNet's weights are taken from torch's own cache; only WORKBENCH_DOWNLOAD=1 lets them be downloaded into it, and says so first.
    """
    try:
        import lpips
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError) as error:  # not installed; or a torchvision for another torch
        return None, f"the packages lpips and torchvision cannot be imported ({str(error).splitlines()[0]})"
    url = AlexNet_Weights.DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.is_file():
        if os.environ.get("WORKBENCH_DOWNLOAD") != "1":
            return None, f"{file} is missing: WORKBENCH_DOWNLOAD=1 fetches it, or copy it there from {url}"
        print(f"Downloading AlexNet for LPIPS, {MEGABYTES} MB, licence BSD-3-Clause, from {url}")
    try:
        model = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
    except (OSError, RuntimeError) as error:  # no network, no room, a file cut short
        return None, f"AlexNet cannot be loaded from {file} ({str(error).splitlines()[0][:120]}): remove it and try again"

    def mean_distance(pictures):
        x = torch.stack([torch.from_numpy(np.array(upright(p), np.float32)).permute(2, 0, 1) / 127.5 - 1 for p in pictures]).to(device)
        one, other = torch.triu_indices(len(x), len(x), 1)
        with torch.no_grad():
            return float(model(x[one], x[other]).mean())

    return mean_distance, ""
