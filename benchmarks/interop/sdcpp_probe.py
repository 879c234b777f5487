"""stable-diffusion.cpp's own code on our files. Runs in an environment of its own, without this
project:

    python sdcpp_probe.py request.json

The request and the answer are those of comfyui_probe.py. It has no meta device, so that the model
is loaded whole; and it tells no weights, so that what is known of a LoRA is its own log: which
tensors it could not use.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from tool_side import answer_to, keep

PROMPT = "a robot in the snow"
SIDE = 64  # pixels: the smallest that it draws, since a LoRA is put in place with a picture alone


def main(request):
    if "draw" in request:
        return drawn(request)
    answer = {"loras": {}}
    for name, path in request["loras"].items():
        messages = asked(request, path)
        answer["checkpoint"] = checkpoint_in(messages, request["checkpoint"])
        answer["loras"][name] = lora_in(messages, path)
        keep(request, name, {})
    return answer


def asked(request, lora):
    """The messages of one drawing, in a process of its own: a model keeps the LoRA in its weights.

    On its standard output it prints a progress bar and every tensor that it could not use.
    """
    folder = Path(request["out"]).parent
    paper, out = folder / "sdcpp_one.json", folder / "sdcpp_one_answer.json"
    one = {"draw": lora, "checkpoint": request["checkpoint"], "out": str(out)}
    paper.write_text(json.dumps(one))
    command = [sys.executable, __file__, str(paper)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"it ended with {done.returncode} on {lora}")
    return json.loads(out.read_text())


def drawn(request):
    """Draw one picture with a LoRA; the messages of stable-diffusion.cpp on the way."""
    from cyllama import sd

    messages = []
    sd.set_log_callback(lambda level, text: messages.append(text))
    params = sd.SDContextParams(model_path=request["checkpoint"], n_threads=1)
    params.vae_decode_only = False  # the encoder's keys are asked for too
    # Added to all weights first: this takes minutes, but beside the layers it counts no tensors.
    params.lora_apply_mode = sd.LoraApplyMode.IMMEDIATELY
    context = sd.SDContext(params)
    wanted = sd.SDImageGenParams(prompt=PROMPT, width=SIDE, height=SIDE)
    wanted.set_loras([{"path": request["draw"], "multiplier": 1.0}])
    how = wanted.sample_params
    how.sample_steps, how.cfg_scale = 1, 1.0
    context.generate_with_params(wanted)
    return messages


def checkpoint_in(messages, path):
    """What it took of a checkpoint: it names each key that it doesn't know, or lacks."""
    keys = tensors_of(path)
    said = "".join(messages)
    return {
        "keys": len(keys),
        "left": re.findall(r"unknown tensor '([^'| ]+)", said),
        "missing": re.findall(r"tensor '([^']+)' not in model file", said),
    }


def lora_in(messages, path):
    """What it took of a LoRA: it counts the tensors, and names those that it could not use."""
    said, keys = "".join(messages), tensors_of(path)
    left = sorted(set(re.findall(r"unused lora tensor \|([^|]+)\|", said)))
    if "LoRA tensors have been applied" not in said:
        left = keys  # it did not even begin
    return {"keys": len(keys), "left": left}


def tensors_of(path):
    """The names of a safetensors file's tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


if __name__ == "__main__":
    answer_to(main)
