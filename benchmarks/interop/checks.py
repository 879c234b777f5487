"""What is asked of each tool, and how its answers are held to ours."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.interop import our_files
from benchmarks.interop.environments import CHECKOUTS, Tool, last_line
from benchmarks.interop.picture import one_picture
from lib.convert.adapter import Adapter, read_adapter
from lib.convert.interchange import import_lora
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import ROOT
from lib.files.safetensors_file import open_weights
from lib.models import BaseWeights, open_base_weights
from lib.models.base_files import POCKET

HERE = Path(__file__).parent

# Every n-th layer's change is computed by the tool and held to ours: all names count, and numbers
# of each kind of layer.
EVERY = {"sd15": 7, "sdxl": 29}

# The rank that LyCORIS' products are cut to here: enough for all of them on the pocket base.
ENOUGH = 1024

Found = dict[str, Any]


def checked(checks: list[Callable[[Tool, Path], Found]], tool: Tool) -> Found:
    """What the `checks` of a tool found; one that fails leaves its reason."""
    work = tool.python.parents[2] / "files"
    found: Found = {}
    for check in checks:
        try:
            found |= check(tool, work)
        except BadInput as error:
            print(f"failed: {error}", flush=True)
            found[check.__name__] = {"failed": str(error)}
    return found


@cache
def ours(name: str, work: Path) -> tuple[BaseWeights, Adapter, dict[str, str], Path]:
    """(base, LoRA, {form: its file}, checkpoint) of a shape, written once."""
    folder = work / name
    base = our_files.sparse_base(name, folder / "base")
    lora = our_files.random_lora(base)
    forms = ("kohya", "diffusers") if name == "sd15" else ("kohya",)
    files = {form: str(our_files.our_lora(lora, base, folder, form)) for form in forms}
    return base, lora, files, our_files.our_checkpoint(base, folder / "checkpoint.safetensors")


def keys_in_comfyui(tool: Tool, work: Path) -> Found:
    """What ComfyUI takes of our checkpoint and LoRA, at both sizes."""
    return {name: _keys(tool, work, name, "comfyui_probe.py") for name in EVERY}


def keys_in_webui(tool: Tool, work: Path) -> Found:
    """What WebUI's reader takes of our LoRA, at both sizes."""
    return {name: _keys(tool, work, name, "webui_probe.py") for name in EVERY}


def keys_in_forge(tool: Tool, work: Path) -> Found:
    """What Forge takes of our checkpoint and LoRA, at both sizes."""
    guess = tool.source / CHECKOUTS["forge"]
    return {name: _keys(tool, work, name, "forge_probe.py", guess=guess) for name in EVERY}


def keys_in_invokeai(tool: Tool, work: Path) -> Found:
    """What InvokeAI calls our files, and what it takes of our LoRA, at both sizes."""
    return {
        name: _keys(tool, work, name, "invokeai_probe.py", base=work / name / "base")
        for name in EVERY
    }


def keys_in_stable_diffusion_cpp(tool: Tool, work: Path) -> Found:
    """What stable-diffusion.cpp takes of our checkpoint and LoRA, which it loads whole."""
    return {"sd15": _keys(tool, work, "sd15", "sdcpp_probe.py")}


def keys_in_sd_scripts(tool: Tool, work: Path) -> Found:
    """What sd-scripts takes of our checkpoint and LoRA; and how a LoRA that it wrote comes in."""
    found = {}
    for name in EVERY:
        written = work / name / "by_sd_scripts.safetensors"
        found[name] = _keys(
            tool, work, name, "kohya_probe.py", sdxl=name == "sdxl", written=written
        )
        if "failed" in found[name]:
            continue
        base = ours(name, work)[0]
        probes = our_files.probes(read_adapter(written, base.layers), base)
        found[name]["imported"] = _held(work / name / "kohya_probe.written.pt", probes)
    return found


