"""What the page and claim 16 say of the tools is what `make interop` found; and, where the tools
are set up, its quick half itself.
"""

import math
import runpy

import pytest
import torch
from conftest import ROOT

from benchmarks import sections
from benchmarks.analysis import shipping
from benchmarks.interop import checks, environments, our_files, table
from lib.convert.adapter import Adapter
from lib.convert.layer import Layer
from lib.files.errors import BadInput
from lib.files.safetensors_file import open_weights
from lib.models import open_base_weights


def lora(left=(), error=0.0):
    return {"keys": 12, "left": list(left), "layers": 4, "error": error}


def found(**tools):
    whole = {"keys": 20, "left": [], "missing": []}
    told = {
        name: {
            "version": "1.2",
            "sd15": {"checkpoint": whole, "loras": {"kohya": each}},
        }
        for name, each in tools.items()
    }
    return {"tools": told, "full": {}}


def test_the_page_prints_what_was_found():
    written = sections.section(table.FORMATS_PAGE, "interop")
    assert written == table.who_reads_it(sections.read(table.RESULTS)), (
        "run `python -m benchmarks.pages`"
    )


def test_a_tool_that_was_not_run_is_said_with_its_reason():
    text = table.who_reads_it({"tools": {"sd-scripts": {"failed": "no checkout was named"}}})
    assert "| kohya's sd-scripts | - | not run: no checkout was named | - | - |" in text
    assert table.who_reads_it(None) == table.UNMEASURED
    for name in environments.IN_PACKAGES:
        assert f"| {table.NAMES[name]} | - | not run: no network |" in table.who_reads_it(
            {"tools": {name: {"failed": "no network"}}}
        )


def test_one_shape_that_fails_leaves_the_others_rows(tmp_path, monkeypatch):
    def asked(tool, folder, script, request):
        if folder.name == "sdxl":
            raise BadInput("forge: no data")
        return found(forge=lora())["tools"]["forge"]["sd15"]

    for name, fake in (
        ("_asked", asked),
        ("ours", lambda name, work: (None, None, {}, "checkpoint")),
        ("_held", lambda path, probes: {}),
    ):
        monkeypatch.setattr(checks, name, fake)
    monkeypatch.setattr(our_files, "probes", lambda lora, base: {})
    tool = environments.Tool("forge", tmp_path, tmp_path, "1.2")
    told = {"version": "1.2"} | checks.checked([checks.keys_in_forge], tool)
    text = table.who_reads_it({"tools": {"forge": told}})
    assert "| Forge 1.2 | Stable Diffusion 1.5 | LoRA, `--to kohya` | 12 of 12 |" in text
    assert "| Forge 1.2 | SDXL | checkpoint and LoRA | not run: forge: no data | - |" in text


def test_a_reader_of_loras_alone_says_so_of_the_checkpoint():
    told = found(webui=lora())
    del told["tools"]["webui"]["sd15"]["checkpoint"]
    text = table.who_reads_it(told)
    assert "| WebUI 1.2 | Stable Diffusion 1.5 | checkpoint | not run: " in text
    assert "| WebUI 1.2 | Stable Diffusion 1.5 | LoRA, `--to kohya` | 12 of 12 |" in text


def test_what_invokeai_calls_a_file_and_where_it_stops_is_said():
    told = found(invokeai=lora(["a"] * 12) | {"layers": 0, "refused": "ValueError: a|b"})
    del told["tools"]["invokeai"]["sd15"]["checkpoint"]
    names = {"checkpoint": "sd-1, main, checkpoint", "kohya": "sd-1, lora, lycoris"}
    told["tools"]["invokeai"]["sd15"]["told"] = names
    text = table.who_reads_it(told)
    assert "| checkpoint | known as sd-1, main, checkpoint; diffusers loads it | - |" in text
    assert "| 0 of 12 | stops: ValueError: a/b |" in text
    assert "InvokeAI knows LoRAs `--to kohya` for Stable Diffusion 1.5 as sd-1, lora," in text


