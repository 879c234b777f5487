"""8-bit moments and frozen layers in 4 or 8 bits: what this device can do of them, and doing it.

`Settings` says what each trades for memory, and refuses combinations that make no sense. Where the
device or an installation cannot follow, the run falls back to the plain recipe and says so once.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from lib.config import Settings
from lib.files import say
from lib.files.text import first_line

# Layers whose outputs every block reads; small, and the field leaves them unquantised.
UNQUANTIZED = ("time_embedding", "add_embedding", "time_emb_proj", "conv_in", "conv_out")


def supported_settings(settings: Settings, device: torch.device) -> Settings:
    """The settings as this device can run them.

    8-bit moments and quantised weights are tried out first, on one small layer.
    """
    changes = {}
    if settings.optimizer == "adamw8bit" and not device_supports("adamw8bit", str(device)):
        changes["optimizer"] = "adamw"
    if settings.quantize != "none" and not device_supports(settings.quantize, str(device)):
        changes["quantize"] = "none"
    return settings.replace(**changes) if changes else settings


@cache
def device_supports(what: str, device: str) -> bool:
    """Whether bitsandbytes can do "adamw8bit", "nf4" or "int8" on `device`.

    If not, it says why, once.
    """
    try:
        good = _moves_weights(device) if what == "adamw8bit" else _is_close(what, device)
        if not good:
            raise RuntimeError("it gives wrong numbers")
    except Exception as error:  # whatever a missing library, driver or kernel raises
        reason = first_line(error)
        say(f"{what} does not work here ({reason}): going without")
        return False
    return True


def _moves_weights(device: str) -> bool:
    """Whether a step with 8-bit moments changes a layer, to finite numbers."""
    from bitsandbytes.optim import AdamW8bit

    layer = torch.nn.Linear(128, 64, device=device)
    optimizer = AdamW8bit(layer.parameters(), lr=1e-3)
    layer(torch.ones(2, 128, device=device)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    return bool(layer.weight.isfinite().all()) and not torch.equal(layer.weight, before)


def _is_close(kind: str, device: str) -> bool:
    """Whether a layer gives nearly the same after it was quantised, and a gradient."""
    layer = torch.nn.Linear(128, 64, device=device)
    x: Any = torch.randn(4, 128, device=device, requires_grad=True)
    wanted = layer(x).detach()
    found = quantize_layer(layer, kind, torch.float32, device)(x)
    found.sum().backward()
    close = (found - wanted).norm() < 0.2 * wanted.norm()
    return bool(close and x.grad.isfinite().all() and x.grad.any())


def quantize_layer(
    layer: torch.nn.Linear, kind: str, dtype: torch.dtype, device: torch.device | str
) -> torch.nn.Module:
    """A frozen bitsandbytes layer with the weights of `layer` in 4 or 8 bits.

    - kind: "nf4" (Dettmers et al. 2023, arXiv 2305.14314, section 3) or "int8".
    - dtype: what the arithmetic runs in.
    - device: where the layer will be; bitsandbytes quantises weights on their way there.
    """
    import bitsandbytes as bnb

    params: Any = bnb.nn.Params4bit if kind == "nf4" else bnb.nn.Int8Params
    shape = layer.in_features, layer.out_features, layer.bias is not None
    weight = layer.weight.data.cpu()
    if kind == "nf4":
        new = bnb.nn.Linear4bit(*shape, compute_dtype=dtype, quant_type="nf4", device="meta")
        new.weight = params(weight, requires_grad=False, quant_type="nf4", module=new)
        # else the first sample would repack the weights so that they could train no more
        new.support_avx512bf16_for_cpu = False
    else:
        new = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
        new.weight = params(weight, requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    return new.to(device).requires_grad_(False)


def quantize_linear_layers(
    denoiser: Any,
    kind: str,
    dtype: torch.dtype,
    device: torch.device,
    quantize: Callable[..., torch.nn.Module] = quantize_layer,
) -> None:
    """Replace the linear layers of a frozen denoiser, in place, by quantised ones on `device`.

    Convolutions, norms and `UNQUANTIZED` stay the same. One layer at a time, and nothing here holds
    a layer that was replaced: a denoiser that is still on the CPU comes to the card quantised, and
    never are both copies of it there.
    """
    linear = [path for path, layer in denoiser.named_modules() if type(layer) is torch.nn.Linear]
    for path in linear:
        if not any(name in path.split(".") for name in UNQUANTIZED):
            layer = quantize(denoiser.get_submodule(path), kind, dtype, device)
            denoiser.set_submodule(path, layer)
    # PEFT looks here for which of its own layers to put beside them.
    denoiser.is_loaded_in_4bit = kind == "nf4"
    denoiser.is_loaded_in_8bit = kind == "int8"
