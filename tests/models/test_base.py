import gc
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from lib.config.presets import PRESETS
from lib.config.settings import Settings
from lib.evaluation.fidelity import EvaluationPlan
from lib.files.errors import BadInput
from lib.models.base import load_base
from lib.models.base_files import locate
from lib.models.devices import fast_arithmetic, map_side_by_side, out_of_memory
from lib.models.families import FAMILIES, Family, family_of, preset
from lib.models.pipeline import read_pipeline
from lib.step.methods import trainable, tuned_parts


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_base(tiny_folder)


def test_the_tokenizer_keeps_rare_words_whole_and_splits_the_unknown(tiny):
    assert tiny.tokens("zwx") == ["zwx"] and len(tiny.tokens("flibbertigibbet")) > 3


@pytest.mark.parametrize(
    "noun, identifier, words",
    [
        ("robot", "", ["identifier"]),
        ("", "zwx", ["class noun"]),
        ("robot", "robot", ["both"]),
        ("robot", "q" * 40, ["identifier", "pieces", "shorter"]),
        ("猫" * 12, "zwx", ["class noun", "shorter"]),
    ],
)
def test_words_the_tokenizer_cannot_hold_are_refused(tiny, noun, identifier, words):
    with pytest.raises(BadInput) as caught:
        tiny.check_words(noun, identifier)
    assert all(w in str(caught.value) for w in words) and "\n" not in str(caught.value)


def test_a_picture_depends_on_its_prompt_and_seed_alone(tiny):
    alone = tiny.generate(["a robot"], [5], steps=3)[0]
    among = tiny.generate(["a cat", "a robot", "a robot"], [1, 5, 6], steps=3)
    difference = np.abs(np.asarray(alone, int) - np.asarray(among[1], int))
    assert difference.max() <= 8, "only bf16 rounding may differ"
    assert np.abs(np.asarray(among[1], int) - np.asarray(among[2], int)).mean() > 2


