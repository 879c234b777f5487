"""Each family, tiny and random, through loading, training by both methods, saving, loading and
drawing.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from original import write_original
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import SIDE, make_tiny

from lib.dataset.captions import Subject, class_caption
from lib.dataset.preparation import prepare
from lib.files.errors import BadInput
from lib.models.base import Base, load_base
from lib.models.families import family_of, preset
from lib.models.pipeline import predicts_velocity
from lib.step.methods import trainable
from lib.step.run_weights import load_run, weight_bytes
from lib.step.training_step import Step
from lib.training.loop import train

FAMILIES = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A tiny base of each family, whose names say nothing: it must be read from the files."""
    place = tmp_path_factory.mktemp("bases")
    return {
        family: make_tiny(family, place / name)
        for family, name in zip(FAMILIES, ("sdxl-turbo", "v1-5", "sd2-pocket"))
    }


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """The example character as a prepared data set without class images."""
    return str(
        prepare(
            ROOT / "data" / "subjects" / "character", tmp_path_factory.mktemp("bare") / "data"
        ).root
    )


@pytest.fixture
def make(folders, dataset, tmp_path):
    def make(family="sd1", method="lora", **changes):
        values = dict(
            base=folders[family],
            data=str(dataset.root),
            output=str(tmp_path / f"{family}-{method}"),
            steps=4,
            batch_size=2,
            sample_every=0,
            learning_rate=1e-2,
            precision="fp32",
            warmup=0,
        )
        return preset(method, **(values | changes))

    return make


