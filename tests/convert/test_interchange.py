"""Adapters in every form: read, written, checked against the published schemes (tests/scheme.py),
refused where they would not work.
"""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from itertools import product

import pytest
import torch
from adapters import FAMILIES, adapter_for, written
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib.convert.adapter import Adapter, kohya_tensors, read_adapter
from lib.convert.composition import mix
from lib.convert.exporting import ADAPTER_FORMS, export_lora
from lib.convert.interchange import compose
from lib.files.errors import BadInput
from lib.files.paths import ROOT
from lib.models.base_weights import open_base_weights
from lib.models.families import preset
from lib.models.layer_names import from_original, kohya_name, parse, to_original
from tests import scheme


def name_of(form, folder, stem="x"):
    return folder / (stem if form == "peft" else f"{stem}.safetensors")


# --- names


@pytest.mark.parametrize("family", FAMILIES)
def test_the_original_layout_is_the_published_one(tiny, family):
    folder, config, _ = tiny(family)
    target, published = open_base_weights(str(folder)), scheme.unet_modules(config)
    ours = {name.rpartition(".")[0] for name in target.shapes["unet"]}
    assert ours == set(published)
    for name, original in published.items():
        assert (
            to_original(name, target.layers, target.attended) == original
            and from_original(original, target.layers) == name
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_kohya_names_are_the_published_ones_and_come_back(tiny, family):
    folder, config, blocks = tiny(family)
    target, sdxl = open_base_weights(str(folder)), family == "sdxl"
    for key, (part, name) in scheme.kohya_names(config, blocks, sdxl).items():
        if name in target.layer_shapes(part):  # norms have no adapters
            assert kohya_name(part, name, sdxl, target.layers, target.attended) == key
            assert parse(f"{key}.alpha", layers=target.layers) == (part, name, "alpha")


@pytest.mark.parametrize(
    "key, part, name, role",
    [
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
            "unet",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "up",
        ),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
            "unet",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
            "down",
        ),
        (
            "unet.mid_block.attentions.0.proj_in.lora.down.weight",
            "unet",
            "mid_block.attentions.0.proj_in",
            "down",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
            "text_encoder",
            "text_model.encoder.layers.0.self_attn.q_proj",
            "up",
        ),
        (
            "text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight",
            "text_encoder",
            "text_model.encoder.layers.0.mlp.fc1",
            "down",
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
            "text_encoder",
            "text_model.encoder.layers.0.mlp.fc1",
            "up",
        ),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha",
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "alpha",
        ),
        (
            "lora_unet_output_blocks_2_2_conv.alpha",
            "unet",
            "up_blocks.0.upsamplers.0.conv",
            "alpha",
        ),
    ],
)
def test_older_and_other_spellings_are_read(key, part, name, role):
    assert parse(key) == (part, name, role)


def test_the_published_architecture_has_as_many_tensors_as_the_published_files():
    """686 of Stable Diffusion 1.5's U-Net and 1,680 of SDXL's, two for a module with a bias: what
    the scheme reader counts by is right.
    """
    sd15 = {
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["Down"],
        "up_block_types": ["Up"] + ["CrossAttnUpBlock2D"] * 3,
    }
    sdxl = {
        "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "addition_embed_type": "text_time",
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    }
    for config, tensors in ((sd15, 686), (sdxl, 1680)):
        names = scheme.unet_modules(config)
        assert 2 * len(names) - sum(n.endswith(("to_q", "to_k", "to_v")) for n in names) == tensors


# --- round trips


