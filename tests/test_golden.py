"""The numbers stay: short runs of today's code against those recorded in golden/numbers.json.

On the processor, with the versions and on the one thread they were recorded with, losses, weights
and pictures are the same bit for bit. Bits depend on all three, so elsewhere losses and scores
may differ by rounding (`ROUNDING`), while names, shapes and types of weights may not.

`python -m tests.test_golden` records them anew, which is right only where numbers are meant to
change: the commit that does it says why.
"""

import hashlib
import json
import math
import os
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_name("golden") / "numbers.json"
# Elsewhere: the largest relative difference of a loss (as if it were no less than `LEAST`: what
# an adapter first changes is nothing but rounding), and absolute one of a score (a cosine).
ROUNDING, LEAST = {"losses": 2e-2, "scores": 5e-2}, 0.05
PACKAGES = ("torch", "diffusers", "transformers", "peft", "bitsandbytes", "numpy", "pillow")
STEPS, DRAWN = 6, {"sample_every": 3, "sample_steps": 4}
LOW = {
    "optimizer": "adamw8bit",
    "weights": "bf16",
    "checkpointing": "all",
    "fused_backward": True,
}
# Each run: its method, what it changes of the pocket preset, and after which step it is stopped
# once, to be resumed.
RUNS = {
    "lora": ("lora", DRAWN, None),
    "dreambooth": ("dreambooth", DRAWN, None),
    "lora, 8-bit moments": ("lora", {"steps": 4, "optimizer": "adamw8bit"}, None),
    "lora, teacher": (
        "lora",
        {"steps": 3, "prior": "teacher", "dora": True, "quantize": "nf4"},
        None,
    ),
    "lora, resumed": ("lora", DRAWN | {"dropout": 0.1, "text_encoder_rate": 1e-4}, 4),
    "dreambooth, low": ("dreambooth", LOW | {"steps": 2, "batch_size": 1}, None),
    "dreambooth, resumed": ("dreambooth", {"optimizer": "adamw8bit", "snr_gamma": 5.0}, 2),
}
COURSE = {
    "steps": 8,
    "rank": 4,
    "class_images": 8,
    "sample_steps": 5,
    "pictures_per_prompt": 1,
    "class_pictures": 2,
    "pictures": 4,
    "job_steps": 4,
}
ROWS = ("base_model", "real_photos", "lora", "dreambooth")
# What rounding may change beyond that: hashes, shares of a change near nothing, and the count of
# what is read in a few pictures.
ROUNDED = {"bits", "survives", "obedience", "place_drawn", "colour_drawn"}


def library():
    """All of the library that is used here."""
    from lib.convert.interchange import export, extract
    from lib.course.runner import course
    from lib.dataset.class_images import draw_class_images
    from lib.dataset.preparation import prepare
    from lib.models.base import load_base
    from lib.models.devices import device_name
    from lib.models.families import preset
    from lib.training.loop import train

    return SimpleNamespace(
        preset=preset,
        export=export,
        extract=extract,
        course=course,
        draw_class_images=draw_class_images,
        prepare=prepare,
        load_base=load_base,
        device_name=device_name,
        train=train,
    )


# --- what is recorded -----------------------------------------------------------------------------


def machine():
    """All that bits depend on beside the code: the processor, the threads, the versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    said = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    flags = [flag for flag in said.get("flags", "").split() if re.match("avx|fma|amx", flag)]
    return {
        "device": library().device_name(torch.device("cpu")),
        "family and model": f"{said.get('cpu family')}, {said.get('model')}",
        "flags": " ".join(sorted(flags)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def digest(data):
    """The first 16 digits of the SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def tensors(run):
    """{file: {name of a tensor: its type, shape and hash}}: of the numbers, not of the headers."""
    found = {}
    for path in sorted(run.rglob("*.safetensors")) if run.is_dir() else [run]:
        with safe_open(path, "pt") as file:
            there = {name: file.get_tensor(name).contiguous() for name in sorted(file.keys())}
        found[path.relative_to(run).as_posix() if path != run else path.name] = {
            name: f"{str(t.dtype).removeprefix('torch.')} {'x'.join(map(str, t.shape))} "
            + digest(t.flatten().view(torch.uint8).numpy().tobytes())
            for name, t in there.items()
        }
    return found