def test_a_tool_whose_loras_were_not_counted_is_not_said_to_read_them(tmp_path):
    from lib.files.json_file import write_json

    told = found(comfyui=lora(), **{"stable-diffusion.cpp": lora()})
    del told["tools"]["stable-diffusion.cpp"]["sd15"]["loras"]
    text = table.who_reads_it(told)
    assert "| stable-diffusion.cpp 1.2 | Stable Diffusion 1.5 | checkpoint | 20 of 20 |" in text
    assert text.count("LoRA, `--to kohya`") == 1
    write_json(tmp_path / "found.json", told)
    assert table.claim(tmp_path / "found.json")[1].endswith("InvokeAI, stable-diffusion.cpp")


def test_the_picture_is_told_with_what_the_lora_changes():
    picture = {"side": 512, "steps": 2, "largest": 0.0021, "moved": 30.4, "version": "1.2"}
    text = table.who_reads_it(found(comfyui=lora()) | {"full": {"picture": picture}})
    assert "0.0021 of 255 apart at most, where the LoRA changes it by up to 30." in text


def test_keys_that_a_tool_leaves_are_counted_in_the_table():
    text = table.who_reads_it(found(comfyui=lora(), **{"sd-scripts": lora(["a.alpha"], 0.02)}))
    assert "| ComfyUI 1.2 | Stable Diffusion 1.5 | checkpoint | 20 of 20 | lacks none |" in text
    assert "| 12 of 12 | 4 layers: the same |" in text
    assert "| 11 of 12 | 4 layers: within 0.0200 of it |" in text


def test_claim_16_says_what_the_tools_did(tmp_path):
    from lib.files.json_file import write_json

    path = tmp_path / "found.json"
    assert "were not run" in table.claim(path)[1]
    write_json(path, found(comfyui=lora(), **{"sd-scripts": lora(["a.alpha"])}))
    effect, verdict = table.claim(path)
    assert "ComfyUI 1.2 takes 12 of 12 keys for Stable Diffusion 1.5" in effect
    assert verdict.startswith("holds in Kohya's form for ComfyUI 1.2; left aside by kohya's")
    assert verdict.endswith("not run: WebUI, Forge, InvokeAI, stable-diffusion.cpp")
    write_json(path, found(comfyui=lora(error=0.5)))
    assert "does not hold" in table.claim(path)[1]


def test_the_shipped_verdict_is_of_the_shipped_runs():
    assert shipping.claim_rows()[16] == table.claim()


def test_a_sparse_file_has_the_keys_and_takes_no_room(tmp_path):
    shapes = {"a": (1000, 1000), "b": (3,)}
    path = our_files.sparse_file(tmp_path / "x.safetensors", shapes)
    with open_weights(path) as file:
        assert {name: file.shape(name) for name in file.names} == shapes
        assert not file.read("a").any()
    assert path.stat().st_size > 2_000_000 > 512 * path.stat().st_blocks * 10


def test_a_probe_is_the_whole_change_times_its_vector():
    base = open_base_weights("pocket")
    name = "mid_block.resnets.0.conv1"
    layer = Layer(torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1), 7.0)
    [probe] = our_files.probes(Adapter({"unet": {name: layer}}), base).values()
    flat = layer.delta().flatten(1)
    wanted = torch.tensor(
        [sum(row[k].item() * math.cos(k) for k in range(len(row))) for row in flat]
    )
    assert torch.allclose(probe, wanted, atol=1e-3)
    halved = {"x": 0.5 * probe}
    assert our_files.relative_error(halved, {"x": probe}) == pytest.approx(0.5)


