"""WebUI's own LoRA reader (extensions-builtin/Lora) on our files. Runs in an environment of its
own, without this project:

    python webui_probe.py request.json

The request and the answer are those of comfyui_probe.py, without the checkpoint's part: its loader
needs repositories beside WebUI's. The reader asks a model for its modules by name, and WebUI's
modules are named as the checkpoint's keys; so the model here is made of those, on the meta device.
"""

import re
import sys
import tempfile
import types

import torch
from tool_side import answer_to, keep, listen, meta_weights


def main(request):
    networks, messages = prepare(request["source"])
    from safetensors.torch import load_file

    networks.shared.sd_model = model_of(meta_weights(request["checkpoint"]))
    networks.assign_network_names_to_compvis_modules(networks.shared.sd_model)
    answer = {"loras": {}}
    for name, path in request["loras"].items():
        messages.clear()
        tensors = load_file(path)
        networks.sd_models.read_state_dict = lambda _, tensors=tensors: tensors
        net = networks.load_network(name, types.SimpleNamespace(filename=path))
        net.te_multiplier = net.unet_multiplier = 1.0
        texts = [text for text in messages if "didn't match keys" in text]
        left = [key for text in texts for key in re.findall(r"'([^']+)': ", text)]
        some = list(net.modules.values())[:: request["every"]]
        keep(request, name, {layer_of(each): change(each) for each in some})
        answer["loras"][name] = {"keys": len(tensors), "left": left}
    return answer


def prepare(source):
    """(WebUI's LoRA reader, the list that its messages go to), without its web page."""
    sys.path.insert(0, f"{source}/extensions-builtin/Lora")
    for name in ("gradio", "modules"):
        sys.modules[name] = types.ModuleType(name)
    parts = "shared devices sd_models errors scripts sd_hijack cache hashes patches"
    inner = (
        "textual_inversion textual_inversion.textual_inversion models models.sd3 models.sd3.mmdit"
    )
    for name in f"{parts} {inner}".split():
        module = sys.modules[f"modules.{name}"] = types.ModuleType(f"modules.{name}")
        where, _, last = name.rpartition(".")
        setattr(sys.modules[f"modules.{where}" if where else "modules"], last, module)
    modules = sys.modules["modules"]
    modules.devices.cpu = modules.devices.device = torch.device("cpu")
    modules.devices.dtype = torch.float
    modules.models.sd3.mmdit.QkvLinear = type("QkvLinear", (torch.nn.Linear,), {})
    messages = listen()
    # It lists the folder of LoRAs when it is imported: here it finds none.
    place = tempfile.gettempdir()
    modules.shared.cmd_opts = types.SimpleNamespace(lora_dir=place, lyco_dir_backcompat=place)
    modules.shared.walk_files = lambda *_, **__: []
    import networks

    return networks, messages


def model_of(weights):
    """WebUI's sd_model: `model`, and its text encoders as it wraps them."""
    root = tree(weights)
    sd_model = types.SimpleNamespace(model=root.model, is_sdxl=hasattr(root, "conditioner"))
    if sd_model.is_sdxl:
        embedders = [
            types.SimpleNamespace(wrapped=each) for each in root.conditioner.embedders.children()
        ]
        sd_model.conditioner = types.SimpleNamespace(embedders=embedders)
    else:
        sd_model.cond_stage_model = types.SimpleNamespace(wrapped=root.cond_stage_model)
    return sd_model


def tree(weights):
    """Modules named as a checkpoint's keys, of the kinds that its shapes say, on meta tensors."""
    root, meta = torch.nn.Module(), torch.device("meta")
    for key, weight in weights.items():
        name, _, last = key.rpartition(".")
        if last == "weight" and weight.ndim == 4:
            out, into, *kernel = weight.shape
            module = torch.nn.Conv2d(into, out, tuple(kernel), device=meta)
        elif last == "weight" and weight.ndim == 2:
            module = torch.nn.Linear(weight.shape[1], weight.shape[0], device=meta)
        elif last == "in_proj_weight":
            module = torch.nn.MultiheadAttention(weight.shape[1], 1, device=meta)
        elif last == "weight":
            module = torch.nn.LayerNorm(weight.shape, device=meta)
        else:
            continue
        place(root, name.split("."), module)
    return root


def place(root, names, module):
    """Put a module into the tree, with the modules that its name goes through."""
    *before, last = names
    for name in before:
        if name not in dict(root.named_children()):
            root.add_module(name, torch.nn.Module())
        root = getattr(root, name)
    if last not in dict(root.named_children()):
        root.add_module(last, module)


def layer_of(module):
    """The name of a layer in the file."""
    return module.network_key.partition(".")[0]


def change(module):
    """What WebUI adds to the layer's weight: of an attention, which holds three in one, a part."""
    up, down = module.up_model.weight, module.down_model.weight
    target = torch.zeros(up.shape[0], *down.shape[1:])
    return module.calc_updown(target)[0]


if __name__ == "__main__":
    answer_to(main)
