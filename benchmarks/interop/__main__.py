"""The tools themselves on our files: who reads what, by runs of their own code.

    make interop      # ComfyUI, LyCORIS, InvokeAI and stable-diffusion.cpp, from the registry
    make interop ARGS='--sd-scripts FOLDER'        # a clone of kohya-ss/sd-scripts too
    make interop ARGS='--webui FOLDER --forge FOLDER'  # AUTOMATIC1111's, and Forge's after a start
    make interop ARGS='--full --sd-scripts FOLDER' # pictures, training, merge: 12 GB of disk

Each tool gets an environment of its own in build/interop, which takes minutes once. A tool that
cannot be had is told, with the reason, and its rows say so, or stay as they were found before. The
models are on meta tensors at the sizes of Stable Diffusion 1.5 and SDXL, so that the quick part
needs no memory; the LoRA sits beside every layer that one can sit beside. Results go to
benchmarks/results/interop.json and from there into docs/formats.md and claim 16 (`python -m
benchmarks.pages`).
"""

import argparse
from pathlib import Path

from benchmarks.interop.checks import FULL, QUICK, checked
from benchmarks.interop.environments import IN_PACKAGES, PLACE, set_up
from benchmarks.interop.table import RESULTS
from benchmarks.sections import read
from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.files.quiet import quieten
from lib.models.devices import versions


def main() -> None:
    """Run all checks of the tools that can be had, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, help="a checkout, in place of PyPI's copy")
    parser.add_argument("--sd-scripts", type=Path, help="a checkout of kohya-ss/sd-scripts")
    parser.add_argument("--webui", type=Path, help="a checkout of stable-diffusion-webui")
    parser.add_argument("--forge", type=Path, help="a checkout of stable-diffusion-webui-forge")
    parser.add_argument("--place", type=Path, default=PLACE, help="for the environments and files")
    parser.add_argument("--full", action="store_true", help="a picture, training, a merge too")
    parser.add_argument(
        "--only", nargs="+", choices=QUICK, default=list(QUICK), help="the others stay as found"
    )
    args = parser.parse_args()
    quieten()
    before = read(RESULTS) or {}
    found = {"versions": versions(), "tools": {}, "full": before.get("full", {})}
    checkouts = {"comfyui": args.comfyui, "sd-scripts": args.sd_scripts, "lycoris": None}
    checkouts |= {"webui": args.webui, "forge": args.forge} | dict.fromkeys(IN_PACKAGES)
    for name, checkout in checkouts.items():
        if name not in args.only:
            found["tools"][name] = before.get("tools", {}).get(name, {"failed": "not asked for"})
            continue
        try:
            tool = set_up(name, checkout, args.place)
            print(f"{name} {tool.version}", flush=True)
            found["tools"][name] = {"version": tool.version} | checked(QUICK[name], tool)
            found["full"] |= checked(FULL.get(name, []), tool) if args.full else {}
        except BadInput as error:
            print(f"not run: {name}: {error}", flush=True)
            kept = before.get("tools", {}).get(name, {"failed": ""})
            found["tools"][name] = {"failed": str(error)} if "failed" in kept else kept
    write_json(RESULTS, found)
    print(f"results: {RESULTS}; now: python -m benchmarks.pages")


if __name__ == "__main__":
    main()