@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_into_every_other_and_a_reader_of_the_schemes_accepts_each(
    tiny, family, tmp_path
):
    folder, config, blocks = tiny(family)
    adapter = adapter_for(folder)
    expected = {(p, n): y.delta().flatten(1) for p, n, y in adapter}
    assert {p for p, _ in expected} == {"unet", "text_encoder"} | (
        {"text_encoder_2"} if family == "sdxl" else set()
    )
    assert any(y.down.ndim == 4 for *_, y in adapter) and all(
        y.alpha != y.rank for *_, y in adapter
    )
    first = {}
    for form in ADAPTER_FORMS:
        done = export_lora(
            written(adapter, tmp_path / "run.safetensors"),
            form,
            name_of(form, tmp_path, f"first_{form}"),
            base=str(folder),
        )
        first[form] = done.path
        assert not any(
            bad
            for tool, (_, bad) in done.readers.items()
            if tool != "Kohya" and form != "diffusers"
        ), "every key loads"
        assert not next(iter(done.readers.values()))[1], (
            f"every key loads in {next(iter(done.readers))}"
        )
    for one, other in product(ADAPTER_FORMS, ADAPTER_FORMS):
        out = export_lora(
            first[one], other, name_of(other, tmp_path, f"{one}_{other}"), base=str(folder)
        ).path
        again = read_adapter(out)
        assert {(p, n) for p, n, _ in again} == set(expected)
        for p, n, layer in again:
            was = adapter.layers[p][n]
            assert (
                torch.equal(layer.down, was.down)
                and torch.equal(layer.up, was.up)
                and layer.alpha == was.alpha
            )
        found = scheme.read(out, config, blocks, family == "sdxl")
        assert set(found) == set(expected)
        assert all(
            torch.allclose(found[where], expected[where], rtol=1e-5, atol=1e-6)
            for where in expected
        )
        assert again.metadata["workbench.identifier"] == "zwx", "the header travels along"


@pytest.mark.parametrize("family", FAMILIES)
def test_kohyas_own_tools_leave_layers_outside_of_blocks_aside_and_the_export_says_which(
    tiny, family, tmp_path
):
    folder, config, blocks = tiny(family)
    done = export_lora(
        written(adapter_for(folder), tmp_path / "run.safetensors"),
        "kohya",
        tmp_path / "x.safetensors",
        base=str(folder),
    )
    good, bad = ({key.split(".")[0] for key in keys} for keys in done.readers["Kohya"])
    names, known = (
        {key.split(".")[0] for key in load_file(done.path)},
        scheme.sd_scripts_names(config, blocks, family == "sdxl"),
    )
    assert (
        good == names & known
        and bad == names - known
        and len(bad) == (6 if family == "sdxl" else 4)
    )
    said = next(line for line in done.lines() if line.endswith("more") or "leaves aside" in line)
    assert f"{3 * len(good)} of {3 * len(names)} keys will load in Kohya; it leaves aside" in said
    assert all(name in said for name in bad), "named by layer, not by key"
    assert sum("leaves aside" in line for line in done.lines()) == 1, (
        "the other tools take them all"
    )


def test_text_encoders_are_te_in_1x_and_te1_te2_in_sdxl_and_keep_text_model(tiny, tmp_path):
    for family, prefixes in (("sd1", {"lora_te"}), ("sdxl", {"lora_te1", "lora_te2"})):
        folder, *_ = tiny(family)
        run = written(adapter_for(folder), tmp_path / "run.safetensors")
        kohya = load_file(
            export_lora(run, "kohya", tmp_path / f"{family}.safetensors", base=str(folder)).path
        )
        dotted = load_file(
            export_lora(
                run, "diffusers", tmp_path / f"{family}_d.safetensors", base=str(folder)
            ).path
        )
        texts = [k for k in kohya if not k.startswith("lora_unet_")]
        assert {k.split("_text_model_")[0] for k in texts} == prefixes
        assert all(".text_model.encoder." in k for k in dotted if k.startswith("text_encoder"))


