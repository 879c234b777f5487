"""sd-scripts' and LyCORIS' own code on our files, and files that they write. Runs in an environment
of its own, without this project:

    python kohya_probe.py request.json

request.json: {"source": the folder of sd-scripts, "sdxl": bool, "checkpoint": file, "loras":
{name: file}, "every": n, "written": a LoRA file to write, "out": file for the answer}; or
{"source": ..., "pocket": a small diffusers folder, "written": a folder, "out": ...} to let LyCORIS
write its kinds of file. The models are on the meta device, so that they take no memory.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from tool_side import answer_to, keep, meta_weights, stand_in_for_torchvision

RANK, ALPHA = 4, 2.0

# Where LyCORIS puts layers. Its own "full" counts diffusers' embedding of time twice, and stops.
PRESET = """
enable_conv = true
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
unet_target_name = []
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
text_encoder_target_name = []
"""

# The file that LyCORIS writes: how its network is made.
KINDS = {
    "locon": {"algo": "lora", "use_tucker": "True"},
    "loha": {"algo": "loha"},
    "loha_tucker": {"algo": "loha", "use_tucker": "True"},
    "lokr": {"algo": "lokr", "factor": "4"},
    "lokr_both": {"algo": "lokr", "factor": "8", "decompose_both": "True", "use_tucker": "True"},
    "lokr_full": {"algo": "lokr", "factor": "4", "full_matrix": "True"},
}


def main(request):
    stand_in_for_torchvision()
    sys.path[:0] = [request["source"], request["source"] + "/networks"]
    return lycoris(request) if "pocket" in request else sd_scripts(request)


def sd_scripts(request):
    """What sd-scripts takes of a checkpoint and of LoRAs; and a LoRA that it writes."""
    import lora
    from safetensors.torch import load_file

    weights = meta_weights(request["checkpoint"], torch.float)
    answer = {"checkpoint": {"keys": len(weights), "left": [], "missing": []}, "loras": {}}
    with torch.device("meta"):
        try:
            texts, unet = load(request, weights)
        except (RuntimeError, KeyError) as error:
            answer["checkpoint"]["missing"] = [str(error)[:2000]]
            return answer
    for name, path in request["loras"].items():
        tensors = load_file(path)
        network, _ = lora.create_network_from_weights(
            1.0, path, None, texts, unet, for_inference=True
        )
        network.apply_to(texts, unet)
        left = network.load_weights(path).unexpected_keys
        answer["loras"][name] = {"keys": len(tensors), "left": left}
        some = (network.text_encoder_loras + network.unet_loras)[:: request["every"]]
        keep(request, name, {each.lora_name: each.get_weight() for each in some})
    network = lora.create_network(1.0, RANK, ALPHA, None, texts, unet, conv_dim=3, conv_alpha=1)
    network.apply_to(texts, unet)
    randomise(network)
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(RANK)}
    network.save_weights(request["written"], torch.float16, metadata)
    reader, _ = lora.create_network_from_weights(
        1.0, request["written"], None, texts, unet, for_inference=True
    )
    reader.apply_to(texts, unet)
    reader.load_weights(request["written"])
    some = (reader.text_encoder_loras + reader.unet_loras)[:: request["every"]]
    keep(request, "written", {each.lora_name: each.get_weight() for each in some})
    return answer


def load(request, weights):
    """(text encoders, U-Net) of a checkpoint's tensors on the meta device, by their loaders."""
    if request["sdxl"]:
        from library import sdxl_model_util

        sdxl_model_util.load_file = lambda *_, **__: weights
        first, second, _, unet, _, _ = sdxl_model_util.load_models_from_sdxl_checkpoint(
            "sdxl_base_v1-0", request["checkpoint"], "meta"
        )
        return [first, second], unet
    from library import model_util

    model_util.load_file = lambda *_, **__: weights
    text, _, unet = model_util.load_models_from_stable_diffusion_checkpoint(
        False, request["checkpoint"], "meta"
    )
    return text, unet


def lycoris(request):
    """LyCORIS' kinds of file, written for a small diffusers model."""
    import lycoris.kohya
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    folder, preset = request["pocket"], Path(request["written"], "preset.toml")
    preset.write_text(PRESET)
    for kind, arguments in KINDS.items():
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
        network = lycoris.kohya.create_network(
            1.0, RANK, ALPHA, None, text, unet, preset=str(preset), **arguments
        )
        network.apply_to(text, unet, True, True)
        randomise(network)
        network.save_weights(f"{request['written']}/{kind}.safetensors", torch.float32, {})
        some = network.text_encoder_loras + network.unet_loras
        with torch.no_grad():
            keep(request, kind, {each.lora_name: change(each) for each in some})
    return {"version": version("lycoris-lora"), "files": list(KINDS)}


def change(module):
    """What a LyCORIS module adds to its layer's weight, as its forward pass has it."""
    if hasattr(module, "make_weight"):  # a LoCon's is without its scale
        return module.make_weight() * module.scale
    return module.get_weight(None)


def randomise(network):
    """Random numbers in all that would train, so that no half is zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise.mul_(0.1)


if __name__ == "__main__":
    answer_to(main)