def brief(files):
    """What `tensors` found, with one line for the form and one for the bits of each file."""
    found = {}
    for name, there in files.items():
        form = "\n".join(f"{key} {text.rpartition(' ')[0]}" for key, text in there.items())
        found[name] = {
            "tensors": len(there),
            "form": f"form:{digest(form.encode())}",
            "bits": digest(json.dumps(there).encode()),
        }
    return found


def pictures(folder):
    """{file: hash of its pixels} of the pictures in a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        found[path.relative_to(folder).as_posix()] = digest(
            str(pixels.shape).encode() + pixels.tobytes()
        )
    return found


def read_run(run):
    """What a run folder holds but for times: losses in both notations, weights, pictures."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    found = json.loads((run / "metrics.json").read_text("utf-8"))
    losses = {
        name: [row[name] for row in rows]
        for name in ("loss", "instance_loss", "prior_loss", "gradient_norm")
    }
    return {
        "losses": losses,
        "bits": {name: [value.hex() for value in values] for name, values in losses.items()},
        "rates": [row["learning_rate"].hex() for row in rows],
        "weights": tensors(run),
        "pictures": pictures(run / "samples"),
        "metrics": {name: found[name] for name in ("final_loss", "trainable_parameters", "recipe")},
    }


def plain(value):
    """Scores without what differs from run to run (times, sizes) or with what is installed."""
    if isinstance(value, dict):
        left = {k: v for k, v in value.items() if not re.search("seconds|bytes|measuring|lpips", k)}
        return {k: plain(v) for k, v in left.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


# --- making it ------------------------------------------------------------------------------------


def data_set(lib, folder):
    """The example character, with class images that the pocket base drew."""
    dataset = lib.prepare(ROOT / "data" / "subjects" / "character", folder)
    return lib.draw_class_images(lib.load_base("pocket"), dataset, 8, seed=0, steps=4)


def make_run(lib, name, data, output):
    """Train the run `name` of `RUNS` and return its folder."""
    method, changes, stop = RUNS[name]
    changes = {"steps": STEPS, "batch_size": 2, "sample_every": 0} | changes
    settings = lib.preset(method, data=str(data), output=str(output), seed=3, **changes)
    if stop:
        lib.train(settings, watchers=[lambda state: state.stop() if state.step == stop else None])
        assert len((output / "log.jsonl").read_text("utf-8").splitlines()) == stop
    return lib.train(settings)


def make_shipped(lib, lora, dreambooth, folder):
    """{form: what is in it} of files for other tools: the adapter, merged, and one extracted."""
    files = {form: folder / f"{form}.safetensors" for form in ("kohya", "checkpoint", "extracted")}
    lib.export(lora, "kohya", files["kohya"])
    lib.export(lora, "checkpoint", files["checkpoint"])
    adapter, _ = lib.extract(dreambooth, 4)
    lib.export(adapter, "kohya", files["extracted"])
    return {form: brief(tensors(path)) for form, path in files.items()}


def read_course(summary, output):
    """What a tiny run of the whole course ends with: its scores, what it trained, its curves."""
    rows = {name: plain(summary[name]) for name in ROWS}
    shipping = json.loads((output / "shipping.json").read_text("utf-8"))
    found = {"summary": rows, "shipping": plain(shipping), "data": pictures(output / "data")}
    for method in ("lora", "dreambooth"):
        curve = json.loads((output / method / "curve.json").read_text("utf-8"))
        found[method] = read_run(output / method) | {"curve": plain(curve["points"])}
        found[method]["weights"] = brief(tensors(output / method))
    return found


# --- comparing it ---------------------------------------------------------------------------------


def differences(found, golden, path=()):
    """The places, as texts, where two trees of JSON values differ."""
    if isinstance(found, dict) and isinstance(golden, dict):
        keys = [*golden, *(key for key in found if key not in golden)]
        pairs = [(k, found.get(k, "absent"), golden.get(k, "absent")) for k in keys]
    elif isinstance(found, list) and isinstance(golden, list) and len(found) == len(golden):
        pairs = [(k, a, b) for k, (a, b) in enumerate(zip(found, golden))]
    else:
        same = type(found) is type(golden) and found == golden
        return [] if same else [f"{'/'.join(map(str, path))}: {found}, recorded {golden}"]
    return [text for k, a, b in pairs for text in differences(a, b, (*path, k))]


def rough(value):
    """A tree without what rounding changes: hashes and the numbers that `near` compares."""
    if isinstance(value, dict):
        return {k: rough(v) for k, v in value.items() if k not in ROUNDED}
    if isinstance(value, list):
        return [rough(each) for each in value]
    if isinstance(value, float):
        return "a number"
    return re.sub(r"(^| )[0-9a-f]{16}$", "", value) if isinstance(value, str) else value


def numbers(value, path=()):
    """(path, number) of each float that is near the recorded one elsewhere too."""
    if isinstance(value, dict | list):
        for k, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(each, (*path, k))
    elif isinstance(value, float) and not (ROUNDED | {"gradient_norm"}) & set(path):
        yield path, value


def near(found, golden):
    """The places where two trees differ by more than `ROUNDING`."""
    known, bad = dict(numbers(golden)), []
    for path, value in numbers(found):
        wanted, loss = known.get(path, math.nan), any("loss" in str(key) for key in path)
        allowed = ROUNDING["losses"] * max(abs(wanted), LEAST) if loss else ROUNDING["scores"]
        if not abs(value - wanted) <= allowed:
            bad.append(f"{'/'.join(map(str, path))}: {value}, recorded {wanted}")
    return bad


def check(found, name):
    """Fail if what was found is not what is recorded under `name`, and say where."""
    golden = json.loads(GOLDEN.read_text("utf-8"))
    wanted, found = golden[name], json.loads(json.dumps(found))
    other = differences(machine(), golden["machine"])
    if other:
        bad = differences(rough(found), rough(wanted)) + near(found, wanted)
    else:
        bad = differences(found, wanted)
    how = "up to rounding, for here it is another machine" if other else "bit for bit"
    print(f"{name}: compared {how}", *other, sep="\n  ")
    assert not bad, f"{len(bad)} differences from what is recorded: " + "\n".join(bad[:12])


@pytest.fixture(scope="module")
def lib():
    """The library, on one thread, here and in the processes that it starts."""
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield library()
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(
        OMP_NUM_THREADS=before
    )


@pytest.fixture(scope="module")
def made(lib, tmp_path_factory):
    """The folder of a run by its name, trained when it is first asked for, and of the data."""
    folder, done = tmp_path_factory.mktemp("golden"), {}

    def made(name):
        if name not in done:
            if name == "data":
                done[name] = data_set(lib, folder / "data").root
            else:
                done[name] = make_run(lib, name, made("data"), folder / name.replace(", ", "_"))
        return done[name]

    return made


def test_the_data_set_is_as_recorded(made):
    check(pictures(made("data")), "data")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_as_recorded(made, name):
    check(read_run(made(name)), name)


def test_what_is_shipped_is_as_recorded(lib, made, tmp_path):
    check(make_shipped(lib, made("lora"), made("dreambooth"), tmp_path), "shipped")


@pytest.mark.slow
def test_the_course_is_as_recorded(lib, course):
    check(read_course(course.summary, course.output), "course")
    assert (course.output / "report.html").stat().st_size < 3_000_000, "a page to mail"


def test_a_changed_number_is_found():
    """Of the comparison itself, by bits and up to rounding."""
    golden = json.loads(GOLDEN.read_text("utf-8"))["lora"]
    for factor, bits, far in ((1, 0, 0), (1 + 1e-12, 1, 0), (1.1, 1, 1)):
        loss = golden["losses"]["loss"]
        losses = golden["losses"] | {"loss": [*loss[:2], loss[2] * factor, *loss[3:]]}
        found = golden | {"losses": losses}
        assert len(differences(found, golden)) == bits and len(near(found, golden)) == far
        assert not differences(rough(found), rough(golden))
    (file,) = golden["weights"]
    first, *others = golden["weights"][file].items()
    other = {first[0]: first[1].replace("float16", "float32"), **dict(others)}
    for weights in (other, dict(others)):
        found = golden | {"weights": {file: weights}}
        assert len(differences(rough(found), rough(golden))) == 1


def record(path, with_course=True):
    """Write what `check` compares to a file."""
    torch.set_num_threads(1)
    lib, golden = library(), {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data, runs = data_set(lib, folder / "data").root, {}
        golden["data"] = pictures(data)
        for name in RUNS:
            runs[name] = make_run(lib, name, data, folder / name.replace(", ", "_"))
            golden[name] = read_run(runs[name])
        golden["shipped"] = make_shipped(lib, runs["lora"], runs["dreambooth"], folder)
        if with_course:
            summary = lib.course(COURSE, folder / "course")
            golden["course"] = read_course(summary, folder / "course")
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    record(sys.argv[1] if len(sys.argv) > 1 else GOLDEN)