def test_layers_with_alphas_of_their_own_read_right_in_diffusers(tiny, tmp_path):
    """diffusers looks for the alphas of attention layers under a wrong name, so that a Kohya file
    with several would be drawn wrongly.
    """
    from lib.convert.readers import load_back

    folder, *_ = tiny("sd1")
    adapter, target = adapter_for(folder), open_base_weights(str(folder))
    layers = {
        part: {
            n: replace(y, alpha=1.0 if "attn1" in n or "fc1" in n else 2.0) for n, y in some.items()
        }
        for part, some in adapter.layers.items()
    }
    uneven = replace(adapter, layers=layers)
    run = written(uneven, tmp_path / "run.safetensors")
    assert {y.alpha for *_, y in read_adapter(run)} == {1.0, 2.0}
    for form in ADAPTER_FORMS:
        out = export_lora(run, form, name_of(form, tmp_path, form), base=str(folder)).path
        found = load_back(out, form, target)
        for part, name, layer in uneven:
            theirs = found[part, name]
            assert theirs.magnitude is None
            assert torch.allclose(theirs.delta(), layer.delta(), atol=2e-4), (form, part, name)


def test_one_exported_file_draws_what_the_run_draws(tiny, tmp_path):
    from lib.convert.interchange import library_loader, picture_difference

    folder, *_ = tiny("sd1")
    run = written(adapter_for(folder), tmp_path / "run.safetensors")
    plain = picture_difference(str(folder), lambda base: base, library_loader(run), steps=2)
    assert plain > 0, "the adapter shows"
    for form in ADAPTER_FORMS:
        out = export_lora(run, form, name_of(form, tmp_path, form), base=str(folder)).path
        assert (
            picture_difference(str(folder), library_loader(run), library_loader(out), steps=2) == 0
        ), form


# --- headers


def test_the_header_tells_the_tools_what_they_show(tiny, tmp_path, dataset):

    folder, *_ = tiny("sd1")
    run = tmp_path / "run"
    run.mkdir()
    written(adapter_for(folder, alpha=2.0), run / "adapter.safetensors")
    values = {
        "data": str(dataset.root),
        "output": str(run),
        "rank": 4,
        "alpha": 2.0,
        "steps": 7,
        "seed": 3,
    }
    preset("lora", str(folder), **values).save(run / "settings.json")
    out = export_lora(run, "kohya", tmp_path / "robot.safetensors", title="Pip the robot").path
    with safe_open(out, "pt") as file:
        header = file.metadata()
    wanted = {
        "modelspec.title": "Pip the robot",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "ss_base_model_version": "sd_v1",
        "modelspec.trigger_phrase": "zwx robot",
        "modelspec.license": "CC0-1.0",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_network_module": "networks.lora",
        "ss_max_train_steps": "7",
        "ss_seed": "3",
        "ss_num_train_images": "6",
        "modelspec.resolution": "64x64",
        "ss_resolution": "(64, 64)",
        "workbench.class_noun": "robot",
        "workbench.identifier": "zwx",
    }
    assert {key: header.get(key) for key in wanted} == wanted
    assert json.loads(header["ss_tag_frequency"]) == {"1_zwx robot": {"zwx robot": 6}}
    assert json.loads(header["workbench.settings"])["steps"] == 7 and str(dataset.root) not in str(
        header
    ), "folders are their owner's"
    raw = out.read_bytes()
    digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    assert header["sshs_model_hash"] == digest and header["modelspec.hash_sha256"] == f"0x{digest}"
    save_file(load_file(out), tmp_path / "theirs.safetensors", header | {"sshs_legacy_hash": "abc"})
    assert not [k for k in read_adapter(tmp_path / "theirs.safetensors").metadata if "hash" in k], (
        "a hash is of one file, and stays there"
    )


# --- bad input


@pytest.fixture
def good(tiny, tmp_path):
    return written(adapter_for(tiny("sd1")[0]), tmp_path / "good.safetensors")


def refused(said, source, base, out, **options):
    with pytest.raises(BadInput, match=said) as error:
        export_lora(source, "kohya", out, base=str(base), **options)
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*")), "nothing is left behind"
    return str(error.value)


def test_a_lora_for_another_family_is_refused_with_both_named(good, tiny, tmp_path):
    for family, name in (("sd2", "Stable Diffusion 2.x"), ("sdxl", "SDXL")):
        said = refused(
            "LoRA for Stable Diffusion 1.x", good, tiny(family)[0], tmp_path / "out.safetensors"
        )
        assert name in said and "do not fit" in said


