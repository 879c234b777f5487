"""The race with sd-scripts: both sides' commands ask for the same work, and the page prints the
file.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import kohya_race
from benchmarks.sections import OWN_README, middle, read, section

TOOL = SimpleNamespace(source=Path("/sd-scripts"))


@pytest.fixture
def ground(tmp_path):
    def of(base, resolution=64):
        made = object.__new__(kohya_race.Ground)
        made.base, made.resolution = base, resolution
        made.checkpoint, made.kohya, made.tokenizers = (tmp_path / n for n in ("a", "b", "c"))
        data = SimpleNamespace(root=tmp_path / "data")
        made.field = SimpleNamespace(base="pocket", data={"small": data})
        return made

    return of


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_theirs_has_its_savings_on_and_as_many_pictures_a_step(ground, base, method):
    words = ground(base).theirs(TOOL, method, 2, 9, Path("/out"))
    said = dict(zip(words, words[1:]))
    assert words[0] == f"/sd-scripts/{kohya_race.SCRIPTS[base, method]}"
    assert {"--cache_latents", "--sdpa"} <= set(words) and said["--mixed_precision"] == "bf16"
    assert said["--train_batch_size"] == "4" and said["--max_train_steps"] == "9"
    assert ("--network_dim" in words) == (method == "lora")
    assert ("--cache_text_encoder_outputs" in words) == (base == "sdxl")
    assert ("--fused_backward_pass" in words) == ((base, method) == ("sdxl", "dreambooth"))
    frozen = (
        "--network_train_unet_only" in words or said.get("--stop_text_encoder_training") == "-1"
    )
    assert frozen or (base, method) == ("sdxl", "dreambooth"), "whose texts are cached"


def test_ours_has_their_adapter_and_the_same_pictures(ground, tmp_path):
    words = ground("sd15").ours("lora", 2, 9, tmp_path / "run")
    assert words[:2] == ["lib", "train"]
    found = read(Path(words[2]))
    asked = {"rank": 4, "targets": "linear", "batch_size": 2, "steps": 9, "resolution": 64}
    assert asked.items() <= found.items()
    fused = read(Path(ground("sdxl").ours("dreambooth", 1, 9, tmp_path / "xl")[2]))
    assert fused["fused_backward"] and fused["weights"] == "bf16"


def test_the_page_prints_the_file():
    found = read(kohya_race.RESULTS)
    assert section(OWN_README, "kohya race") == kohya_race.figures(found)
    for row in found["rows"]:
        mine, other = (row[who]["step"] for who in ("ours", "theirs"))
        if row["faster"]["rounds"] == 1:
            assert row["faster"] == middle([other["median"] / mine["median"]])