def predict(base, text="a zwx robot"):
    x = torch.randn(
        1, base.denoiser.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        return base.predict(x, torch.tensor([400]), base.conditions([text])).float()


def sentence(caught, *words):
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_is_read_from_the_files(folders, family):
    assert family_of(folders[family]).name == family == load_base(folders[family]).family.name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_conditions_are_those_of_the_pipeline(folders, family):
    base = load_base(folders[family])
    told = base.conditions(
        ["a red robot", "a cat"], [(480, 640, 0, 0, 64, 64), (64, 64, 0, 0, 64, 64)]
    )
    with torch.no_grad():
        theirs = base.pipe.encode_prompt(
            ["a red robot", "a cat"],
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    assert torch.equal(told["encoder_hidden_states"], theirs[0])
    if family == "sdxl":
        added = told["added_cond_kwargs"]
        assert torch.equal(added["text_embeds"], theirs[2])
        width = base.pipe.text_encoder_2.config.projection_dim
        ids = base.pipe._get_add_time_ids((480, 640), (0, 0), (SIDE, SIDE), torch.float32, width)
        assert torch.equal(added["time_ids"][:1], ids), (
            "height before width: as it was, crop, as it is drawn"
        )
    raw = base.conditions(
        ["a red robot", "a cat"], [(480, 640, 0, 0, 64, 64), (64, 64, 0, 0, 64, 64)], encoded=False
    )
    x, when = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(base.predict(x, when, told), base.predict(x, when, raw)), (
            "token ids must lead to the same"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_base_samples_latents_without_clipping_them_and_as_it_was_trained(folders, family):
    config = load_base(folders[family]).pipe.scheduler.config
    assert not config.thresholding and config.prediction_type == (
        "v_prediction" if family == "sd2" else "epsilon"
    )


def test_the_vae_of_sdxl_works_in_fp32_where_all_else_is_bf16(folders):
    seen = []
    base = load_base(folders["sdxl"])
    base.fast = "bf16"
    base.pipe.vae.decoder.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    base.pipe.unet.register_forward_hook(lambda module, inputs, out: seen.append(out[0].dtype))
    picture = base.generate(["a robot"], [0], steps=1)[0]
    assert seen == [torch.bfloat16, torch.float32] and picture.size == (SIDE, SIDE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_run_with_text_encoders_comes_back_from_its_folder(folders, make, family, method):
    only_lora = (
        dict(prior="teacher", dora=True, targets="linear", rank=2, alpha=3.0)
        if method == "lora"
        else {}
    )
    settings = make(
        family, method, text_encoder_rate=5e-3, sample_every=4, sample_steps=1, **only_lora
    )
    base = load_base(folders[family])
    untouched = predict(base)
    words = base.conditions(["a zwx robot"])["encoder_hidden_states"]
    run = train(settings, base)
    live = predict(base)
    loaded = load_run(run, load_base(folders[family]))
    effect = (live - untouched).abs().max()
    assert (
        effect > 1e-2
        and (base.conditions(["a zwx robot"])["encoder_hidden_states"] - words).abs().max() > 1e-2
    )
    assert (live - predict(loaded)).abs().max() < 0.05 * effect, (
        "only fp16 rounding may separate the file from the model"
    )
    towers = loaded.text_encoders
    for name, tower in towers.items():
        if method == "lora":
            assert "lora" in tower.peft_config
        else:
            assert (run / name / "model.safetensors").is_file()
    found = json.loads((run / "metrics.json").read_text())
    assert found["family"] == family
    assert (
        found["file_bytes"]
        == weight_bytes(run)
        == sum(f.stat().st_size for f in run.rglob("*.safetensors"))
    )
    assert len(list((run / "samples").glob("*.png"))) == 4
    assert loaded.generate(["a zwx robot"], [0], steps=1)[0].size == (SIDE, SIDE)


@pytest.mark.parametrize(
    "method, optimizer",
    [("lora", "adamw8bit"), ("dreambooth", "adamw"), ("dreambooth", "adamw8bit")],
)
def test_text_encoders_of_sdxl_whose_last_layer_nobody_reads_train_and_resume(
    make, tmp_path, method, optimizer, monkeypatch
):
    monkeypatch.setattr(
        "lib.step.optimizer.GROUP_SIZE", 1
    )  # a piece for each weight, and so some without any gradient
    monkeypatch.setattr("lib.step.optimizer.MOST_GROUPS", 10**9)
    settings = make(
        "sdxl", method, text_encoder_rate=1e-3, sample_every=0, steps=4, optimizer=optimizer
    )
    whole = train(settings.replace(output=str(tmp_path / "whole")))
    run = train(settings, watchers=[lambda state: state.stop() if state.step == 2 else None])
    assert train(settings) == run
    for file in whole.rglob("*.safetensors"):
        one, other = (load_file(f) for f in (file, run / file.relative_to(whole)))
        assert one.keys() == other.keys() and all(
            torch.equal(one[key], other[key]) for key in one
        ), file


def test_a_lora_file_names_text_encoders_as_every_tool_does(make):
    run = train(make("sdxl", text_encoder_rate=1e-3, steps=1))
    with safe_open(run / "adapter.safetensors", "pt") as file:
        keys, metadata = list(file.keys()), json.loads(file.metadata()["lora_adapter_metadata"])
    for tower in ("text_encoder", "text_encoder_2"):
        assert f"{tower}.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in keys
        assert metadata[f"{tower}.r"] == 8
    assert sum(key.startswith("unet.") for key in keys) > 20


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_text_encoders_train_at_their_own_rate(folders, make, method):
    settings = make(method=method, text_encoder_rate=1e-4, prior_weight=0.0, clip=1000.0)
    base = load_base(folders["sd1"])
    step = Step(base, settings)
    before = [p.detach().clone() for p in step.weights]
    step(
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.tensor([5, 500]),
        base.conditions(["a", "b"], encoded=False),
    )
    own = {id(p) for p in base.denoiser.parameters()}
    moved = {True: 0.0, False: 0.0}
    for p, old in zip(step.weights, before):
        # AdamW's first step is its rate long in every weight that has a gradient, beside the decay
        # of 0.01 x rate x weight.
        rate = 1e-2 if id(p) in own else 1e-4
        moved[id(p) in own] = max(
            moved[id(p) in own], float((p.detach() - old * (1 - 1e-2 * rate)).abs().max())
        )
    assert moved[True] == pytest.approx(1e-2, rel=0.02) and moved[False] == pytest.approx(
        1e-4, rel=0.02
    )


def test_frozen_text_encoders_stay_as_they_are_and_train_nothing(folders, make):
    base = load_base(folders["sdxl"])
    chosen = {id(p) for p in trainable(base, make("sdxl", "dreambooth"))}
    assert not chosen & {id(p) for tower in base.text_encoders.values() for p in tower.parameters()}
    run = train(make("sdxl", "dreambooth", steps=1))
    assert not (run / "text_encoder").exists()


def test_a_fresh_adapter_agrees_with_its_teacher_and_needs_no_class_images(folders, make, photos):
    settings = make(
        "sd2", prior="teacher", data=photos, text_encoder_rate=1e-3, steps=4, dropout=0.0
    )
    run = train(settings)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[0]["prior_loss"] < 1e-9 < rows[-1]["prior_loss"], (
        "at first adapter on and adapter off are the same model"
    )
    with pytest.raises(BadInput, match="class images"):
        train(settings.replace(prior="images"))


def test_the_teacher_holds_the_class_in_place(make, photos):
    """With a heavy teacher the class prompt's prediction moves less than without, while the
    subject's still moves.
    """
    moved = {}
    for weight in (0.0, 10.0):
        settings = make(
            "sd1", data=photos, prior="teacher", prior_weight=weight, steps=30, learning_rate=3e-3
        )
        base = load_base(settings.base)
        before = predict(base, "a robot")
        train(settings, base)
        moved[weight] = float((predict(base, "a robot") - before).square().mean())
    assert moved[10.0] < 0.5 * moved[0.0]


def test_a_teacher_is_refused_for_dreambooth(make):
    with pytest.raises(BadInput) as caught:
        make(method="dreambooth", prior="teacher")
    sentence(caught, "teacher", "DreamBooth", "images")


@pytest.mark.parametrize(
    "kind, caption, wanted",
    [
        ("character", "a zwx robot in the snow", "a robot in the snow"),
        ("style", "a robot in space in zwx style", "a robot in space"),
        ("lighting", "a cat in ZWX light", "a cat"),
        ("pose", "a robot in zwx pose in the forest", "a robot in the forest"),
        ("character", "zwx", "robot"),
    ],
)
def test_the_teacher_is_asked_for_the_caption_without_the_identifier(kind, caption, wanted):
    assert class_caption(Subject(kind, "robot", "zwx"), caption) == wanted


def test_targets_choose_the_layers(folders, make):
    kinds = {}
    for targets in ("attention", "linear", "all"):
        base = load_base(folders["sdxl"])
        trainable(base, make("sdxl", targets=targets))
        adapted = [
            (n, m)
            for n, m in base.denoiser.named_modules()
            if hasattr(m, "lora_A") and len(m.lora_A)
        ]
        kinds[targets] = {
            (n.rsplit(".", 2)[-2] + n.rsplit(".", 1)[-1], type(m).__name__) for n, m in adapted
        }
    assert all(kind == "Linear" for _, kind in kinds["attention"] | kinds["linear"])
    assert kinds["attention"] < kinds["linear"] < kinds["all"] and any(
        kind == "Conv2d" for _, kind in kinds["all"]
    )


def test_dropout_works_in_training_alone(folders, make):
    settings = make(dropout=0.5)
    base = load_base(settings.base)
    step = Step(base, settings)
    for name, p in base.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    assert not torch.equal(predict(base), predict(base))
    step.parts.eval()
    assert torch.equal(predict(base), predict(base))


def test_resolution_rules_latents_and_pictures(make):
    settings = make("sdxl", resolution=32, sample_every=4, sample_steps=1)
    sizes = []
    base = load_base(settings.base)
    base.pipe.unet.register_forward_pre_hook(
        lambda module, inputs: sizes.append(tuple(inputs[0].shape[2:]))
    )
    run = train(settings, base)
    assert set(sizes) == {(4, 4)}
    assert load_run(run).generate(["a robot"], [0], steps=1)[0].size == (32, 32)
    for bad in (30, 44, 16):
        with pytest.raises(BadInput, match="resolution"):
            make(resolution=bad)


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_run_of_another_family_is_refused_and_both_are_named(folders, make, method):
    run = train(make("sd1", method, steps=1))
    for other in ("sd2", "sdxl"):
        with pytest.raises(BadInput) as caught:
            load_run(run, load_base(folders[other]))
        sentence(caught, "Stable Diffusion 1.x", load_base(folders[other]).family.title)
    (
        run / "metrics.json"
    ).unlink()  # a run that says nothing of its family still cannot go in by half
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_run(run, load_base())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_model_that_it_was_made_of(folders, tmp_path, family):
    base = load_base(folders[family])
    path = write_original(base.pipe, tmp_path / "model.safetensors")
    shutil.copytree(
        folders[family], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )  # configurations, no weights
    again = load_base(path)
    assert again.family.name == family and torch.allclose(predict(again), predict(base), atol=1e-5)
    one, two = (np.asarray(b.generate(["a robot"], [3], steps=2)[0], int) for b in (base, again))
    assert np.abs(one - two).max() <= 1
    latents = [b.encode_images(b.generate(["a robot"], [3], steps=2))[0] for b in (base, again)]
    assert torch.allclose(*latents, atol=1e-2)


def test_the_trained_pocket_base_comes_back_from_a_single_file_and_predicts_velocity(tmp_path):
    base = load_base()
    again = load_base(write_original(base.pipe, tmp_path / "any name.safetensors"))
    assert again.family.name == "pocket" and torch.allclose(
        predict(again), predict(base), atol=1e-4
    )
    assert predicts_velocity(again)


def test_a_model_of_noise_is_told_from_one_of_velocity():
    class Noise(Base):
        def predict(self, noisy, timesteps, conditions):
            return noisy * 0.99

    base = load_base()
    assert not predicts_velocity(Noise(base.pipe, base.family, "x", base.device, base.fast))


def test_a_single_file_s_header_says_what_it_predicts(folders, tmp_path):
    base = load_base(folders["sd1"])
    path = write_original(
        base.pipe, tmp_path / "model.safetensors", {"modelspec.prediction_type": "v"}
    )
    shutil.copytree(
        folders["sd1"], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    assert load_base(path).pipe.scheduler.config.prediction_type == "v_prediction"


def test_a_single_file_without_configurations_says_where_to_put_them(folders, tmp_path):
    path = write_original(load_base(folders["sdxl"]).pipe, tmp_path / "model.safetensors")
    with pytest.raises(BadInput) as caught:
        load_base(path)
    sentence(
        caught,
        "Stable Diffusion XL",
        "of unet, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2 and scheduler of any",
        f"into {tmp_path / 'model'}/",
        "not on this machine: set WORKBENCH_DOWNLOAD=1",
    )
    for part in (
        "unet",
        "vae",
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "scheduler",
    ):
        for file in (
            *Path(folders["sdxl"], part).glob("*.json"),
            *Path(folders["sdxl"], part).glob("*.txt"),
        ):
            (tmp_path / "model" / part).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, tmp_path / "model" / part / file.name)
    shutil.copyfile(
        Path(folders["sdxl"], "model_index.json"), tmp_path / "model" / "model_index.json"
    )
    assert load_base(path).family.name == "sdxl", "what the sentence asks for is enough"


def test_a_single_file_that_lacks_weights_is_refused(folders, tmp_path):
    path = write_original(load_base(folders["sd1"]).pipe, tmp_path / "model.safetensors")
    shutil.copytree(
        folders["sd1"], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    whole = load_file(path)
    for part in (
        "diffusion_model.middle_block.0.in_layers.2",
        "first_stage_model.decoder.conv_out",
        "layers.1.mlp.fc1",
    ):
        save_file({k: v for k, v in whole.items() if part not in k}, path)
        with pytest.raises(BadInput) as caught:
            load_base(path)
        sentence(caught, "model.safetensors", "Stable Diffusion 1.x")


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (4,), "img_in.weight": (4, 4)}, ["flux"]),
        ({"model.diffusion_model.input_blocks.0.0.weight": (4, 9, 3, 3)}, ["inpainting"]),
        ({"lora_unet_down_blocks_0_attn1_to_q.lora_down.weight": (4, 4)}, ["LoRA"]),
        ({"transformer.h.0.attn.weight": (2, 2)}, ["1 keys", "transformer.h.0"]),
    ],
)
def test_a_file_of_an_unknown_architecture_is_named(tmp_path, keys, words):
    path = tmp_path / "stable-diffusion-v1-5.safetensors"
    save_file({k: torch.zeros(shape) for k, shape in keys.items()}, path)
    with pytest.raises(BadInput) as caught:
        load_base(str(path))
    sentence(caught, *words, "Stable Diffusion 1.x")


def test_a_folder_of_an_unknown_architecture_is_named(folders, tmp_path):
    index = Path(shutil.copytree(folders["sd1"], tmp_path / "model")) / "model_index.json"
    record = json.loads(index.read_text())
    for kind, word in (
        ("FluxPipeline", "FluxPipeline"),
        (["mine", "MyPipeline"], "code of its own"),
    ):
        index.write_text(json.dumps(record | {"_class_name": kind}))
        with pytest.raises(BadInput) as caught:
            load_base(str(tmp_path / "model"))
        sentence(caught, word)
    index.write_text(json.dumps(record | {"unet": ["my_code", "MyUNet"]}))
    with pytest.raises(BadInput) as caught:
        load_base(str(tmp_path / "model"))
    sentence(caught, "unet", "code of its own")


def test_truncated_and_damaged_files_are_named(folders, tmp_path):
    path = Path(write_original(load_base(folders["sd1"]).pipe, tmp_path / "model.safetensors"))
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:100], b"", b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises(BadInput) as caught:
            load_base(str(path))
        sentence(caught, "model.safetensors", "damaged or cut short")
    model = Path(shutil.copytree(folders["sd1"], tmp_path / "folder"))
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadInput) as caught:
        load_base(str(model))
    sentence(caught, "vae", "damaged or cut short")
    weights.unlink()
    with pytest.raises(BadInput) as caught:
        load_base(str(model))
    sentence(caught, "vae", "incomplete")


