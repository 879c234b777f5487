"""Extract a LoRA from a tuned model: the best low-rank update of each layer, by truncated SVD
(Eckart and Young 1936).

    adapter, kept = extract("runs/course/dreambooth", rank=16)      # kept.of_layers: share of the sum of S^2, what was kept of the change

The difference of each layer's weights, a convolution's as a matrix [out, in x kernel], is cut to
its first directions. Large layers use a randomised SVD (Halko, Martinsson and Tropp 2011, arXiv
0909.4061, algorithms 4.4 and 5.1), which is checked against the exact one in the tests. What a LoRA
cannot hold (norms, biases, embeddings) is left out, and said. Layers outside of blocks, which
Kohya's own tools pass over, are kept: 0.8 % of the change on the pocket base, and without them
pictures at rank 64 are three times as far from the model's.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lib.convert.adapter import Adapter, Layer
from lib.convert.exporting import header_texts, run_facts
from lib.files.errors import BadInput
from lib.models.base_weights import read_target
from lib.models.compatibility import check_base

OVERSAMPLE, POWERS = (
    10,
    3,
)  # directions beyond the rank, and power iterations: enough for a spectrum that falls slowly


@dataclass(frozen=True)
class RetainedEnergy:
    """How much of the change is in the adapter, as shares of the sum of S^2 (squared Frobenius
    norm).

    of_layers: of the change of the layers that a LoRA can sit beside; of_all: of the change of
    every weight; layers: name -> share.
    """

    of_layers: float
    of_all: float
    layers: dict


def extract(run, rank=16, base=None, title=None, progress=None, other_base=False):
    """(the `Adapter` of `rank`, alpha the same, and what it `RetainedEnergy`) of a DreamBooth run's tuned
    parts against its base.

    A layer smaller than `rank` keeps all that it has. `progress(done, total)` is called after each
    layer. Raises BadInput if the run has no tuned parts, or they do not fit the base, or nothing
    was changed, and, unless `other_base`, if it was trained on another base.
    """
    if not 1 <= rank <= 1024:
        raise BadInput(f"The rank is {rank}, outside 1 to 1024: choose one in that range.")
    known = run_facts(run)
    base_name = base or known.get("settings", {}).get("base", "pocket")
    tuned, plain = read_target(base_name, run), read_target(base_name)
    if not tuned.tuned:
        raise BadInput(f"{run} has no tuned weights (no folder unet): name a DreamBooth run.")
    if not other_base:
        check_base(run, plain)
    layers, shares, kept, in_layers, in_all = {}, {}, 0.0, 0.0, 0.0
    names = [(part, name) for part in tuned.tuned for name in tuned.shapes[part]]
    for done, (part, name) in enumerate(names, 1):
        change = tuned.read(part, name).float() - plain.read(part, name).float()
        energy, layer_name = change.square().sum().item(), name.removesuffix(".weight")
        in_all += energy
        if name.endswith(".weight") and layer_name in tuned.layer_shapes(part):
            layer, share = low_rank(change, rank)
            in_layers, kept = in_layers + energy, kept + share * energy
            layers.setdefault(part, {})[layer_name], shares[f"{part}.{layer_name}"] = layer, share
        if progress:
            progress(done, len(names))
    if not in_layers:
        raise BadInput(
            f"{run} has the weights of '{base_name}' unchanged: there is nothing to extract; check"
            " both names."
        )
    metadata = header_texts(
        plain, known, title or f"{Path(run).name} rank {rank}", adapter := Adapter(layers)
    )
    metadata = {key: value for key, value in metadata.items() if not key.startswith("ss_network_")}
    metadata |= {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_training_comment": (
            f"extracted by SVD from a full fine-tune; {kept / in_layers:.4f} of the layers' sum of"
            " S^2 kept"
        ),
    }
    return Adapter(adapter.layers, metadata, str(run)), RetainedEnergy(
        kept / in_layers, kept / in_all, shares
    )


def low_rank(change, rank, exact=None, dtype=torch.float16):
    """(`Layer`, share of the sum of S^2 kept) of a change of weights [out, in, ...kernel], cut to
    `rank`; alpha is `rank`.

    The singular values go half into `up` and half into `down`, so that both fit into fp16. `exact`:
    None chooses by size.
    """
    matrix = change.float().flatten(1)
    full, total = min(matrix.shape), matrix.square().sum().item()
    kept = min(rank, full)
    if exact or exact is None and full <= 4 * (kept + OVERSAMPLE):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, s, vh = _randomised(matrix, min(full, kept + OVERSAMPLE))
    u, s, vh = u[:, :kept], s[:kept], vh[:kept]
    # Scaled to alpha = rank for layers that are smaller than it too: one alpha for the file, which
    # every reader gets right.
    root = (s * kept / rank).sqrt()
    down = (root[:, None] * vh).reshape(kept, *change.shape[1:])
    up = (u * root).reshape(change.shape[0], kept, *[1] * (change.ndim - 2))
    share = s.square().sum().item() / total if total else 1.0
    return Layer(down.to(dtype).contiguous(), up.to(dtype).contiguous(), float(rank)), min(
        share, 1.0
    )


def _randomised(matrix, size):
    """The first `size` singular triplets, nearly: a random sketch of the range, sharpened by power
    iterations; the same every time.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], size, generator=generator))[0]
    for _ in range(POWERS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, vh


def spectrum(run, base=None):
    """Squared singular values of every layer's change, (largest first) per layer: {"part.name": 1-D
    tensor}. For charts of kept energy.
    """
    known = run_facts(run)
    base_name = base or known.get("settings", {}).get("base", "pocket")
    tuned, plain = read_target(base_name, run), read_target(base_name)
    return {
        f"{part}.{name}": (
            torch.linalg.svdvals(
                (
                    tuned.read(part, f"{name}.weight").float()
                    - plain.read(part, f"{name}.weight").float()
                ).flatten(1)
            ).square()
        )
        for part in tuned.tuned
        for name in tuned.layer_shapes(part)
    }


def energy_by_rank(spectra, ranks):
    """{rank: share of the sum of S^2 that the first `rank` directions of every layer hold} from
    `spectrum`'s result.
    """
    total = sum(s.sum().item() for s in spectra.values())
    return {rank: sum(s[:rank].sum().item() for s in spectra.values()) / total for rank in ranks}
