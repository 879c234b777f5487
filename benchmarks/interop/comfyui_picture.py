"""A picture by ComfyUI's own code, with our LoRA. Runs in an environment of its own, without this
project:

    python comfyui_picture.py request.json

request.json: {"source": ComfyUI's folder, "checkpoint": file, "lora": file, "tokens": [the prompt's
token ids, the empty prompt's], "timesteps": [...], "guidance": number, "noise": a file with the
first latents, "picture": a file for the picture [1, height, width, 3] in 0 to 1, "out": file for
the answer}. In fp32 throughout, so that rounding to halves doesn't cover what is asked.
"""

import torch
from comfyui_probe import prepare
from tool_side import answer_to


@torch.inference_mode()
def main(request):
    prepare(request["source"], "--force-fp32", "--fp32-text-enc", "--fp32-vae")
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    from safetensors.torch import load_file

    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(request["checkpoint"])
    tensors = load_file(request["lora"])
    model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
    # Each token with its weight: ComfyUI has a vocabulary of its own, and the base here another.
    words = [{"l": [[(token, 1.0) for token in ids]]} for ids in request["tokens"]]
    prompt, empty = (clip.encode_from_tokens_scheduled(tokens) for tokens in words)
    noise = torch.load(request["noise"])
    known = model.get_model_object("model_sampling").sigmas
    sigmas = torch.cat([known[request["timesteps"]], torch.zeros(1)])
    latents = comfy.sample.sample_custom(
        model,
        noise,
        request["guidance"],
        comfy.samplers.ksampler("euler"),
        sigmas,
        prompt,
        empty,
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    torch.save(vae.decode(latents).float().clone(), request["picture"])
    return {"layers": len(model.patches) + len(clip.patcher.patches)}


if __name__ == "__main__":
    answer_to(main)