def test_pickles_are_refused_with_the_safe_way(folders, tmp_path):
    for name in ("model.ckpt", "model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04N.")
        with pytest.raises(BadInput) as caught:
            load_base(str(tmp_path / name))
        sentence(caught, "pickle", ".safetensors")
    model = Path(shutil.copytree(folders["sd1"], tmp_path / "folder"))
    (model / "text_encoder" / "model.safetensors").rename(
        model / "text_encoder" / "pytorch_model.bin"
    )
    with pytest.raises(BadInput) as caught:
        load_base(str(model))
    sentence(caught, "text_encoder", "pickle", ".safetensors")


def test_presets_go_by_the_family_of_the_files(folders):
    for family, guidance, full in (("sd1", 7.5, 5e-6), ("sd2", 7.5, 5e-6), ("sdxl", 5.0, 1e-6)):
        lora, tuned = (
            preset(m, folders[family], data="d", output="o") for m in ("lora", "dreambooth")
        )
        assert (
            lora.learning_rate == 1e-4
            and lora.alpha == lora.rank == 8
            and lora.guidance == tuned.guidance == guidance
        )
        assert tuned.learning_rate == full and tuned.batch_size == 1
    with pytest.raises(BadInput, match="nowhere"):
        preset("lora", "nowhere", data="d", output="o")