def _keys(tool: Tool, work: Path, name: str, script: str, **more: Any) -> Found:
    """Run a probe of a shape, and hold the changes that it computed to those of our LoRA.

    A probe that fails leaves its reason, so that the other shape's rows stand.
    """
    print(f"{tool.name}: {name}", flush=True)
    base, lora, files, checkpoint = ours(name, work)
    request = {"checkpoint": checkpoint, "loras": files, "every": EVERY[name]} | more
    try:
        answer = _asked(tool, work / name, script, request)
    except BadInput as error:
        print(f"failed: {error}", flush=True)
        return {"failed": str(error)}
    probes = our_files.probes(lora, base)
    for form, told in answer["loras"].items():
        told |= _held((work / name / script).with_suffix(f".{form}.pt"), probes)
    return answer


def _asked(tool: Tool, folder: Path, script: str, request: Found) -> Found:
    """A probe's answer to a request."""
    paper, out = folder / "request.json", (folder / script).with_suffix(".json")
    request = request | {"source": tool.source, "out": out}
    paper.write_text(json.dumps(request, default=str))
    tool.run(HERE / script, str(paper))
    return read_json(out)


def _held(path: Path, ours: dict[str, torch.Tensor]) -> Found:
    """How many layers' changes a tool computed, and the largest difference from ours (a share)."""
    theirs = torch.load(path)
    unknown = sorted(set(theirs) - set(ours))
    if unknown:
        raise BadInput(f"the tool names layers that we do not know, such as {unknown[0]}")
    both = {name: ours[name] for name in theirs}
    return {"layers": len(both), "error": our_files.relative_error(theirs, both)}


def files_of_lycoris(tool: Tool, work: Path) -> Found:
    """How files that LyCORIS wrote for the pocket base come in."""
    folder = work / "lycoris"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{tool.name}: LyCORIS", flush=True)
    request = {"pocket": POCKET, "written": folder}
    answer = _asked(tool, folder, "kohya_probe.py", request)
    base, found = open_base_weights("pocket"), {}
    for kind in answer["files"]:
        source, run = folder / f"{kind}.safetensors", folder / f"run_{kind}"
        shutil.rmtree(run, ignore_errors=True)
        rank = None if kind == "locon" else ENOUGH
        import_lora(source, run, "pocket", rank=rank)
        adapter = read_adapter(run, base.layers)
        held = _held(folder / f"kohya_probe.{kind}.pt", our_files.probes(adapter, base))
        found[kind] = held | {"keys": len(open_weights(source).names)}
    return {"version": answer["version"], "kinds": found}


def picture_in_comfyui(tool: Tool, work: Path) -> Found:
    """One picture by ComfyUI with our LoRA against diffusers with the run."""
    picture = one_picture(tool, *_full_base(work))
    return {"picture": picture | {"version": tool.version}}


def training_and_merge(tool: Tool, work: Path) -> Found:
    """sd-scripts' own training from our Kohya-form data set, and its merge against ours."""
    base, _ = _full_base(work)
    full = base.parent
    return {"sd-scripts": tool.version} | _trained(tool, full) | _merged(tool, full)


def _full_base(work: Path) -> tuple[Path, Path]:
    """(a folder of random weights at Stable Diffusion 1.5's size, the same as one file)."""
    from benchmarks.random_base import build

    base, checkpoint = work / "full" / "base", work / "full" / "base.safetensors"
    if not checkpoint.is_file():
        build("sd15", base, dtype=torch.half)
        run_ours("merge", "--base", str(base), "--to", "checkpoint", "--out", str(checkpoint))
    return base, checkpoint


