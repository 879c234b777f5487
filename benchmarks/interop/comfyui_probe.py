"""ComfyUI's own code on our files. Runs in an environment of its own, without this project:

    python comfyui_probe.py request.json

request.json: {"source": ComfyUI's folder, "checkpoint": file, "loras": {name: file}, "every": n,
"out": file for the answer}. The models are on the meta device, so that they take no memory: of a
checkpoint it is told which keys found no place and which of ComfyUI's weights found no key, of a
LoRA which keys ComfyUI leaves aside, and what it makes of every n-th layer: the change of its
weight, times a fixed vector.
"""

import re
import sys
import types
from importlib.machinery import ModuleSpec

import torch
from tool_side import answer_to, keep, listen, meta_weights, stand_in_for_torchvision

# What ComfyUI itself does not miss (comfy/sd.py, CLIP).
UNUSED = (".logit_scale", ".transformer.text_projection.weight")


def main(request):
    messages = prepare(request["source"])
    from comfyui_version import __version__
    from safetensors.torch import load_file

    weights = meta_weights(request["checkpoint"])
    model, clip = load(dict(weights))
    answer = {
        "version": __version__,
        "checkpoint": {
            "keys": len(weights),
            "left": quoted(messages, "unexpected", "left over"),
            "missing": quoted(messages, "unet missing", "clip missing", "Missing VAE"),
        },
        "loras": {},
    }
    for name, path in request["loras"].items():
        messages.clear()
        tensors = load_file(path)
        patched = apply(model, clip, tensors)
        left = [text.rsplit(": ", 1)[1] for text in messages if "key not loaded" in text]
        left += [text for text in messages if "NOT LOADED" in text]
        keep(request, name, dict(changes(patched[:: request["every"]])))
        answer["loras"][name] = {"keys": len(tensors), "left": left}
    return answer


def prepare(source, *options):
    """Let ComfyUI be imported on a processor, with `options` of its command line.

    Returns the list that its messages go to.
    """
    sys.path.insert(0, source)
    sys.argv = [sys.argv[0], "--cpu", *options]
    import comfy.options

    comfy.options.enable_args_parsing()
    # Its video and audio models ask for these when they are imported; none of them is used here.
    for name in ("torchaudio", "torchaudio.transforms", "torchaudio.functional"):
        sys.modules[name] = stub = types.ModuleType(name)
        stub.__spec__, stub.__path__ = ModuleSpec(name, None), []
    stand_in_for_torchvision()
    return listen()


def load(weights):
    """(model, clip) of a checkpoint, on the meta device, by ComfyUI's loader."""
    import comfy.model_management as management
    import comfy.sd

    meta = torch.device("meta")
    management.unet_inital_load_device = lambda *_: meta
    management.text_encoder_initial_device = lambda *_: meta
    management.load_models_gpu = lambda *_, **__: None
    with meta:
        model, clip, _, _ = comfy.sd.load_state_dict_guess_config(weights, disable_dynamic=True)
    return model, clip


def apply(model, clip, tensors):
    """[(Kohya's name or None, the weight's key, its patches, its shape)] of a LoRA's layers."""
    import comfy.lora
    import comfy.sd

    names = comfy.lora.model_lora_keys_unet(model.model, {})
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    by_key = {}
    for name, key in names.items():
        if f"{name}.lora_down.weight" in tensors:
            by_key[key] = name
    new_model, new_clip = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
    found = []
    for patcher in (new_model, new_clip.patcher):
        for key, patches in patcher.patches.items():
            shape = patcher.model_state_dict()[key].shape
            found.append((by_key.get(key), key, patches, shape))
    return found


def changes(patched):
    """(Kohya's name, change of weight that ComfyUI computes) of each layer that has such a name."""
    import comfy.lora

    for name, key, patches, shape in patched:
        if name is not None:
            yield name, comfy.lora.calculate_weight(patches, torch.zeros(shape), key)


def quoted(messages, *words):
    """The keys that messages with one of the words name, but for what no Stable Diffusion uses."""
    texts = [text for text in messages if any(word in text for word in words)]
    keys = [key for text in texts for key in re.findall("'([^']+)'", text)]
    return [key for key in keys if not key.endswith(UNUSED)]


if __name__ == "__main__":
    answer_to(main)