@pytest.fixture
def threads():
    """Gives torch so many threads, for the time of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_passes_side_by_side_draw_what_they_draw_one_after_the_other(tiny, threads, monkeypatch):
    passes, at_once, seen = [], [], []
    draw = type(tiny)._draw

    def watched(self, words, seeds, options):
        passes.append(threading.get_ident())
        at_once.append(torch.get_num_threads())
        return draw(self, words, seeds, options)

    reads, read = [], type(tiny.pipe.tokenizer).__call__

    def reading(self, *args, **kwargs):
        reads.append(threading.get_ident())
        return read(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny), "_draw", watched)
    monkeypatch.setattr(type(tiny.pipe.tokenizer), "__call__", reading)
    words, seeds = [f"a {noun}" for noun in ("robot", "cat") for _ in range(14)], range(28)
    found = {}
    for count in (1, 3):
        threads(count)
        images = tiny.generate(words, seeds, steps=2, progress=lambda *done: seen.append(done))
        found[count] = [image.tobytes() for image in images]
        assert torch.get_num_threads() == count, "given back"
    assert found[1] == found[3] and len(set(found[1])) == 28
    assert seen == [(8, 28), (16, 28), (24, 28), (28, 28)] * 2, "in their order"
    here = threading.get_ident()
    assert at_once == [1, 1, 1, 1, 1, 1, 1, 3] and passes[-1] == here, "the last alone, by all"
    assert here not in passes[4:7]
    assert set(reads) == {here}, "a tokenizer's settings are changed by each text"


@pytest.mark.parametrize(
    "items, at_once, shared", [(1, 2, 0), (2, 2, 2), (3, 2, 2), (7, 8, 7), (4, 8, 0), (9, 1, 0)]
)
def test_what_would_leave_half_of_the_threads_idle_is_done_one_by_one(items, at_once, shared):
    here = threading.get_ident()
    found = list(map_side_by_side(lambda k: (k, threading.get_ident()), range(items), at_once))
    assert [k for k, _ in found] == list(range(items))
    assert [thread != here for _, thread in found] == [k < shared for k in range(items)]


def test_with_an_adapters_weight_passes_come_one_after_the_other(tiny, threads, monkeypatch):
    """It is set in layers that all passes share."""
    threads(3)
    drawing = []
    draw = type(tiny)._draw

    def watched(self, words, seeds, options):
        drawing.append(threading.get_ident())
        return draw(self, words, seeds, options)

    monkeypatch.setattr(type(tiny), "_draw", watched)
    tiny.generate(["a robot"] * 20, range(20), steps=1, adapter_weight=0.5)
    assert drawing == [threading.get_ident()] * 3


def test_a_pass_that_fails_ends_all_and_gives_the_threads_back(tiny, threads, monkeypatch):
    threads(2)
    done = []

    def broken(self, words, seeds, options):
        done.append(seeds[0])
        raise RuntimeError(f"pass {seeds[0]}")

    monkeypatch.setattr(type(tiny), "_draw", broken)
    with pytest.raises(RuntimeError, match="pass 0"):
        tiny.generate(["a robot"] * 80, range(80), steps=1)
    assert torch.get_num_threads() == 2 and 0 in done


def test_a_base_draws_in_as_many_steps_as_it_needs_unless_told(tiny, monkeypatch):
    assert tiny.sample_steps == PRESETS["lora", "pocket"]["sample_steps"] == 8, (
        "64 pixels, as the pocket base"
    )
    own, named, same = (tiny.generate(["a robot"], [5], steps=n)[0] for n in (0, 2, 8))
    assert own.tobytes() == same.tobytes() != named.tobytes()
    plan = EvaluationPlan().on(tiny)
    assert plan.sampling["steps"] == 8 and EvaluationPlan(steps=3).on(tiny).steps == 3
    monkeypatch.setattr(tiny, "family", Family())
    assert tiny.sample_steps == Settings.sample_steps == 25


def test_a_base_draws_at_its_own_guidance_unless_told(tiny, monkeypatch):
    assert tiny.guidance == PRESETS["dreambooth", "pocket"]["guidance"] == 2.0
    own, named, same = (
        tiny.generate(["a robot"], [5], steps=3, guidance=g)[0] for g in (0, 6.0, 2.0)
    )
    assert own.tobytes() == same.tobytes() != named.tobytes()
    assert EvaluationPlan().on(tiny).guidance == 2.0
    assert EvaluationPlan(guidance=6.0).on(tiny).sampling["guidance"] == 6.0
    own = {"sd1": 7.5, "sd2": 7.5, "sdxl": 5.0}
    for family in FAMILIES:
        monkeypatch.setattr(tiny, "family", family())
        assert tiny.guidance == own.get(family.name, 2.0)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_that_only_draws_draws_the_same_pictures(tiny_folder, adapter):
    base = load_base(tiny_folder, "cpu")
    base.fast = "bf16"  # as on a processor that has it
    if adapter:
        trainable(base, preset("lora", data="-", output="-", targets="all"))
        for p in base.denoiser.parameters():
            p.data = (
                p.data.float() + 0.01 * p.requires_grad
            )  # B starts at zero: let the adapter do something
    before = base.generate(["a robot", "a cat"], [5, 6], steps=3)
    after = base.cast_for_sampling().generate(["a robot", "a cat"], [5, 6], steps=3)
    assert {
        layer.weight.dtype
        for layer in base.denoiser.modules()
        if isinstance(layer, torch.nn.Conv2d)
    } == {torch.bfloat16}
    assert all(np.array_equal(one, two) for one, two in zip(before, after)), "to the pixel"


def test_latents_are_what_the_pipeline_decodes(tiny):
    image = tiny.generate(["a robot"], [0], steps=2)[0]
    mean, std = tiny.encode_images([image, image.resize((128, 128))])
    assert mean.shape == (2, 12, 16, 16) and (std > 0).all()
    again = tiny.pipe.vae.encode(tiny.pipe.image_processor.preprocess([image])).latent_dist.mean
    assert torch.allclose(mean[:1], again, atol=1e-5)


def test_large_pictures_pass_the_vae_in_portions_and_small_ones_as_ever(tiny, monkeypatch):
    """At the pocket's 64 pixels eight pass at once, as they always did, bit for bit; where fewer
    may, the numbers stay the same.
    """
    pictures = [Image.effect_noise((64, 64), 20 * k + 10).convert("RGB") for k in range(10)]
    whole = tiny.pipe.image_processor.preprocess(pictures).split(8)
    with torch.no_grad():
        known = (
            torch.cat([tiny.pipe.vae.encode(part).latent_dist.mean for part in whole]).float()
            * tiny.pipe.vae.config.scaling_factor
        )
    assert torch.equal(tiny.encode_images(pictures)[0], known)
    drawn = tiny.generate(["a robot"] * 3, [1, 2, 3], steps=2)
    sizes = []
    encode, decode = tiny.pipe.vae.encode, tiny.pipe.vae.decode
    monkeypatch.setattr(
        tiny.pipe.vae, "encode", lambda x, **k: (sizes.append(len(x)), encode(x, **k))[1]
    )
    monkeypatch.setattr(
        tiny.pipe.vae, "decode", lambda x, **k: (sizes.append(len(x)), decode(x, **k))[1]
    )
    monkeypatch.setattr("lib.models.base.VAE_PIXELS", 2 * 64**2)
    assert torch.allclose(tiny.encode_images(pictures)[0], known, atol=1e-5)
    again = tiny.generate(["a robot"] * 3, [1, 2, 3], steps=2)
    assert sizes == [2] * 5 + [2, 1]
    assert (
        max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(drawn, again))
        <= 8
    ), "only bf16 rounding may differ"


@pytest.mark.parametrize("name", ["pockett", "./nowhere", "/tmp", "a/b/c"])
def test_an_unknown_base_is_refused_by_name(name):
    with pytest.raises(BadInput) as caught:
        locate(name)
    assert name.strip("./") in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_model_that_is_not_here_is_refused_without_a_network():
    with pytest.raises(BadInput, match="WORKBENCH_DOWNLOAD"):
        load_base("nobody/nothing")


def test_the_denoiser_comes_to_the_device_when_it_is_first_needed(tiny_folder):
    base = load_base(
        tiny_folder, "meta"
    )  # stands in for a card: another device than the one it is read to
    base.check_words("robot", "zwx")
    assert (
        base.resolution == 64
        and base.family.name == "pocket"
        and tuned_parts(base, preset("lora", data="-", output="-"))
    )
    assert (
        base.pipe.unet.device.type == "cpu"
        and base.pipe.vae.device.type == base.pipe.text_encoder.device.type == "meta"
    )
    with torch.inference_mode():
        assert base.denoiser.device.type == "meta"
    assert not any(p.is_inference() for p in base.denoiser.parameters()), "it can still be trained"


def test_memory_that_runs_out_while_a_part_is_loaded_is_told_and_the_part_comes_next_time(
    tiny_folder, monkeypatch
):
    import diffusers

    base = load_base(tiny_folder, "cpu")
    wanted = base.generate(["a robot"], [0], 1)[0].tobytes()
    base.offload()

    def none_left(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", none_left)
        with pytest.raises(
            BadInput, match="Memory ran out while base model .* was loaded: free memory"
        ) as caught:
            base.generate(["a robot"], [0], 1)
        assert out_of_memory(caught.value)
        base.offload()
    assert base.generate(["a robot"], [0], 1)[0].tobytes() == wanted


def test_offloading_costs_nothing_where_nothing_is_left_to_free(tiny_folder, monkeypatch):
    base = load_base(tiny_folder, "cpu")
    base.offload()
    for part in (base.pipe.vae, base.pipe.text_encoder):
        monkeypatch.setattr(part, "to", None)
    base.offload()


@pytest.mark.parametrize(
    "capability, fast",
    [
        ((6, 0), "fp32"),
        ((6, 1), "fp32"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((8, 9), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_turing_is_fast_in_fp16_pascal_in_neither_and_ampere_on_in_bf16(
    monkeypatch, capability, fast
):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation: capability >= (8, 0)
    )
    assert fast_arithmetic(torch.device("cuda")) == fast


@pytest.mark.parametrize(
    "fast, asked, dtype",
    [
        ("bf16", None, "bfloat16"),
        ("fp16", None, "float16"),
        ("fp32", None, "float32"),
        ("bf16", torch.float32, "float32"),
    ],
)
def test_a_card_gets_the_weights_that_it_multiplies_fast(
    tiny_folder, monkeypatch, fast, asked, dtype
):
    monkeypatch.setattr("lib.models.pipeline.fast_arithmetic", lambda device: fast)
    path = Path(tiny_folder)
    pipe = read_pipeline(path, family_of(path), torch.device("cuda"), ["unet"], asked)
    assert {str(p.dtype) for p in pipe.unet.parameters()} == {
        f"torch.{dtype}"
    } and pipe.unet.device.type == "cpu"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_that_lacks_a_weight_is_refused_and_never_made_up(tiny_folder, tmp_path, part):
    """transformers draws a missing weight at random, with a warning that nobody sees among the
    others.
    """
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    lost = next(
        name
        for name in weights
        if name.endswith((".q_proj.weight", "decoder.conv_in.weight", "conv_out.weight"))
    )
    del weights[lost]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        BadInput, match=f"it lacks 1 weights such as {part}\\..*{lost.removeprefix('text_model.')}"
    ):
        load_base(str(folder))


def test_the_stack_comes_without_the_compiler_and_leaves_it_to_others():
    code = """
