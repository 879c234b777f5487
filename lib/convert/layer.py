"""One layer's update, and how it is cut out of a change of weights.

    layer, share = low_rank(change, rank=16)
    layers, told = cut_products(tensors_of_a_lokr, Cut(16, shapes), "theirs.safetensors")

LyCORIS' LoHa and LoKr are products that are no two halves of a LoRA: a layer's change is made whole
and cut by SVD, and what is lost is told (Yeh et al. 2023, arXiv 2309.14859, sections 3.2 and 3.3;
lycoris/functional/loha.py and lokr.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lib.files import BadInput
from lib.files.text import first_line, progress_lines

Tensors = dict[str, torch.Tensor]

# What a product's tensors are called behind a layer's name.
PRODUCT_ROLES = {
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ),
}

# Of the randomised SVD: directions beyond the rank, and power iterations. Enough for a spectrum
# that falls slowly.
OVERSAMPLE = 10
POWER_ITERATIONS = 3


@dataclass(frozen=True)
class Layer:
    """One layer's update.

    `down` [r, in, ...kernel], `up` [out, r, ...1], `alpha`; `magnitude` [out] or [1, out, 1, 1] if
    it is DoRA's.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, weight: float = 1.0) -> torch.Tensor:
        """`weight` times the update as a matrix in float32, [out, in, ...kernel].

        DoRA's magnitude is not in it.
        """
        scale = weight * self.alpha / self.rank
        flat = self.up.flatten(1).float() @ self.down.flatten(1).float() * scale
        return flat.reshape(self.up.shape[0], *self.down.shape[1:])


def low_rank(change: torch.Tensor, rank: int, exact: bool | None = None) -> tuple[Layer, float]:
    """A change of weights [out, in, ...kernel] cut to `rank`, and the share of S^2 that is left.

    Alpha is `rank`. The singular values go half into `up` and half into `down`, so that both fit
    into fp16. `exact`: None chooses by size.
    """
    matrix = change.float().flatten(1)
    full, total = min(matrix.shape), matrix.square().sum().item()
    size = min(rank, full)
    if exact or exact is None and full <= 4 * (size + OVERSAMPLE):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, s, vh = _randomised_svd(matrix, min(full, size + OVERSAMPLE))
    u, s, vh = u[:, :size], s[:size], vh[:size]
    # Scaled to alpha = rank for layers that are smaller than it too: one alpha for the file, which
    # every reader gets right.
    root = (s * size / rank).sqrt()
    down = (root[:, None] * vh).reshape(size, *change.shape[1:])
    up = (u * root).reshape(change.shape[0], size, *[1] * (change.ndim - 2))
    share = s.square().sum().item() / total if total else 1.0
    layer = Layer(down.half().contiguous(), up.half().contiguous(), float(rank))
    return layer, min(share, 1.0)


def _randomised_svd(
    matrix: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first `size` singular triplets, nearly; the same every time.

    A random sketch of the range, sharpened by power iterations.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], size, generator=generator))[0]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, vh


@dataclass(frozen=True)
class Cut:
    """What LyCORIS' products are cut to: the `rank`, for a base's layers of these `shapes`.

    shapes: {(part, layer name): (out, in, ...kernel)}.
    """

    rank: int
    shapes: Mapping[tuple[str, str], tuple[int, ...]]


def product_kind(roles: Mapping[str, object]) -> str | None:
    """The kind of product ("LoHa", "LoKr") that a layer's tensors are, or None for a LoRA's."""
    kinds = (kind for kind, known in PRODUCT_ROLES.items() if set(known) & set(roles))
    return next(kinds, None)


def cut_products(
    found: Mapping[tuple[str, str], Tensors], cut: Cut, source: object
) -> tuple[dict[tuple[str, str], Layer], str]:
    """({(part, name): Layer of at most `cut.rank`}, a sentence on what is lost) of products.

    found: {(part, name): {role: tensor}}. Raises BadInput for layers that the base lacks, for parts
    of a product that are missing or do not fit, and for weight decomposition (DoRA).
    """
    layers, whole, kept, shares = {}, 0.0, 0.0, {}
    progress = progress_lines(f"cutting {source} to rank {cut.rank}")
    for done, (where, roles) in enumerate(found.items(), 1):
        change = _change(roles, cut.shapes.get(where), ".".join(where), source)
        layers[where], share = low_rank(change, cut.rank)
        size = change.square().sum().item()
        whole, kept = whole + size, kept + share * size
        shares[".".join(where)] = share
        progress(done, len(found))
    least = min(shares, key=lambda name: shares[name])
    kinds = " and ".join(sorted({str(product_kind(roles)) for roles in found.values()}))
    total = kept / whole if whole else 1.0
    return layers, (
        f"{kinds} cut by SVD to a LoRA of rank {cut.rank}: {total:.4f} of the change kept (sum of"
        f" S^2), least {shares[least]:.4f} in {least}"
    )


def _change(
    roles: Tensors, shape: tuple[int, ...] | None, where: str, source: object
) -> torch.Tensor:
    """The change of a layer's weight, of its `shape`, by a product's tensors."""
    if shape is None:
        raise BadInput(
            f"{source} has a layer {where} that the base has not: name its own base with --base."
        )
    kind = product_kind(roles) or ""
    if odd := sorted(set(roles) - {*PRODUCT_ROLES[kind], "alpha", "dora_scale"}):
        raise BadInput(
            f"{source} is damaged: layer {where} is a {kind} and holds {', '.join(odd)} too; get"
            " the file again."
        )
    if "dora_scale" in roles:
        raise BadInput(
            f"{source} is a {kind} with weight decomposition (DoRA, at {where}),"
            " which a cut would not keep: merge it with the tool that made it, then extract a LoRA."
        )
    try:
        make = _hadamard if kind == "LoHa" else _kronecker
        return make(roles).reshape(shape)
    except (KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise BadInput(
            f"{source} is damaged: layer {where} cannot be put together ({reason}); get the file"
            " again, or name its own base with --base."
        ) from None


def _hadamard(roles: Tensors) -> torch.Tensor:
    """(alpha / rank) W1 * W2, number by number, each W of two halves or of Tucker's three."""
    product = _factor(roles, "hada_w1", "hada_t1") * _factor(roles, "hada_w2", "hada_t2")
    return product * _scale(roles, len(roles["hada_w1_b"]))


def _kronecker(roles: Tensors) -> torch.Tensor:
    """(alpha / rank) W1 x W2, each W whole or of factors; of two whole ones alpha says nothing."""
    one, two = _factor(roles, "lokr_w1", ""), _factor(roles, "lokr_w2", "lokr_t2")
    one = one.reshape(*one.shape, *[1] * (two.ndim - one.ndim))
    halves = [roles[key] for key in ("lokr_w2_b", "lokr_w1_b") if key in roles]
    return torch.kron(one, two.contiguous()) * (_scale(roles, len(halves[0])) if halves else 1.0)


def _factor(roles: Tensors, name: str, core: str) -> torch.Tensor:
    """A product's factor: whole, A B, or with a kernel core[i, j, ...] A[i, p] B[j, r]."""
    if name in roles:
        return roles[name].float()
    one, two = roles[f"{name}_a"].float(), roles[f"{name}_b"].float()
    if core in roles:
        return torch.einsum("ij...,ip,jr->pr...", roles[core].float(), one, two)
    return one @ two.flatten(1)


def _scale(roles: Tensors, rank: int) -> float:
    """alpha / rank, or 1 where a file has no alpha."""
    return float(roles["alpha"]) / rank if "alpha" in roles else 1.0
