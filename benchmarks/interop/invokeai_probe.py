"""InvokeAI's own code on our files. Runs in an environment of its own, without this project:

    python invokeai_probe.py request.json

The request and the answer are those of comfyui_probe.py, and {"base": the checkpoint as a diffusers
folder} comes with it. InvokeAI first tells what a file is, and keeps what it does not know out; its
answer to that is given in its own words. A checkpoint is then read by diffusers' loader, which is
no code of InvokeAI's and is not run here. The models are on the meta device.
"""

import importlib.abc
import json
import logging
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch
from tool_side import answer_to, keep

# What InvokeAI imports beside that is not needed for what is asked here.
NOT_HERE = (
    "accelerate bitsandbytes compel cv2 dynamicprompts fastapi fastapi_events imageio"
    " mediapipe mistral_common onnx onnxruntime patchmatch pywt spandrel torchvision"
).split()

# The start of a LoRA's keys for each part of a pipeline (its invocations have these words).
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
PREFIXES_OF_TWO = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
}


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Packages that are not here, for modules that name them when they are imported.

    What is asked of one is a class of that name; none of them is called here.
    """

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        def stand_in(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {"__class_getitem__": classmethod(lambda found, _: found)})

        module.__getattr__ = stand_in


def main(request):
    import diffusers  # noqa: F401 - it looks for some of these, and does without
    import transformers  # noqa: F401

    sys.meta_path.append(StandIn(NOT_HERE))
    answer = {"told": {"checkpoint": told(request["checkpoint"])[0]}, "loras": {}}
    parts = models(request["base"])
    for name, path in request["loras"].items():
        answer["told"][name], config = told(path)
        answer["loras"][name] = read(request, name, path, config, parts)
    return answer


def told(path):
    """(what InvokeAI says that a file is, its configuration of it)."""
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    # Without a hash of its own it reads all bytes for one.
    config = ModelConfigFactory.from_model_on_disk(path, {"hash": "not asked for"}).config
    words = (config.base.value, config.type.value, config.format.value)
    return ", ".join(words), config


def models(folder):
    """{part: its model on the meta device, as InvokeAI's loader has it from diffusers}."""
    import diffusers
    import transformers

    found = {}
    with torch.device("meta"):
        config = diffusers.UNet2DConditionModel.load_config(folder, subfolder="unet")
        found["unet"] = diffusers.UNet2DConditionModel.from_config(config)
        for part, kind in encoders(folder).items():
            config = transformers.CLIPTextConfig.from_pretrained(folder, subfolder=part)
            found[part] = getattr(transformers, kind)(config)
    return found


def encoders(folder):
    """{text encoder of a folder: its class, as its own configuration says}."""
    paths = sorted(Path(folder).glob("text_encoder*/config.json"))
    return {path.parent.name: json.loads(path.read_text())["architectures"][0] for path in paths}


def read(request, name, path, config, parts):
    """What InvokeAI takes of a LoRA: it loads the file, and puts its layers beside the models'."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        keys = sorted(file.keys())
    try:
        patch = loaded(path, config)
    except Exception as error:  # whatever its loader stops at, is its answer
        keep(request, name, {})
        return {"keys": len(keys), "left": keys, "refused": f"{type(error).__name__}: {error}"}
    placed = apply(patch, parts)
    of = {key: key.partition(".")[0] for key in keys}
    names = stability_names(of.values(), config)
    taken = {layer for layer, _, _ in placed}
    left = [key for key in keys if names[of[key]] not in taken]
    back = {theirs: ours for ours, theirs in names.items()}
    some = placed[:: request["every"]]
    keep(request, name, {back[layer]: change(each, module) for layer, each, module in some})
    return {"keys": len(keys), "left": left}


def loaded(path, config):
    """The layers of a LoRA by InvokeAI's loader."""
    from invokeai.backend.model_manager.load.model_loaders.lora import LoRALoader

    loader = object.__new__(LoRALoader)  # its cache and its folders are not asked
    loader._model_base, loader._torch_dtype = config.base, torch.float
    loader._logger = logging.getLogger("invokeai")
    return loader._load_model(
        types.SimpleNamespace(path=path, format=config.format, base=config.base)
    )


def apply(patch, parts):
    """[(layer's name, its patch, the module that InvokeAI found for it)]."""
    from invokeai.backend.patches.layer_patcher import LayerPatcher

    placed, names = [], {id(layer): name for name, layer in patch.layers.items()}

    def note(module_to_patch, patch, **_):
        placed.append((names[id(patch)], patch, module_to_patch))

    LayerPatcher._apply_model_layer_patch = staticmethod(note)
    prefixes = PREFIXES_OF_TWO if "text_encoder_2" in parts else PREFIXES
    for part, prefix in prefixes.items():
        LayerPatcher.apply_smart_model_patch(
            model=parts[part],
            prefix=prefix,
            patch=patch,
            patch_weight=1.0,
            original_weights=None,
            original_modules={},
            dtype=torch.float,
            force_direct_patching=True,
            force_sidecar_patching=False,
        )
    return placed


def stability_names(layers, config):
    """{layer's name in the file: its name in InvokeAI, which renames SDXL's}."""
    from invokeai.backend.patches.lora_conversions import sdxl_lora_conversion_utils as sdxl

    if config.base.value != "sdxl":
        return {layer: layer for layer in layers}
    pairs = sdxl.convert_sdxl_keys_to_diffusers_format({layer: layer for layer in layers})
    return {ours: theirs for theirs, ours in pairs.items()}


def change(patch, module):
    """What InvokeAI adds to the layer's weight."""
    zeros = {name: torch.zeros(weight.shape) for name, weight in module.named_parameters()}
    return patch.get_parameters(zeros, weight=1.0)["weight"]


if __name__ == "__main__":
    answer_to(main)