def test_sd_scripts_without_a_checkout_is_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="no checkout was named"):
        environments.set_up("sd-scripts", None, tmp_path)
    with pytest.raises(BadInput, match="there is no folder"):
        environments.set_up("comfyui", tmp_path / "nowhere", tmp_path)
    with pytest.raises(BadInput, match="holds no extensions-builtin/Lora"):
        environments.set_up("webui", tmp_path, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is made before that"


@pytest.mark.parametrize(
    "name, file, text, version",
    [
        ("invokeai", "version/invokeai_version.py", '__version__ = "6.1.2"\n', "6.1.2"),
        (
            "stable-diffusion.cpp",
            "build_config.json",
            '{"versions": {"stable_diffusion_cpp_version": "master-1-a"}}',
            "master-1-a",
        ),
    ],
)
def test_a_tool_that_is_a_package_is_found_in_its_environment(tmp_path, name, file, text, version):
    folder = tmp_path / environments.ENVIRONMENTS[name]
    source = folder / "lib/python3.11/site-packages" / environments.IN_PACKAGES[name]
    (source / file).parent.mkdir(parents=True)
    (source / file).write_text(text)
    (folder / "ready").touch()
    tool = environments.set_up(name, None, tmp_path)
    assert (tool.source, tool.version) == (source, version)


def load_probe(name):
    """A probe as a module; tool_side, which stands beside it, is all that it needs at first."""
    return runpy.run_path(str(checks.HERE / f"{name}_probe.py"))


def test_what_stable_diffusion_cpp_says_is_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(checks.HERE))
    probe = load_probe("sdcpp")
    names = ["a.lora_up.weight", "a.lora_down.weight", "b.lora_up.weight", "b.lora_down.weight"]
    monkeypatch.setitem(probe["lora_in"].__globals__, "tensors_of", lambda _: names)
    said = ["unused lora tensor |lora.b.up|\n"] * 2 + [
        "Only (3 / 4) LoRA tensors have been applied"
    ]
    assert probe["lora_in"](said, "") == {"keys": 4, "left": ["lora.b.up"]}
    assert probe["lora_in"](["(4 / 4) LoRA tensors have been applied"], "")["left"] == []
    assert probe["lora_in"](["load lora tensors failed"], "")["left"] == names
    lost = ["tensor 'x.y' not in model file\n", "unknown tensor 'z | f16 | 2' in model file\n"]
    found = probe["checkpoint_in"](lost, "")
    assert found == {"keys": 4, "left": ["z"], "missing": ["x.y"]}


def test_a_checkout_that_was_named_once_is_found_again(tmp_path):
    checkout, folder = tmp_path / "webui", tmp_path / environments.ENVIRONMENTS["webui"]
    (checkout / environments.CHECKOUTS["webui"]).mkdir(parents=True)
    (checkout / "CHANGELOG.md").write_text("## 1.10.1\n\n### Bug Fixes:\n", "utf-8")
    folder.mkdir()
    (folder / "ready").touch()
    assert environments.set_up("webui", checkout, tmp_path).version == "1.10.1"
    assert environments.set_up("webui", None, tmp_path).source == checkout


@pytest.mark.slow
@pytest.mark.parametrize("name", environments.ENVIRONMENTS)
def test_the_tool_itself_reads_what_we_write(name):
    place = environments.PLACE
    if not (place / environments.ENVIRONMENTS[name] / "ready").is_file():
        pytest.skip(f"{name} is not set up in {place.relative_to(ROOT)}: `make interop` does it")
    try:
        tool = environments.set_up(name, None)
    except BadInput as error:
        pytest.skip(f"{name}: {error}")
    told = checks.checked(checks.QUICK[name], tool)
    for base in told.values() if name != "lycoris" else ():
        assert "failed" not in base and base["loras"]["kohya"]["error"] < table.ROUNDING
        if name in ("comfyui", "forge", "stable-diffusion.cpp"):
            assert not base["checkpoint"]["left"] and not base["checkpoint"]["missing"]
        if name in ("comfyui", "forge", "invokeai"):  # others pass layers outside of blocks over
            assert not base["loras"]["kohya"]["left"]
    for kind in told.get("kinds", {}).values():
        assert kind["error"] < table.ROUNDING
