"""Bases that come as one file: what they predict, whether they are whole, and everything that a
folder can do done with them too.
"""

import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from adapters import FAMILIES, adapter_for, tuned_run, written
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib.__main__ import main
from lib.convert.exporting import export_lora
from lib.convert.interchange import export, extract, library_loader, picture_difference
from lib.convert.merging import merge
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.files.paths import ROOT
from lib.models import base as base_module
from lib.models.base import load_base
from lib.models.base_weights import open_base_weights
from lib.models.families import preset
from lib.models.pipeline import predicts_velocity
from lib.models.single_file import stated_prediction
from lib.step.training_step import Step
from lib.training.loop import train

JACKET = ROOT / "data" / "adapters" / "clothing.safetensors"


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def one_file(folder, path, configs=True):
    """A tiny base as one file in fp16 (its own weights, untouched), with its configurations beside
    it.
    """
    source = written(adapter_for(folder), path.parent / f"{path.stem}_a.safetensors")
    merge(source, "checkpoint", path, base=str(folder), weights=[0.0])
    if configs:
        beside(folder, path)
    return path


def beside(folder, path):
    shutil.copytree(
        folder,
        path.with_suffix(""),
        ignore=shutil.ignore_patterns("*.safetensors", "workbench.json"),
    )


def changed(path, more=None, without=None, header=None):
    """Write a file again, with `more` tensors, without the keys that hold a text, or with another
    header.
    """
    tensors = {k: v for k, v in load_file(path).items() if not without or without not in k}
    save_file(
        tensors | (more or {}),
        path,
        {k: v for k, v in (metadata(path) if header is None else header).items()},
    )
    return path


# --- what it predicts


