"""Forge's own code on our files. Runs in an environment of its own, without this project:

    python forge_probe.py request.json

The request and the answer are those of comfyui_probe.py; with it comes {"guess": the folder of
huggingface_guess}, which Forge clones when it first starts. The models are on the meta device.
"""

import contextlib
import io
import re
import sys
import types

import torch
from tool_side import answer_to, keep, meta_weights, stand_in_for_torchvision


def main(request):
    loader, networks = prepare(request)
    from safetensors.torch import load_file

    weights = meta_weights(request["checkpoint"])
    engine, left, said = load(loader, dict(weights), request["checkpoint"])
    answer = {
        "checkpoint": {
            "keys": len(weights),
            "left": left + quoted(said, "Unexpected"),
            "missing": quoted(said, "Missing"),
        },
        "loras": {},
    }
    for name, path in request["loras"].items():
        tensors = load_file(path)
        patched, left = apply(networks, engine, tensors)
        keep(request, name, dict(changes(patched[:: request["every"]])))
        answer["loras"][name] = {"keys": len(tensors), "left": left}
    return answer


def prepare(request):
    """(Forge's loader, its LoRA reader), imported without its web page."""
    stand_in_for_torchvision()
    source = request["source"]
    sys.argv = [sys.argv[0], "--always-cpu"]
    parts = ("", "/packages_3rdparty", "/extensions-builtin/sd_forge_lora")
    sys.path[:0] = [*(source + part for part in parts), request["guess"]]
    modules = sys.modules["modules"] = types.ModuleType("modules")
    for name in ("shared", "sd_models", "errors", "scripts", "cache", "hashes"):
        module = sys.modules[f"modules.{name}"] = types.ModuleType(f"modules.{name}")
        setattr(modules, name, module)
    shared = modules.shared
    shared.opts = types.SimpleNamespace(emphasis="Original")
    shared.cmd_opts = types.SimpleNamespace(lora_dir=f"{request['out']}.empty")
    shared.walk_files = lambda *_, **__: []
    from backend import loader, memory_management

    meta = torch.device("meta")
    memory_management.cpu = meta
    for name in dir(memory_management):
        if name.endswith("_device") and name != "cast_to_device":
            setattr(memory_management, name, lambda *_, **__: meta)
    memory_management.cast_to_device = lambda tensor, device, dtype: tensor.to(dtype)
    import networks

    return loader, networks


def load(loader, weights, path):
    """(its engine, the checkpoint's keys that no part took, what was printed)."""
    loader.load_torch_file = lambda _: weights
    asked, rest = loader.try_filter_state_dict, {}

    def filtered(tensors, prefixes):
        rest["of"] = tensors
        return asked(tensors, prefixes)

    made = loader.load_huggingface_component

    def component(*about):
        # What has no weights, such as a scheduler, reads its own numbers when it is made.
        with torch.device("cpu" if about[-1] is None else "meta"):
            return made(*about)

    loader.try_filter_state_dict, loader.load_huggingface_component = filtered, component
    said = io.StringIO()
    with contextlib.redirect_stdout(said), torch.device("meta"):
        engine = loader.forge_loader(path)
    return engine, sorted(rest["of"]), said.getvalue()


def apply(networks, engine, tensors):
    """([(Kohya's name or None, the weight's key, its patch, its shape)], the keys left aside)."""
    from backend.patcher.lora import load_lora, model_lora_keys_clip, model_lora_keys_unet

    objects, found, left = engine.forge_objects, [], tensors
    parts = [(objects.unet.model, model_lora_keys_unet)]
    parts += [(objects.clip.cond_stage_model, model_lora_keys_clip)]
    for model, keys in parts:
        names = keys(model, {})
        patches, left = load_lora(left, names)
        by_key = {key: name for name, key in names.items() if f"{name}.lora_down.weight" in tensors}
        shapes = {key: weight.shape for key, weight in model.state_dict().items()}
        found += [(by_key.get(key), key, patch, shapes) for key, patch in patches.items()]
    return found, sorted(left)


def changes(patched):
    """(Kohya's name, change of weight that Forge computes) of each layer that has such a name."""
    from backend.patcher.lora import merge_lora_to_weight

    for name, key, patch, shapes in patched:
        if name is not None:
            whole, part = (key, None) if isinstance(key, str) else (key[0], key[1])
            shape = list(shapes[whole])
            if part is not None:
                shape[part[0]] = part[2]
            yield name, merge_lora_to_weight([(1.0, patch, 1.0, None, None)], torch.zeros(shape))


def quoted(said, word):
    """The keys that printed lines with a word name."""
    lines = [line for line in said.splitlines() if f" {word}: " in line]
    return [key for line in lines for key in re.findall("'([^']+)'", line)]


if __name__ == "__main__":
    answer_to(main)