def test_a_lora_for_another_base_of_its_family_is_refused_until_asked_for(good, tiny, tmp_path):
    folder, other = tiny("sd1")[0], tmp_path / "other"
    shutil.copytree(folder, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v + 0.01 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    run = tmp_path / "run"
    run.mkdir()
    good.rename(run / "adapter.safetensors")
    preset("lora", str(folder), data="-", output=str(run)).save(run / "settings.json")
    trained = export_lora(run, "diffusers", tmp_path / "trained.safetensors").path
    said = refused("other weights", trained, other, tmp_path / "out.safetensors")
    assert "'sd1'" in said and str(other) in said and "--other-base" in said
    out = export_lora(
        trained, "kohya", tmp_path / "out.safetensors", base=str(other), other_base=True
    ).path
    theirs, ours = (read_adapter(path).metadata for path in (out, trained))
    for key in ("workbench.base", "workbench.base_fingerprint", "ss_sd_model_name"):
        assert theirs[key] == ours[key], "it was trained where it was trained"


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt", "model.safetensors"])
def test_pickles_are_refused_unread_by_name_and_by_content(name, tiny, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    torch.save({"a": Bomb()}, tmp_path / name)
    refused("pickle.*weights_only", tmp_path / name, tiny("sd1")[0], tmp_path / "out.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_damaged_files_are_refused(good, tiny, tmp_path):
    folder, raw, out = tiny("sd1")[0], good.read_bytes(), tmp_path / "out.safetensors"
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    name = next(k for k in header if k.endswith("lora_A.weight"))
    lying = json.dumps(
        header | {name: header[name] | {"shape": [9, *header[name]["shape"][1:]]}}
    ).encode()
    bad = {
        "cut": raw[:-100],
        "cut in the header": raw[:50],
        "long": raw + b"\0" * 10,
        "empty": b"",
        "no header": b"\xff" * 200,
        "a lie": len(lying).to_bytes(8, "little") + lying + raw[8 + size :],
        "huge": (2**40).to_bytes(8, "little") + raw[8:],
    }
    for what, data in bad.items():
        path = tmp_path / f"{what.replace(' ', '_')}.safetensors"
        path.write_bytes(data)
        refused("no whole safetensors file", path, folder, out)
    refused("There is no file", tmp_path / "none.safetensors", folder, out)


def test_unknown_and_missing_keys_are_listed_and_never_dropped(good, tiny, tmp_path):
    folder, tensors, out = tiny("sd1")[0], load_file(good), tmp_path / "out.safetensors"
    first = next(k for k in tensors if k.endswith("lora_B.weight"))
    save_file(
        tensors | {"unet.conv_in.hada_w1_a": torch.zeros(2, 2)}, tmp_path / "more.safetensors"
    )
    assert "hada_w1_a" in refused("1 unknown keys", tmp_path / "more.safetensors", folder, out)
    save_file({k: v for k, v in tensors.items() if k != first}, tmp_path / "less.safetensors")
    assert first.removesuffix(".lora_B.weight") in refused(
        "1 halved layers", tmp_path / "less.safetensors", folder, out
    )
    save_file({"a": torch.zeros(2)}, tmp_path / "none.safetensors")
    refused("holds no LoRA", tmp_path / "none.safetensors", folder, out)
    misfit = tensors | {
        k.replace("conv_in", "conv_on"): v.clone() for k, v in tensors.items() if "conv_in" in k
    }
    save_file(misfit, tmp_path / "misfit.safetensors")
    assert "conv_on" in refused("do not fit", tmp_path / "misfit.safetensors", folder, out)


def test_values_that_are_no_numbers_are_refused(good, tiny, tmp_path):
    tensors = load_file(good)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    assert name in refused(
        "not numbers", tmp_path / "nan.safetensors", tiny("sd1")[0], tmp_path / "out.safetensors"
    )


def test_odd_alphas_ranks_and_types_are_refused_in_a_sentence(good, tiny, tmp_path):
    folder, out, odd = tiny("sd1")[0], tmp_path / "out.safetensors", tmp_path / "odd.safetensors"
    kohya = load_file(export_lora(good, "kohya", tmp_path / "k.safetensors", base=str(folder)).path)
    alpha = next(k for k in kohya if k.endswith(".alpha"))
    save_file(kohya | {alpha: torch.ones(2)}, odd)
    refused("no readable alpha", odd, folder, out)
    te = next(k for k in kohya if k.startswith("lora_te_"))
    save_file(kohya | {te.replace("lora_te_", "lora_te1_"): kohya[te].clone()}, odd)
    assert "twice" in refused("unknown keys", odd, folder, out)
    down = alpha.replace("alpha", "lora_down.weight")
    up = alpha.replace("alpha", "lora_up.weight")
    save_file(kohya | {down: kohya[down][:0].clone(), up: kohya[up][:, :0].clone()}, odd)
    refused("do not fit together", odd, folder, out)
    save_file(kohya | {down: kohya[down].to(torch.float8_e4m3fn)}, odd)
    refused("F8_E4M3", odd, folder, out)
    with safe_open(good, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    for bad in ("abc", None):
        header = json.dumps({k: bad if k.endswith("lora_alpha") else v for k, v in config.items()})
        save_file(load_file(good), odd, {"lora_adapter_metadata": header})
        refused("no readable alpha", odd, folder, out)


def test_dora_goes_where_its_axis_is_the_same_and_is_refused_elsewhere(tiny, tmp_path):
    folder, out = tiny("sd1")[0], tmp_path / "out.safetensors"
    adapter = adapter_for(folder)
    some = {n: y for n, y in adapter.layers["unet"].items() if n.endswith(("to_q", "conv1"))}
    axis = {
        n: (1, -1, 1, 1) if y.up.ndim == 4 else (-1,) for n, y in some.items()
    }  # PEFT's, of a convolution and of a linear layer
    dora = Adapter(
        {
            "unet": {
                n: replace(y, magnitude=torch.rand(len(y.up)).half().reshape(axis[n]) + 0.5)
                for n, y in some.items()
            }
        }
    )
    source = written(dora, tmp_path / "dora.safetensors")
    refused("DoRA.*--to diffusers", source, folder, out)
    for form in ("diffusers", "peft"):
        done = export_lora(source, form, name_of(form, tmp_path, f"as_{form}"), base=str(folder))
        kept = read_adapter(done.path)
        assert (
            all(torch.equal(y.magnitude, dora.layers[p][n].magnitude) for p, n, y in kept)
            and done.read_back
        )
        assert {n for _, n, _ in kept} == set(some)
    tensors, _ = kohya_tensors(
        Adapter({"unet": {n: y for n, y in some.items() if n.endswith("to_q")}})
    )
    scales = {
        k.replace("alpha", "dora_scale"): torch.ones(1, 16) for k in tensors if k.endswith("alpha")
    }
    save_file(tensors | scales, tmp_path / "k.safetensors")
    refused(
        "DoRA of Kohya's kind", tmp_path / "k.safetensors", folder, tmp_path / "out2.safetensors"
    )


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_a_magnitude_that_is_lost_or_turned_does_not_pass_for_the_dora(form, tiny, tmp_path):
    """A square layer, whose magnitudes could as well go with its inputs."""
    from lib.convert.readers import check_loaded_back, load_back

    folder = tiny("sd1")[0]
    name = next(
        n
        for n, y in adapter_for(folder).layers["unet"].items()
        if n.endswith("attn1.to_q") and y.up.shape[0] == y.down.shape[1]
    )
    layer = replace(
        adapter_for(folder).layers["unet"][name],
        magnitude=torch.rand(len(adapter_for(folder).layers["unet"][name].up)).half(),
    )

    def check(adapter, what):
        path = export_lora(
            written(adapter, tmp_path / "x.safetensors"),
            form,
            name_of(form, tmp_path, what),
            base=str(folder),
        ).path
        check_loaded_back(
            Adapter({"unet": {name: layer}}),
            load_back(path, form, open_base_weights(str(folder))),
            path,
        )

    check(Adapter({"unet": {name: layer}}), "right")
    for what, magnitude in (("lost", None), ("turned", layer.magnitude.flip(0))):
        with pytest.raises(BadInput, match="differs in 1 layers"):
            check(Adapter({"unet": {name: replace(layer, magnitude=magnitude)}}), what)


def test_what_is_the_users_is_never_overwritten(good, tiny, tmp_path):
    folder, mine = tiny("sd1")[0], tmp_path / "mine.safetensors"
    save_file({"thesis": torch.ones(1)}, mine)
    for form, out in (
        ("kohya", mine),
        ("kohya", tmp_path),
        ("kohya", tmp_path / "x.txt"),
        ("peft", tmp_path),
    ):
        with pytest.raises(BadInput, match="exists and was not made|is a folder|does not end in"):
            export_lora(good, form, out, base=str(folder))
    assert list(load_file(mine)) == ["thesis"]
    twice = [export_lora(good, "peft", tmp_path / "peft", base=str(folder)).path for _ in range(2)]
    assert read_adapter(twice[1]).ranks == [4], "an export replaces its own"
    (twice[1] / "thesis.txt").write_text("mine")
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    # What lies beside an export, and a whole model, whose folder has the names that an export has.
    for there in (twice[1], model):
        before = sorted(p.name for p in there.rglob("*"))
        with pytest.raises(BadInput, match="exists and was not made"):
            export_lora(good, "peft", there, base=str(folder))
        assert sorted(p.name for p in there.rglob("*")) == before


def test_the_table_of_readers_is_backed_by_tests_that_exist():
    text = (ROOT / "docs" / "formats.md").read_text("utf-8").split("\n## ")[0]
    named = dict(re.findall(r"\[(\d)\]\s+`(test_\w+)`", text))
    defined = {
        name
        for path in (ROOT / "tests" / "convert").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert set(named.values()) <= defined, set(named.values()) - defined
    table, _, _ = text.partition('"Reads"')
    lines = [
        line.strip("|").split("|")[1:]
        for line in table.splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    for cell in (c.strip() for line in lines for c in line):
        numbers = set(re.findall(r"\d", cell.partition("[")[2]))
        assert numbers <= set(named) and (
            numbers or not re.match("reads|keys fit|folder form|refused", cell)
        ), cell


@pytest.mark.parametrize(
    "name, said",
    [
        ("pokcet", "no base model 'pokcet'"),
        ("owner/nothing-here", "not on this machine"),
        ("file", "no Stable Diffusion checkpoint"),
    ],
)
def test_a_base_that_cannot_be_described_is_one_sentence(name, said, tmp_path):
    if name == "file":
        name = str(tmp_path / "model.safetensors")
        save_file({"a": torch.zeros(1)}, name)
    with pytest.raises(BadInput, match=said):
        open_base_weights(name)


@pytest.mark.parametrize("count", [1, 3])
def test_each_of_several_loras_needs_one_weight(count):
    sources = ["data/adapters/clothing.safetensors", "data/adapters/lighting.safetensors"]
    with pytest.raises(
        BadInput, match=f"are 2 LoRAs and {count} weights: give one weight for each"
    ):
        compose(sources, [1.0] * count)


def test_one_adapter_that_has_no_weight_given_takes_part_as_it_is():
    sources = {
        name: ROOT / "data" / "adapters" / f"{name}.safetensors"
        for name in ("clothing", "lighting")
    }
    some, all_of_them = (
        mix(sources, weights=w) for w in ({"lighting": 0.5}, {"clothing": 1.0, "lighting": 0.5})
    )
    for (_, _, one), (_, _, other) in zip(some, all_of_them):
        assert torch.equal(one.up, other.up) and torch.equal(one.down, other.down)


def test_a_file_without_tensors_is_not_called_pefts(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(BadInput) as caught:
        read_adapter(tmp_path / "empty.safetensors")
    assert "adapter_config" not in str(caught.value) and "empty.safetensors" in str(caught.value)