def _trained(tool: Tool, work: Path) -> Found:
    """Two steps of sd-scripts' train_network.py on a data set that `to-kohya` wrote."""
    data, tokenizer = work / "data", work / "tokenizers" / "openai_clip-vit-large-patch14"
    if not data.is_dir():
        prepared, few = str(work / "prepared"), ("--class-images", "2", "--sample-steps", "2")
        run_ours("prepare", str(ROOT / "data" / "subjects" / "character"), "--out", prepared, *few)
        run_ours("to-kohya", prepared, "--out", str(data))
        shutil.copytree(work / "base" / "tokenizer", tokenizer)
        older_tokenizer(tokenizer)
    arguments = {
        "pretrained_model_name_or_path": work / "base.safetensors",
        "train_data_dir": data / "train",
        "tokenizer_cache_dir": tokenizer.parent,
        "output_dir": work,
        "output_name": "trained",
        "network_module": "networks.lora",
        "network_dim": our_files.RANK,
        "network_alpha": our_files.ALPHA,
        "resolution": 64,
        "max_train_steps": 2,
        "caption_extension": ".txt",
        "mixed_precision": "no",
        "save_model_as": "safetensors",
        "max_data_loader_n_workers": 0,
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    tool.run(HERE / "tool_side.py", str(tool.source / "train_network.py"), *words)
    adapter = read_adapter(work / "trained.safetensors")
    base = open_base_weights(str(work / "base"))
    shutil.rmtree(work / "run", ignore_errors=True)
    import_lora(work / "trained.safetensors", work / "run", base.name)
    texts = adapter.metadata
    folders = json.loads(texts["ss_dataset_dirs"])
    return {
        "trained": {
            "steps": int(texts["ss_steps"]),
            "pictures": int(texts["ss_num_train_images"]),
            "folders": sorted(folders),
            "layers_imported": sum(1 for _ in adapter),
        }
    }


def older_tokenizer(folder: Path) -> None:
    """Write the two files that transformers 4's CLIPTokenizer reads beside tokenizer.json."""
    model = read_json(folder / "tokenizer.json")["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), "utf-8")


def _merged(tool: Tool, work: Path) -> Found:
    """sd-scripts' merge of our LoRA into our checkpoint against our own, tensor by tensor."""
    checkpoint, lora = work / "base.safetensors", work / "lora_kohya.safetensors"
    base = open_base_weights(str(work / "base"))
    our_files.our_lora(our_files.random_lora(base, in_blocks=True), base, work, "kohya")
    theirs, mine = work / "theirs.safetensors", work / "ours.safetensors"
    run_ours("merge", str(lora), "--base", base.name, "--to", "checkpoint", "--out", str(mine))
    words = ["--sd_model", str(checkpoint), "--save_to", str(theirs), "--models", str(lora)]
    precision = ["--ratios", "1.0", "--precision", "float", "--save_precision", "fp16"]
    script = tool.source / "networks" / "merge_lora.py"
    tool.run(HERE / "tool_side.py", str(script), *words, *precision)
    one, two, plain = (open_weights(path) for path in (mine, theirs, checkpoint))
    both = sorted(set(one.names) & set(two.names))
    apart, moved = 0.0, 0.0
    for name in both:
        apart = max(apart, (one.read(name).float() - two.read(name).float()).abs().max().item())
        moved = max(moved, (one.read(name).float() - plain.read(name).float()).abs().max().item())
    lost = len(set(one.names) - set(two.names))
    return {"merged": {"tensors": len(both), "lost": lost, "largest": apart, "moved": moved}}


def run_ours(*arguments: str) -> None:
    """One of this project's commands, as users call it."""
    done = subprocess.run(
        [sys.executable, "-m", "lib", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise BadInput(f"python -m lib {arguments[0]}: {last_line(done.stderr + done.stdout)}")


QUICK = {
    "comfyui": [keys_in_comfyui],
    "sd-scripts": [keys_in_sd_scripts],
    "lycoris": [files_of_lycoris],
    "webui": [keys_in_webui],
    "forge": [keys_in_forge],
    "invokeai": [keys_in_invokeai],
    "stable-diffusion.cpp": [keys_in_stable_diffusion_cpp],
}

# What takes long and much of a disk.
FULL = {"comfyui": [picture_in_comfyui], "sd-scripts": [training_and_merge]}
