"""What `make interop` found, as the table "who reads it" of docs/formats.md and claim 16."""

from pathlib import Path
from typing import Any

from benchmarks.sections import read
from lib.files.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "interop.json"
FORMATS_PAGE = ROOT / "docs" / "formats.md"

# The largest difference of a layer's change, as a share of it, that rounding makes in fp16 files.
ROUNDING = 2e-3

EXACT = 1e-5  # and below this the sums of float32 alone differ

UNMEASURED = "The tools were not run on this version yet: `make interop`.\n"

BASES = {"sd15": "Stable Diffusion 1.5", "sdxl": "SDXL"}
NAMES = {
    "comfyui": "ComfyUI",
    "sd-scripts": "kohya's sd-scripts",
    "lycoris": "LyCORIS",
    "webui": "WebUI",
    "forge": "Forge",
    "invokeai": "InvokeAI",
    "stable-diffusion.cpp": "stable-diffusion.cpp",
}
FORMS = {"kohya": "LoRA, `--to kohya`", "diffusers": "LoRA, `--to diffusers`"}


def who_reads_it(found: dict[str, Any] | None) -> str:
    """The table as Markdown; None is a program that was not run."""
    if found is None:
        return UNMEASURED
    lines = ["| tool | base | file of ours | keys taken | its change of weights against ours |"]
    lines += ["| --- | --- | --- | ---: | --- |"]
    for tool, told in found["tools"].items():
        name = NAMES[tool]
        if tool == "lycoris":
            continue  # it reads nothing of ours; what it wrote stands below
        if "failed" in told:
            lines.append(f"| {name} | - | not run: {told['failed']} | - | - |")
            continue
        name += f" {told['version']}"
        for base, rows in ((base, told[base]) for base in BASES if base in told):
            lines += [f"| {name} | {BASES[base]} | {row} |" for row in _rows(rows)]
    after = [*_names(found), *_imports(found), *_full(found.get("full") or {})]
    return "\n".join([*lines, "", *after]) + "\n"


def _rows(found: dict[str, Any]) -> list[str]:
    """The last three cells of a base's rows."""
    if "failed" in found:
        return [f"checkpoint and LoRA | not run: {found['failed'].replace('|', '/')} | -"]
    rows = ["checkpoint | not run: its loader is in repositories beside it | -"]
    if told := found.get("told"):
        rows = [f"checkpoint | known as {told['checkpoint']}; diffusers loads it | -"]
    if whole := found.get("checkpoint"):
        taken = whole["keys"] - len(whole["left"])
        said = f"lacks {len(whole['missing'])}" if whole["missing"] else "lacks none"
        rows = [f"checkpoint | {taken} of {whole['keys']} | {said}"]
    for form, lora in found.get("loras", {}).items():
        taken = lora["keys"] - len(lora["left"])
        values = f"{lora['layers']} layers: {share(lora['error'])}" if lora["layers"] else "-"
        if refused := lora.get("refused"):
            values = f"stops: {refused.replace('|', '/')}"
        rows.append(f"{FORMS[form]} | {taken} of {lora['keys']} | {values}")
    return rows


def share(error: float) -> str:
    """A largest difference in words."""
    if error < EXACT:
        return "the same"
    return f"within {error:.4f} of it"


def _names(found: dict[str, Any]) -> list[str]:
    """What InvokeAI calls our LoRAs, before it reads them."""
    told = found["tools"].get("invokeai", {})
    said = [
        f"`--to {form}` for {BASES[base]} as {', '.join(dict.fromkeys(name.split(', ')))}"
        for base in BASES
        for form, name in told.get(base, {}).get("told", {}).items()
        if form != "checkpoint"
    ]
    return [f"InvokeAI knows LoRAs {'; '.join(said)}.", ""] if said else []


