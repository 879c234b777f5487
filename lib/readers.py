"""Who reads an exported adapter: every key against each tool's scheme, and the file loaded back by a reader that is not ours.

The schemes are the tools' own (ComfyUI comfy/lora.py and comfy/utils.py, which Forge shares; AUTOMATIC1111 extensions-builtin/Lora;
kohya-ss sd-scripts networks/lora.py; diffusers loaders; PEFT), written down here as sets of names for one base model.
"""

import re
import warnings

import torch

from .keys import full_name, kohya_name, short_name, to_original
from .settings import BadInput

PAIR = ("lora_A.weight", "lora_B.weight")
HALVES = ("lora_down.weight", "lora_up.weight", "alpha")
# Where sd-scripts wraps layers when it loads a LoRA: in Transformer2DModel, ResnetBlock2D, Downsample2D and Upsample2D, in CLIPAttention
# and CLIPMLP. Keys of others, which a full fine-tune changes too, it passes over in silence.
WRAPPED = {"unet": r"\.(attentions|resnets|downsamplers|upsamplers)\.", "text": r"encoder\.layers\.\d+\.(self_attn|mlp)\."}
TOOLS = {"kohya": ("ComfyUI", "Forge", "WebUI", "Kohya", "diffusers"), "diffusers": ("diffusers", "ComfyUI"), "peft": ("PEFT",)}


def scheme(tool, target):
    """The set of keys that `tool` knows for a base model like `target`, a `lib.target.Target`."""
    keys, sdxl, shape = set(), target.sdxl, (target.layers, target.attended)
    for part in target.shapes:
        for name in target.layer_shapes(part) if part != "vae" else ():
            if tool == "Kohya" and not re.search(WRAPPED["unet" if part == "unet" else "text"], f".{name}"):
                continue
            names = {kohya_name(part, name, sdxl, *shape)}
            if part == "unet" and tool in ("ComfyUI", "Forge", "WebUI", "diffusers"):
                names |= {kohya_name(part, name, False), f"lora_unet_{to_original(name, *shape)}".replace(".", "_")}
            if part == "text_encoder" and tool in ("ComfyUI", "Forge"):
                names |= {kohya_name(part, name, True)}
            if part != "unet" and tool in ("ComfyUI", "Forge", "WebUI") and not re.search(WRAPPED["text"], name):
                names = set()
            if tool != "PEFT":
                keys |= {f"{n}.{half}" for n in names for half in HALVES}
            keys |= _dotted(tool, part, name)
    return keys


def _dotted(tool, part, name):
    if tool in ("diffusers", "PEFT"):
        before = f"{part}." if tool == "diffusers" else "base_model.model."
        return {f"{before}{n}.{end}" for n in {name, short_name(part, name)} for end in (*PAIR, "lora_magnitude_vector")}
    if tool in ("ComfyUI", "Forge"):  # attention of the U-Net goes by diffusers' older names there
        older = name.replace(".to_", ".processor.to_") if part == "unet" else name
        older = older.removesuffix(".0") if older.endswith(".to_out.0") else older
        return {f"{part}.{older}.{end}" for end in PAIR}
    return set()


def readers(names, form, target):
    """{tool: (keys that will load, keys that will not)} of an adapter's key names in a form, against `target`."""
    found = {}
    for tool in TOOLS[form]:
        known = scheme(tool, target)
        found[tool] = [n for n in names if n in known], [n for n in names if n not in known]
    return found


def sentences(found):
    """What `readers` found, a sentence a tool: "256 of 256 keys will load in ComfyUI", with the layers that it leaves aside."""
    for tool, (good, bad) in found.items():
        aside = dict.fromkeys(re.sub(r"\.(lora_\w+(\.weight)?|alpha)$", "", key) for key in bad)
        some = ", ".join(list(aside)[:6]) + (f" and {len(aside) - 6} more" if len(aside) > 6 else "")
        yield f"{len(good)} of {len(good) + len(bad)} keys will load in {tool}" + (f"; it leaves aside {some}" if bad else "")


