"""Recipes that fit a small card, and what this device can do of them.

Each trades time or precision for memory; `Settings` says what, and refuses combinations that make
no sense. Where the device or an installation cannot follow, the run falls back to the plain recipe
and says so once.
"""

from functools import cache

import torch

from lib.files.text import say

# Layers whose outputs every block reads; small, and the field leaves them unquantised.
KEPT = ("time_embedding", "add_embedding", "time_emb_proj", "conv_in", "conv_out")


def settle(settings, device):
    """The settings as this device can run them: 8-bit moments and quantised weights are tried out
    first, on one small layer.
    """
    changes = {}
    if settings.optimizer == "adamw8bit" and not works("adamw8bit", str(device)):
        changes["optimizer"] = "adamw"
    if settings.quantize != "none" and not works(settings.quantize, str(device)):
        changes["quantize"] = "none"
    return settings.replace(**changes) if changes else settings


@cache
def works(what, device):
    """Whether bitsandbytes can do "adamw8bit", "nf4" or "int8" on `device`; if not, says why, once."""
    try:
        layer = torch.nn.Linear(128, 64, device=device)
        if what == "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            optimizer = AdamW8bit(layer.parameters(), lr=1e-3)
            layer(torch.ones(2, 128, device=device)).sum().backward()
            before = layer.weight.detach().clone()
            optimizer.step()
            good = layer.weight.isfinite().all() and not torch.equal(layer.weight, before)
        else:
            x = torch.randn(4, 128, device=device, requires_grad=True)
            wanted = layer(x).detach()
            found = quantized(layer, what, torch.float32, device)(x)
            found.sum().backward()
            good = (
                (found - wanted).norm() < 0.2 * wanted.norm()
                and x.grad.isfinite().all()
                and x.grad.any()
            )
        if not good:
            raise RuntimeError("it gives wrong numbers")
    except Exception as error:  # whatever a missing library, driver or kernel raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"{what} does not work here ({reason}): going without")
        return False
    return True


def quantized(layer, kind, dtype, device):
    """A bitsandbytes layer with the weights of a torch.nn.Linear in 4 bits (NF4: Dettmers et al.
    2023, section 3) or 8, frozen.

    `dtype` is what the arithmetic runs in, `device` where the layer will be: bitsandbytes quantises
    weights on their way there.
    """
    import bitsandbytes as bnb

    shape, weight = (
        (layer.in_features, layer.out_features, layer.bias is not None),
        layer.weight.data.cpu(),
    )
    if kind == "nf4":
        new = bnb.nn.Linear4bit(*shape, compute_dtype=dtype, quant_type="nf4", device="meta")
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
        new.support_avx512bf16_for_cpu = (
            False  # else the first sample would repack the weights so that they could train no more
        )
    else:
        new = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
        new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    return new.to(device).requires_grad_(False)


def quantize(unet, kind, dtype, device):
    """Replace the linear layers of a frozen U-Net, in place, by quantised ones on `device`;
    convolutions, norms and `KEPT` stay the same.

    One at a time, and nothing here holds a layer that was replaced: a U-Net that is still on the
    CPU comes to the card quantised, and never are both copies of it there.
    """
    linear = [path for path, layer in unet.named_modules() if type(layer) is torch.nn.Linear]
    for path in (path for path in linear if not any(name in path.split(".") for name in KEPT)):
        unet.set_submodule(path, quantized(unet.get_submodule(path), kind, dtype, device))
    # PEFT looks here for which of its own layers to put beside them.
    unet.is_loaded_in_4bit, unet.is_loaded_in_8bit = kind == "nf4", kind == "int8"