def _imports(found: dict[str, Any]) -> list[str]:
    """What became of files that the tools wrote."""
    told, lycoris = (found["tools"].get(name, {}) for name in ("sd-scripts", "lycoris"))
    parts = [
        f"a LoRA for {BASES[base]} by sd-scripts ({share(told[base]['imported']['error'])})"
        for base in BASES
        if "imported" in told.get(base, {})
    ]
    for kind, held in lycoris.get("kinds", {}).items():
        parts.append(f"`{kind}` ({share(held['error'])})")
    if not parts:
        return []
    by = (
        f" The last {len(lycoris['kinds'])} are LyCORIS {lycoris['version']}'s."
        if lycoris.get("kinds")
        else ""
    )
    return [f"Files that they wrote, imported here: {', '.join(parts)}.{by}", ""]


def _full(found: dict[str, Any]) -> list[str]:
    """What their training and their merge did, at Stable Diffusion 1.5's size."""
    if not found:
        return ["Their own training and merge were not run on this version: `--full`."]
    said = []
    if picture := found.get("picture"):
        side = picture["side"]
        said.append(
            f"One picture at Stable Diffusion 1.5's size ({side} x {side} pixels,"
            f" {picture['steps']} steps, fp32, random weights) by ComfyUI {picture['version']} with"
            f" our LoRA and by diffusers with its run: {picture['largest']:.2g} of 255 apart at"
            f" most, where the LoRA changes it by up to {picture['moved']:.2g}."
        )
    if trained := found.get("trained"):
        said.append(
            f"sd-scripts {found['sd-scripts']} trained {trained['steps']} steps on our data set"
            f" (`to-kohya`, {trained['pictures']} pictures an epoch from"
            f" {', '.join(trained['folders'])}/), and its LoRA came in with"
            f" {trained['layers_imported']} layers."
        )
    if merged := found.get("merged"):
        said.append(
            f"Its merge and ours differ by {merged['largest']:.1g} at most in {merged['tensors']}"
            f" tensors, in which the LoRA moves weights by up to {merged['moved']:.2g}."
        )
    else:
        said.append("Its merge was not held against ours yet.")
    return [" ".join(said)]


def claim(path: Path = RESULTS) -> tuple[str, str]:
    """(effect, verdict) of claim 16, that LoRA files load in every tool."""
    found = read(path) or {"tools": {}}
    effect = (
        "every key of an export is held against the schemes of ComfyUI, Forge, WebUI, Kohya,"
        " diffusers and PEFT, and read back"
    )
    ran, takes_all, wrong = {}, [], []
    for tool, told in found["tools"].items():
        loras = {b: told[b]["loras"]["kohya"] for b in BASES if "loras" in told.get(b, {})}
        if loras:
            ran[tool] = f"{NAMES[tool]} {told['version']}"
            takes_all += [ran[tool]] if not any(x["left"] for x in loras.values()) else []
            wrong += [ran[tool]] if any(x["error"] > ROUNDING for x in loras.values()) else []
    if not ran:
        return effect, (
            "holds for the key schemes: tests/convert/test_interchange.py; the tools themselves"
            " were not run"
        )
    counts = [
        f"{ran[tool]} takes {x['keys'] - len(x['left'])} of {x['keys']} keys for {BASES[base]}"
        for tool in ran
        for base in BASES
        for x in [found["tools"][tool].get(base, {}).get("loras", {}).get("kohya")]
        if x
    ]
    if wrong:
        return f"{effect}; run: {'; '.join(counts)}", (
            f"does not hold: {' and '.join(wrong)} makes another change of them than we do"
        )
    partly = [name for name in ran.values() if name not in takes_all]
    verdict = f"holds in Kohya's form for {' and '.join(takes_all) or 'none of the tools run'}"
    if partly:
        verdict += f"; left aside by {' and '.join(partly)}: layers that only an extracted LoRA has"
    others = [name for tool, name in NAMES.items() if tool not in (*ran, "lycoris")]
    if others:
        verdict += f"; not run: {', '.join(others)}"
    return f"{effect}; run: {'; '.join(counts)}", verdict