import os, sys
from lib.models.pipeline import import_diffusers
import_diffusers()
import torch
assert "bitsandbytes" in sys.modules and "torch._inductor.compile_fx" not in sys.modules
seen = []
def backend(graph, inputs):
    seen.append(graph)
    return graph.forward
torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
assert len(seen) == 1, "a function that a reader compiles is compiled"
print(os.environ.get("TORCHDYNAMO_DISABLE"))
"""
    for said in (None, "0"):
        environment = {k: v for k, v in os.environ.items() if k != "TORCHDYNAMO_DISABLE"} | (
            {"TORCHDYNAMO_DISABLE": said} if said else {}
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout.strip() == str(said), done.stderr


def test_the_first_base_model_can_leave_memory(tiny_folder):
    code = """
import gc, sys, weakref
from lib.models.base import load_base
base = load_base(sys.argv[1])
assert gc.get_freeze_count() > 100_000
denoiser = weakref.ref(base.stored_denoiser)
base.stored_denoiser = None
gc.collect()
print(denoiser() is None)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_folder], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "True", (
        done.stderr
        or "what importing left behind holds the callers of that time, and all they load"
    )


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_afterwards_as_it_was_also_where_a_base_is_refused(
    tiny_folder, monkeypatch, on
):
    def refuse(*_, **__):
        assert not gc.isenabled()
        raise BadInput("no")

    try:
        (gc.enable if on else gc.disable)()
        load_base(tiny_folder)
        assert gc.isenabled() is on and gc.get_freeze_count() > 100_000, (
            "what was imported is passed over"
        )
        monkeypatch.setattr("lib.models.pipeline.import_diffusers", refuse)
        with pytest.raises(BadInput):
            load_base(tiny_folder)
        assert gc.isenabled() is on
    finally:
        gc.enable()