def full_size(folder):
    """Stable Diffusion 1.5's own sizes but for the vocabulary, with random weights, in fp16 at
    `folder`: 2.1 GB.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    from pocket import clip

    tokenizer = clip.make_tokenizer()
    tokenizer.model_max_length = 77
    parts = {
        "unet": lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        "vae": lambda: diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        "text_encoder": lambda: CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                vocab_size=len(tokenizer),
                bos_token_id=0,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
    }
    made = {}
    for name, part in parts.items():
        with torch.device("meta"):
            model = part()
        made[name] = model.half().to_empty(device="cpu")
        # Small numbers, and quickly made, some again and again: what is computed need not look
        # like anything.
        some = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
        for p in [*made[name].parameters(), *made[name].buffers()]:
            if p.is_floating_point():
                whole, rest = divmod(p.numel(), len(some))
                p.data.copy_(torch.cat([some.half()] * whole + [some[:rest].half()]).view(p.shape))
            else:
                p.data.copy_(torch.arange(p.numel()).view(p.shape))  # the text encoder's positions
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True
    )
    diffusers.StableDiffusionPipeline(
        **made,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.mark.slow
def test_full_size_stable_diffusion_trains_saves_and_loads_a_lora(dataset, tmp_path):
    from lib.models.devices import resident_bytes

    full_size(tmp_path / "sd15")
    settings = preset(
        "lora",
        str(tmp_path / "sd15"),
        data=str(dataset.root),
        output=str(tmp_path / "run"),
        steps=1,
        rank=8,
        resolution=256,
        prior_weight=0,
        text_encoder_rate=1e-4,
        sample_every=0,
    )
    assert settings.guidance == 7.5, "the preset is Stable Diffusion 1.x's"
    run = train(settings)
    weights = load_file(run / "adapter.safetensors")
    assert (
        sum(v.numel() for k, v in weights.items() if k.startswith("unet.")) == 8 * 199_296
    )  # as published, a rank
    assert (
        sum(k.startswith("text_encoder.text_model.encoder.layers.") for k in weights) == 12 * 4 * 2
    )
    base = load_run(run)
    assert (
        set(base.denoiser.peft_config) == set(base.pipe.text_encoder.peft_config) == {"lora"}
        and base.resolution == 256
    )
    loaded = dict(base.denoiser.named_parameters())
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A"
    assert torch.allclose(
        loaded[f"{key}.lora.weight"].float(), weights[f"unet.{key}.weight"].float(), atol=1e-3
    )
    print(f"resident memory at most {resident_bytes() / 2**30:.1f} GiB")
    assert resident_bytes() < 12 * 2**30