@pytest.mark.parametrize(
    "keys, header, said",
    [
        ([], {}, {}),
        ([], {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
        ([], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
        ([], {"modelspec.predict_key": "v"}, {"prediction_type": "v_prediction"}),
        (["v_pred"], {}, {"prediction_type": "v_prediction"}),
        (["v_pred"], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "v_prediction"}),
        (
            ["v_pred", "ztsnr"],
            {},
            {
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
        ),
        (["ztsnr"], {}, {}),
        (["ztsnr"], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
    ],
)
def test_a_file_says_what_it_predicts_by_key_and_else_by_header(keys, header, said, tmp_path):
    save_file(
        {"w": torch.ones(1)} | {k: torch.zeros(0) for k in keys}, tmp_path / "x.safetensors", header
    )
    assert stated_prediction(tmp_path / "x.safetensors") == said


def test_sdxl_of_velocity_keeps_its_marks_through_every_form_and_trains_and_draws_by_them(
    tiny, tmp_path
):  # noqa: F811

    folder = Path(shutil.copytree(tiny("sdxl")[0], tmp_path / "folder"))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    plain = one_file(folder, tmp_path / "plain.safetensors")
    assert (
        not {"v_pred", "ztsnr"} & load_file(plain).keys()
        and metadata(plain)["modelspec.prediction_type"] == "epsilon"
    )
    write_json(scheduler, read_json(scheduler) | {"prediction_type": "v_prediction"})
    assert (
        "v_pred" in (found := load_file(one_file(folder, tmp_path / "v.safetensors")))
        and "ztsnr" not in found
    )
    write_json(scheduler, read_json(scheduler) | {"rescale_betas_zero_snr": True})
    one = one_file(folder, tmp_path / "one.safetensors", configs=False)
    assert [
        found.numel() for key, found in load_file(one).items() if key in ("v_pred", "ztsnr")
    ] == [0, 0]
    assert metadata(one)["modelspec.prediction_type"] == "v"
    beside(tiny("sdxl")[0], one)  # SDXL's own configurations, which predict noise
    base = load_base(str(one))
    step = Step(base, preset("lora", str(one), data="-", output="-"))
    # The sampler's last one is diffusers' smallest above 0; the step's is 0, and
    # lib/evaluation/drift.py makes its own as the step does.
    for one_of, last in ((base.pipe.scheduler, 2**-24), (step.scheduler, 0)):
        assert (
            one_of.config.prediction_type == "v_prediction"
            and one_of.alphas_cumprod[-1] == last < one_of.alphas_cumprod[-2]
        )
    base.pipe.scheduler.set_timesteps(4)
    assert base.pipe.scheduler.timesteps[0] == 999, (
        "zero terminal SNR is nothing to a sampler that never begins there"
    )
    plain = load_base(str(plain)).pipe.scheduler
    assert plain.config.prediction_type == "epsilon" and plain.alphas_cumprod[-1] > 0
    again = merge(
        tmp_path / "one_a.safetensors",
        "diffusers",
        tmp_path / "again",
        base=str(one),
        weights=[0.0],
    ).path
    config = load_base(str(again)).pipe.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr, config.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )
    assert {"v_pred", "ztsnr"} < load_file(one_file(again, tmp_path / "twice.safetensors")).keys()


def test_a_file_of_2x_that_says_nothing_is_called_neither_and_a_folder_of_it_is_measured(
    tiny, tmp_path
):  # noqa: F811
    folder, *_ = tiny("sd2")
    one = changed(one_file(folder, tmp_path / "one.safetensors"), header={})
    source = tmp_path / "one_a.safetensors"
    said = metadata(export_lora(source, "kohya", tmp_path / "k.safetensors", base=str(one)).path)
    assert (
        not {"modelspec.prediction_type", "modelspec.architecture", "ss_base_model_version"}
        & said.keys()
        and said["ss_v2"] == "True"
    )
    base = load_base(str(one))
    measured = base.pipe.scheduler.config.prediction_type
    assert measured == ("v_prediction" if predicts_velocity(base) else "epsilon")
    for beside_it in (
        "epsilon",
        "v_prediction",
    ):  # what the family's configuration says is of another model
        scheduler = one.with_suffix("") / "scheduler" / "scheduler_config.json"
        write_json(scheduler, read_json(scheduler) | {"prediction_type": beside_it})
        assert open_base_weights(str(one)).prediction is None
        made = merge(source, "diffusers", tmp_path / "folder", base=str(one)).path
        assert open_base_weights(str(made)).prediction == measured
    said = changed(one, header={"modelspec.prediction_type": "v"})
    assert open_base_weights(str(said)).architecture == ("stable-diffusion-v2-768-v", "sd_v2_v")


# --- a base like any other


def test_the_pocket_base_as_one_file_is_the_pocket_base(tmp_path, capsys):
    """One resnet a block, fp16 for fp32: read as it is, known as the same model, exported to,
    merged, written as a folder and drawn.
    """
    one = tmp_path / "one.safetensors"
    merge(JACKET, "checkpoint", one, base="pocket", weights=[0.0])
    here, there = open_base_weights(str(one)), open_base_weights("pocket")
    assert (
        here.layers == there.layers == 1
        and here.shapes == there.shapes
        and here.prediction == "v_prediction"
    )
    assert here.fingerprint() == there.fingerprint(), "the jacket was trained on it"
    assert (
        main(
            [
                "export",
                str(JACKET),
                "--to",
                "diffusers",
                "--out",
                str(tmp_path / "jacket.safetensors"),
                "--base",
                str(one),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "212 of 212 keys" in said
        and "largest difference 0 of 255" in said
        and "not read back" not in said
    )
    assert (
        main(
            [
                "merge",
                str(JACKET),
                "--to",
                "diffusers",
                "--out",
                str(tmp_path / "folder"),
                "--base",
                str(one),
            ]
        )
        == 0
    )
    assert "the same for the same seeds" in capsys.readouterr().out
    merge(JACKET, "checkpoint", tmp_path / "whole.safetensors", base=str(one))
    assert (
        picture_difference(
            str(one),
            library_loader(tmp_path / "folder"),
            library_loader(tmp_path / "whole.safetensors"),
            steps=2,
        )
        == 0
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_known_as_the_same_in_fp32_and_fp16_as_folder_and_as_file(
    tiny, family, tmp_path
):  # noqa: F811
    folder, *_ = tiny(family)
    known = open_base_weights(str(folder)).fingerprint()
    assert (
        open_base_weights(
            str(one_file(folder, tmp_path / "one.safetensors", configs=False))
        ).fingerprint()
        == known
    )
    half = Path(shutil.copytree(folder, tmp_path / "half"))
    unet = half / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(unet)
    for dtype, same in ((torch.float16, True), (torch.float64, True), (torch.bfloat16, False)):
        save_file({k: v.to(dtype) for k, v in weights.items()}, unet, {"format": "pt"})
        assert (open_base_weights(str(half)).fingerprint() == known) is same
    weights["conv_in.bias"][0] += 0.01
    save_file(weights, unet, {"format": "pt"})
    assert open_base_weights(str(half)).fingerprint() != known


def test_a_base_in_bf16_is_known_by_its_numbers(tiny, tmp_path):  # noqa: F811
    half = Path(shutil.copytree(tiny("sd1")[0], tmp_path / "half"))
    unet = half / "unet" / "diffusion_pytorch_model.safetensors"
    coarse, found = {k: v.bfloat16() for k, v in load_file(unet).items()}, []
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        save_file({k: v.to(dtype) for k, v in coarse.items()}, unet, {"format": "pt"})
        found.append(open_base_weights(str(half)).fingerprint())
    assert len(set(found)) == 1, "the same numbers in any type"


def test_without_configurations_a_single_file_says_where_to_put_them(tiny, tmp_path):  # noqa: F811
    from lib.convert.composition import mix

    folder, *_ = tiny("sd1")
    one = one_file(folder, tmp_path / "one.safetensors", configs=False)
    source = tmp_path / "one_a.safetensors"
    for what in (
        lambda: merge(source, "diffusers", tmp_path / "folder", base=str(one)),
        lambda: mix({"a": source}, base=str(one)),
    ):
        with pytest.raises(BadInput, match=re.escape(f"into {tmp_path / 'one'}/")) as error:
            what()
        assert "\n" not in str(error.value) and not (tmp_path / "folder").exists()
    assert not export_lora(source, "kohya", tmp_path / "k.safetensors", base=str(one)).read_back
    beside(folder, one)
    assert export_lora(source, "kohya", tmp_path / "k.safetensors", base=str(one)).read_back
    assert mix({"a": source}, base=str(one)).layers.keys() == {"unet", "text_encoder"}


@pytest.mark.parametrize("family", FAMILIES)
# noqa: F811
def test_a_folder_written_from_a_single_file_loads_with_its_weights(tiny, family, tmp_path):
    import diffusers

    folder, *_ = tiny(family)
    one = changed(
        one_file(folder, tmp_path / "one.safetensors"),
        {"model.diffusion_model.x": torch.ones(1)},
        header={"modelspec.prediction_type": "epsilon"},
    )
    index = one.with_suffix("") / "model_index.json"
    write_json(
        index, read_json(index) | {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    )  # which configurations come without
    made = merge(tmp_path / "one_a.safetensors", "diffusers", tmp_path / "made", base=str(one)).path
    wanted = merge(
        tmp_path / "one_a.safetensors", "diffusers", tmp_path / "wanted", base=str(folder)
    ).path
    pipes = [diffusers.DiffusionPipeline.from_pretrained(path) for path in (made, wanted)]
    for part in open_base_weights(str(folder)).shapes:
        ours, theirs = (getattr(pipe, part).state_dict() for pipe in pipes)
        assert ours.keys() == theirs.keys() and all(
            torch.allclose(ours[k], theirs[k], atol=2e-3) for k in ours
        ), part


def test_2x_s_last_text_layer_which_diffusers_drops_is_kept_in_files_and_hinders_no_run(
    tiny, tmp_path, dataset
):  # noqa: F811
    folder, *_ = tiny("sd2")
    one = one_file(folder, tmp_path / "one.safetensors")
    tensors, block = load_file(one), "cond_stage_model.model.transformer.resblocks."
    last = {
        k.replace(f"{block}1.", f"{block}23."): v.clone()
        for k, v in tensors.items()
        if k.startswith(f"{block}1.")
    }
    changed(one, last | {"cond_stage_model.model.text_projection": torch.ones(1024, 1024).half()})
    run = tuned_run(folder, tmp_path / "run", dataset, ("unet", "text_encoder"))
    made = load_file(merge(run, "checkpoint", tmp_path / "made.safetensors", base=str(one)).path)
    assert last.keys() < made.keys() and "cond_stage_model.model.text_projection" in made
    whole = load_file(
        merge(run, "diffusers", tmp_path / "made", base=str(one)).path
        / "text_encoder"
        / "model.safetensors"
    )
    assert whole.keys() == open_base_weights(str(folder)).shapes["text_encoder"].keys()


# --- whole or not


# noqa: F811
def test_keys_that_are_nobodys_are_listed_once_and_what_tools_leave_is_not(tiny, tmp_path, capsys):
    one = one_file(tiny("sd1")[0], tmp_path / "one.safetensors")
    shapes, left = open_base_weights(str(one)).shapes, torch.zeros(1)
    harmless = (
        "model_ema.decay",
        "model_ema.diffusion_modelinput_blocks00weight",
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_log_variance_clipped",
        "logvar",
        "v_pred",
        "cond_stage_model.model.logit_scale",
        "denoiser.sigmas",
        "ztsnr",
        "first_stage_model.loss.logvar",
        "global_step",
        "scale_factor",
    )
    changed(one, {k: left.clone() for k in harmless})
    assert open_base_weights(str(one)).shapes == shapes and capsys.readouterr().out == ""
    unknown = (
        "control_model.zero_convs.0.0.weight",
        "model.diffusion_model.zzz.weight",
        "first_stage_model.zzz.weight",
        "cond_stage_model.transformer.vision_model.zzz.weight",
        "cond_stage_model.model.zzz",
    )
    changed(one, {k: left.clone() for k in unknown})
    for _ in range(2):
        assert open_base_weights(str(one)).shapes == shapes
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "5 of its keys" in said[0] and "and 3 more" in said[0]
    assert all(key in said[0] for key in sorted(unknown)[:2])


# noqa: F811
def test_a_file_that_lacks_its_vae_or_a_weight_is_refused_with_the_remedy(tiny, tmp_path):
    folder, *_ = tiny("sd1")
    whole = one_file(folder, tmp_path / "one.safetensors").read_bytes()
    for without, said in (
        ("first_stage_model.", "holds no VAE.*get the file with its VAE"),
        (
            "middle_block.0.in_layers.2.bias",
            "unet 1 weights are missing.*mid_block.resnets.0.conv1.bias.*the whole file",
        ),
        ("first_stage_model.decoder.conv_out.weight", "vae 1 weights are missing"),
    ):
        (tmp_path / "one.safetensors").write_bytes(whole)
        one = changed(tmp_path / "one.safetensors", without=without)
        for what in (
            (open_base_weights, load_base)
            if without == "first_stage_model."
            else (open_base_weights,)
        ):
            with pytest.raises(BadInput, match=said) as error:
                what(str(one))
            assert "\n" not in str(error.value)
    (tmp_path / "one.safetensors").write_bytes(whole)
    changed(one, {"model.diffusion_model.out.2.bias": torch.zeros(9)})
    with pytest.raises(
        BadInput,
        match="unet 0 weights are missing and 1 of another shape.*conv_out.bias.*configurations",
    ):
        open_base_weights(str(one))


# --- what a run was trained on


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_run_is_refused_on_another_base_until_asked_for(make, method, tmp_path):
    run, other = train(make(method, steps=1)), tmp_path / "other"
    mine = read_json(run / "settings.json")["base"]
    assert (
        read_json(run / "metrics.json")["base_fingerprint"] == open_base_weights(mine).fingerprint()
    )
    shutil.copytree(mine, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v + 0.01 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    same = Path(shutil.copytree(mine, tmp_path / "moved"))
    out = tmp_path / "out.safetensors"
    ways = [lambda base, **o: export(str(run), "checkpoint", out, base=str(base), **o)]
    if method == "lora":
        ways.append(lambda base, **o: export(str(run), "kohya", out, base=str(base), **o))
    else:

        def extracted(base, **options):
            adapter, _ = extract(str(run), 2, base=str(base), **options)
            return export(adapter, "kohya", out, base=str(base), **options)

        ways.append(extracted)
    for way in ways:
        with pytest.raises(BadInput, match="other weights") as error:
            way(other)
        assert (
            str(mine) in str(error.value)
            and str(other) in str(error.value)
            and "--other-base" in str(error.value)
        )
        assert not out.exists()
        assert way(same), "it is known by its weights, not by its name"
        way(other, other_base=True)
        out.unlink()
    metrics = read_json(run / "metrics.json")
    (run / "metrics.json").write_text(
        json.dumps({k: v for k, v in metrics.items() if k != "base_fingerprint"})
    )
    for way in ways:
        way(other)  # an older run says nothing
        out.unlink()


# --- what a newcomer is told


def test_what_the_docstring_names_for_a_new_family_is_there():
    named = re.findall(r"`lib\.([\w.]+)\.(\w+)`", base_module.__doc__)
    assert {module for module, _ in named} == {
        "models.base_files",
        "models.layer_names",
        "models.single_file",
    }
    assert all(hasattr(import_module(f"lib.{module}"), name) for module, name in named)
    files = re.findall(r"(?:lib|tests)/[\w/]+\.py", base_module.__doc__)
    assert len(files) > 5 and all((ROOT / file).is_file() for file in files)
