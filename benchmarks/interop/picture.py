"""One picture at Stable Diffusion 1.5's size: by ComfyUI's code with the LoRA that we export, and
by diffusers with the run that it was exported from.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.interop import our_files
from benchmarks.interop.environments import Tool
from lib.convert import export
from lib.convert.interchange import import_lora
from lib.models import open_base_weights
from lib.models.base import token_ids
from lib.step.run_weights import ADAPTER

HERE = Path(__file__).parent

PROMPT = "a zwx robot in the snow"
SIDE, TIMESTEPS, GUIDANCE = 512, [999, 500], 4.0


def one_picture(tool: Tool, base: Path, checkpoint: Path, side: int = SIDE) -> dict[str, Any]:
    """How far the two pictures are apart at most, in steps of 255, and what the LoRA changes.

    `base`: a diffusers folder, and `checkpoint` the same weights in one file.
    """
    from diffusers import StableDiffusionPipeline

    work = base.parent
    weights = open_base_weights(str(base))
    made = our_files.our_lora(our_files.random_lora(weights), weights, work, "diffusers")
    run, lora = work / "run_drawn", work / "drawn_kohya.safetensors"
    shutil.rmtree(run, ignore_errors=True)
    import_lora(made, run, weights.name)
    export(run, "kohya", lora, weights.name)
    ours = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    ours.load_lora_weights(str(run), weight_name=ADAPTER)
    noise = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    tokens = token_ids(ours.tokenizer, [PROMPT, ""])
    theirs = _by_comfyui(tool, work, checkpoint, lora, tokens, noise)
    mine = _by_diffusers(ours, tokens, noise)
    ours.disable_lora()
    plain = _by_diffusers(ours, tokens, noise)
    apart, moved = ((other - mine).abs().max().item() * 255 for other in (theirs, plain))
    return {"side": side, "steps": len(TIMESTEPS), "largest": apart, "moved": moved}


def _by_comfyui(
    tool: Tool, work: Path, checkpoint: Path, lora: Path, tokens: Tensor, noise: Tensor
) -> Tensor:
    """ComfyUI's picture [1, 3, height, width] in 0 to 1."""
    drawn, paper = work / "comfyui_picture.pt", work / "comfyui_picture_request.json"
    torch.save(noise, work / "noise.pt")
    request = {
        "source": tool.source,
        "checkpoint": checkpoint,
        "lora": lora,
        "tokens": tokens.tolist(),
        "timesteps": TIMESTEPS,
        "guidance": GUIDANCE,
        "noise": work / "noise.pt",
        "picture": drawn,
        "out": work / "comfyui_picture.json",
    }
    paper.write_text(json.dumps(request, default=str))
    tool.run(HERE / "comfyui_picture.py", str(paper))
    return torch.load(drawn).permute(0, 3, 1, 2)


def _by_diffusers(pipe: Any, tokens: Tensor, noise: Tensor) -> Tensor:
    """diffusers' picture [1, 3, height, width] in 0 to 1 of the same tokens and noise."""
    from diffusers import EulerDiscreteScheduler

    # So spaced, the first latents are scaled as ComfyUI scales them.
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading"
    )
    with torch.inference_mode():
        words = pipe.text_encoder(tokens)[0]
        return pipe(
            prompt_embeds=words[:1],
            negative_prompt_embeds=words[1:],
            latents=noise,
            timesteps=TIMESTEPS,
            guidance_scale=GUIDANCE,
            output_type="pt",
        ).images