def load_back(path, form, target):
    """{(part, name): (down, up, scale, DoRA's magnitude or None)} as diffusers (or PEFT) reads the file.

    It is loaded into models whose own weights are never touched. Memory that is only reserved takes no room, so this needs a base model's
    configuration and not its gigabytes.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from .base import quiet

    quiet()
    unet = hollow_part("unet", target)
    if form == "peft":
        return _peft_back(path, unet, target)
    pipe = StableDiffusionXLPipeline if target.sdxl else StableDiffusionPipeline
    tensors, alphas, metadata = pipe.lora_state_dict(str(path), unet_config=unet.config, return_lora_metadata=True)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own calls of what it deprecates
        if any(key.startswith("unet.") for key in tensors):
            pipe.load_lora_into_unet(tensors, alphas, unet, "check", metadata=metadata, low_cpu_mem_usage=True)
            found |= {("unet", name): module for name, module in _modules(unet)}
        for part in ("text_encoder", "text_encoder_2"):
            if any(key.startswith(f"{part}.") for key in tensors):
                encoder = hollow_part(part, target)
                pipe.load_lora_into_text_encoder(tensors, alphas, encoder, prefix=part, adapter_name="check", metadata=metadata)
                found |= {(part, full_name(part, name)): module for name, module in _modules(encoder)}
    return found


def _peft_back(path, unet, target):
    from peft import PeftModel

    found = {}
    for folder in (p for p in path.iterdir() if p.is_dir()):
        part = folder.name
        model = PeftModel.from_pretrained(unet if part == "unet" else hollow_part(part, target), folder, "check", low_cpu_mem_usage=True)
        for name, module in _modules(model.base_model.model):
            found[part, full_name(part, name)] = module
    return found


def _modules(model):
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "check" in module.lora_A:
            magnitude = module.lora_magnitude_vector["check"].weight.detach() if "check" in module.lora_magnitude_vector else None
            yield name, (module.lora_A["check"].weight.detach(), module.lora_B["check"].weight.detach(), module.scaling["check"], magnitude)


def hollow_part(part, target):
    """A model with its weights reserved and never written, where only an adapter's are looked at: the U-Net or a text encoder."""
    from diffusers import UNet2DConditionModel
    from transformers import AutoConfig, CLIPTextModel, CLIPTextModelWithProjection

    if part == "unet":
        target.configurations()  # of a single file there may be none
        config, kind = target.config, UNet2DConditionModel.from_config
    else:
        config = AutoConfig.from_pretrained(target.configurations() / part)
        kind = CLIPTextModelWithProjection if "CLIPTextModelWithProjection" in (config.architectures or ()) else CLIPTextModel
    with torch.device("meta"):
        model = kind(config)
    return model.half().to_empty(device="cpu")


def check_back(adapter, found, path):
    """Raise BadInput unless what a foreign reader `found` (as of `load_back`) is the adapter, layer by layer."""
    wrong = []
    for part, name, layer in adapter:
        theirs = found.pop((part, name), None)
        scale = layer.alpha / layer.rank
        if theirs is None or not (_same(theirs[0], layer.down) and _same(theirs[1], layer.up) and _same(theirs[3], layer.magnitude)
                                  and abs(theirs[2] - scale) <= 1e-6 * abs(scale)):
            wrong.append(f"{part}.{name}")
    if wrong or found:
        wrong += [".".join(name) for name in found]
        raise BadInput(f"{path} was not written: read back it differs in {len(wrong)} layers ({', '.join(wrong[:3])}); this is an error of "
                       "the export, please report it.")


def _same(theirs, ours):
    """Whether a tensor that was read back (on the meta device: never read) is ours; magnitudes are None where there is no DoRA."""
    if theirs is None or ours is None:
        return theirs is ours
    return theirs.device.type != "meta" and torch.equal(theirs.cpu().float(), ours.float())
