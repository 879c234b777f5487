"""Whole models: merged, written as one file or a folder, extracted from, combined; and data and
runs exchanged with Kohya's tools.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import adapter_for, tuned_run, written
from PIL import Image
from safetensors.torch import load_file, save_file

from lib.__main__ import main
from lib.config.settings import Settings
from lib.convert import merging
from lib.convert.adapter import kohya_tensors, read_adapter
from lib.convert.composition import MIXES, check_name, load_adapters, load_fused, mix
from lib.convert.exporting import export_lora
from lib.convert.interchange import (
    check_pictures,
    extract,
    import_lora,
    library_loader,
    picture_difference,
)
from lib.convert.layer import low_rank
from lib.convert.merging import MODEL_FORMS, merge, merged_weight
from lib.convert.readers import checkpoint_readers
from lib.dataset.imagefolder import load_dataset
from lib.dataset.kohya_folders import from_kohya
from lib.dataset.kohya_folders import to_kohya as data_to_kohya
from lib.evaluation.concepts import shares, survives
from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.files.paths import ROOT
from lib.files.safetensors_file import save_weights_file, write_weights
from lib.models.base import load_base
from lib.models.base_weights import open_base_weights
from lib.models.single_file import layout
from tests import scheme

# Of 255: what rounding to fp16 moves a colour by; more where a processor computes in bf16.
ROUNDING = 16

PIPES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}


# --- one file, one folder


@pytest.mark.parametrize("family", PIPES)
def test_a_merged_checkpoint_has_the_published_keys_and_loads_back_with_the_merged_weights(
    tiny, family, tmp_path
):
    import diffusers

    folder, config, blocks = tiny(family)
    adapter, target = adapter_for(folder), open_base_weights(str(folder))
    source = written(adapter, tmp_path / "a.safetensors")
    done = merge(
        source, "checkpoint", tmp_path / "whole.safetensors", base=str(folder), weights=[0.5]
    )
    tensors = load_file(done.path)
    assert all(t.dtype == torch.float16 for t in tensors.values()) and done.changed == sum(
        1 for _ in adapter
    )
    assert set(done.readers) == {"diffusers", "ComfyUI", "Forge", "WebUI", "Kohya"}
    assert all(sorted(good) == sorted(tensors) and not bad for good, bad in done.readers.values())
    assert f"{len(tensors)} of {len(tensors)} keys will load in ComfyUI" in list(done.lines())
    unet = {
        k.removeprefix("model.diffusion_model.").rpartition(".")[0]
        for k in tensors
        if k.startswith("model.diffusion_model.")
    }
    assert unet == set(scheme.unet_modules(config).values())
    vae = {
        k.removeprefix("first_stage_model.").rpartition(".")[0]
        for k in tensors
        if k.startswith("first_stage_model.")
    }
    assert {
        "encoder.mid.attn_1.q",
        "decoder.mid.block_2.conv1",
        "encoder.down.0.downsample.conv",
        "decoder.up.1.upsample.conv",
        "decoder.up.0.block.0.nin_shortcut",
        "quant_conv",
        "decoder.norm_out",
    } <= vae
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4, (
        "attention of the VAE is a 1 x 1 convolution there"
    )
    rest = {
        k for k in tensors if not k.startswith(("model.diffusion_model.", "first_stage_model."))
    }
    prefixes = {
        "sd1": {"cond_stage_model.transformer.text_model."},
        "sd2": {"cond_stage_model.model."},
        "sdxl": {
            "conditioner.embedders.0.transformer.text_model.",
            "conditioner.embedders.1.model.",
        },
    }[family]
    assert all(k.startswith(tuple(prefixes)) for k in rest) and all(
        any(k.startswith(p) for k in rest) for p in prefixes
    )
    pipe = getattr(diffusers, PIPES[family]).from_single_file(
        str(done.path), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    for part in target.shapes:
        state = getattr(pipe, part).state_dict()
        flat = part.startswith("text") and not any(k.startswith("text_model.") for k in state)
        for name in target.shapes[part]:
            wanted, layer = (
                target.read(part, name).float(),
                adapter.layers.get(part, {}).get(name.removesuffix(".weight")),
            )
            wanted = (
                merged_weight(wanted, [(layer, 0.5)])
                if layer and name.endswith(".weight")
                else wanted
            )
            assert torch.equal(
                state[name.removeprefix("text_model.") if flat else name].float(),
                wanted.half().float(),
            ), (part, name)


@pytest.mark.parametrize("family", PIPES)
def test_a_tuned_model_as_a_folder_loads_with_its_tuned_text_encoder(
    tiny, family, tmp_path, dataset
):
    import diffusers

    folder, *_ = tiny(family)
    run = tuned_run(folder, tmp_path / "run", dataset, ("unet", "text_encoder"))
    done = merge(run, "diffusers", tmp_path / "out")
    pipe = getattr(diffusers, PIPES[family]).from_pretrained(done.path, dtype=torch.float32)
    target = open_base_weights(str(folder), run)
    for part in target.shapes:
        state = getattr(pipe, part).state_dict()
        flat = part.startswith("text") and not any(k.startswith("text_model.") for k in state)
        for name in target.shapes[part]:
            theirs = state[name.removeprefix("text_model.") if flat else name]
            assert torch.equal(theirs, target.read(part, name).half().float()), (part, name)


def test_dreambooth_written_whole_draws_what_the_run_draws(tiny, tmp_path, dataset):
    folder, *_ = tiny("sd1")
    run = tuned_run(folder, tmp_path / "run", dataset)
    half = tmp_path / "half"
    merge(
        run, "diffusers", half
    )  # the other parts in fp16 too, so that only the way of writing differs
    one = merge(run, "checkpoint", tmp_path / "one.safetensors").path
    assert picture_difference(str(folder), library_loader(half), library_loader(one), steps=2) == 0
    assert (
        picture_difference(str(folder), library_loader(run), library_loader(half), steps=2)
        <= ROUNDING
        < picture_difference(str(folder), lambda base: base, library_loader(half), steps=2)
    ), "rounding to fp16 moves a colour by less than training did"


def test_a_merge_into_a_base_draws_what_the_adapter_draws(tiny, tmp_path):
    folder, *_ = tiny("sd1")
    run = written(adapter_for(folder), tmp_path / "a.safetensors")
    for form, out in zip(MODEL_FORMS, ("m.safetensors", "m")):
        whole = merge(run, form, tmp_path / out, base=str(folder)).path
        assert (
            picture_difference(str(folder), library_loader(run), library_loader(whole), steps=2)
            <= ROUNDING
        )
    assert picture_difference(str(folder), lambda base: base, library_loader(run), steps=2) > 20


def test_dora_merges_as_peft_merges_it():
    import peft

    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 5)
    model = peft.get_peft_model(
        torch.nn.Sequential(layer),
        peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["0"]),
    )
    module = model.base_model.model[0]
    module.lora_B["default"].weight.data.normal_()
    module.lora_magnitude_vector["default"].weight.data.mul_(1.3)
    from lib.convert.adapter import Layer

    ours = Layer(
        module.lora_A["default"].weight.detach(),
        module.lora_B["default"].weight.detach(),
        3.0,
        module.lora_magnitude_vector["default"].weight.detach(),
    )
    wanted = merged_weight(layer.weight.detach(), [(ours, 1.0)])
    module.merge()
    assert torch.allclose(module.base_layer.weight, wanted, atol=1e-5)


def test_a_whole_model_passes_tensor_by_tensor(tiny, tmp_path, monkeypatch):
    """Never is more than one tensor of the base held: the writer asks for the next after the last
    was written.
    """
    alive = []
    shapes = {f"t{k}": ("F16", (64, 64)) for k in range(50)}

    class Seen(torch.Tensor):
        def __del__(self):
            if id(self) in alive:  # not of a copy that an operation made
                alive.remove(id(self))

    def read(name):
        tensor = torch.zeros(64, 64, dtype=torch.float16).as_subclass(Seen)
        alive.append(id(tensor))
        assert len(alive) <= 2
        return tensor

    write_weights(tmp_path / "out.safetensors", shapes, read)
    assert len(load_file(tmp_path / "out.safetensors")) == 50


@pytest.mark.parametrize("family", PIPES)
def test_keys_that_go_astray_in_a_checkpoint_are_found_by_a_reader_that_is_not_ours(tiny, family):
    target = open_base_weights(str(tiny(family)[0]))
    right, unet = layout(target), "model.diffusion_model."
    wrong = dict(right)
    one, two = (f"{unet}middle_block.{k}.in_layers.2.weight" for k in (0, 2))
    wrong[one], wrong[two] = (
        right[two],
        right[one],
    )  # of one shape, so that nothing would fail to load
    wrong[f"{unet}output_blocks.0.0.in_layer.2.weight"] = wrong.pop(
        f"{unet}output_blocks.0.0.in_layers.2.weight"
    )
    astray = {one, two, f"{unet}output_blocks.0.0.in_layer.2.weight"}
    if stacked := [key for key, entry in right.items() if entry.how == "stack"]:
        query, key, value = right[stacked[0]].sources
        wrong[stacked[0]] = replace(right[stacked[0]], sources=(key, query, value))
        astray.add(stacked[0])
    flat = next(key for key, entry in right.items() if key.endswith("encoder.mid.attn_1.q.weight"))
    wrong[flat] = replace(right[flat], sources=right[flat.replace(".q.", ".k.")].sources)
    astray.add(flat)
    if family != "sd1":
        assert stacked
    with pytest.raises(
        BadInput, match="1 of its weights, such as vae.encoder.mid_block.attentions.0.to_q.weight"
    ):
        checkpoint_readers(wrong, target)
    wrong[flat.replace(".q.", ".k.")] = right[flat]
    astray.add(flat.replace(".q.", ".k."))
    for tool, (good, bad) in checkpoint_readers(wrong, target).items():
        assert set(bad) == astray and set(good) == set(wrong) - astray, tool
    assert not checkpoint_readers(right, target)["diffusers"][1]


def damaging(read, last, path):
    """A `read` that, when `last` is asked for, turns a bit of what was written into the file
    before: a disk that fails.
    """

    def damaged(name):
        if name == last:
            file = next(p for p in path.parent.rglob("*.part/*") if p.is_file())
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            with open(file, "r+b") as part:
                part.write(data)
        return read(name)

    return damaged


def test_what_the_disk_did_not_keep_is_not_called_written(tiny, tmp_path, monkeypatch):

    shapes = {name: ("F16", (400, 400)) for name in "abc"}  # larger than what Python keeps back
    for check in (False, True):
        out = tmp_path / f"{check}.safetensors"
        read = damaging(lambda name: torch.ones(400, 400), "c", out)
        if check:
            with pytest.raises(BadInput, match="True.safetensors was not written: read back"):
                write_weights(out, shapes, read, check=True)
        else:
            write_weights(out, shapes, read)
    assert [p.name for p in tmp_path.iterdir()] == ["False.safetensors"]
    folder, *_ = tiny("sd1")
    source, whole = written(adapter_for(folder), tmp_path / "a.safetensors"), write_weights

    def failing(path, shapes, read, *rest, **options):
        return whole(path, shapes, damaging(read, list(shapes)[-1], path), *rest, **options)

    monkeypatch.setattr(merging, "write_weights", failing)
    for form, out in zip(MODEL_FORMS, ("m.safetensors", "m")):
        with pytest.raises(BadInput, match="was not written: read back"):
            merge(source, form, tmp_path / out, base=str(folder))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "False.safetensors",
        "a.safetensors",
    ], "nothing is left behind"


def test_a_checkpoints_header_holds_the_hash_of_what_follows_it(tiny, tmp_path):
    folder, *_ = tiny("sd1")
    source = written(adapter_for(folder), tmp_path / "a.safetensors")
    for form, out, inside in zip(
        MODEL_FORMS, ("m.safetensors", "m"), ("", "unet/diffusion_pytorch_model.safetensors")
    ):
        path = merge(source, form, tmp_path / out, base=str(folder)).path / inside
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])["__metadata__"]
        assert (
            header["modelspec.hash_sha256"] == f"0x{hashlib.sha256(raw[8 + size :]).hexdigest()}"
            and header["format"] == "pt"
        )
        assert "sshs_model_hash" not in header, "which is for LoRAs"


def test_a_folder_whose_base_lacks_a_weight_is_not_written(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny("sd1")[0], tmp_path / "base"))
    source, file = (
        written(adapter_for(folder), tmp_path / "a.safetensors"),
        folder / "vae" / "diffusion_pytorch_model.safetensors",
    )
    done = merge(source, "diffusers", tmp_path / "whole", base=str(folder))
    good, bad = done.readers["diffusers"]
    assert not bad and len(good) == done.tensors == sum(
        len(load_file(f)) for f in done.path.rglob("*.safetensors")
    )
    weights = load_file(file)
    lost = weights.pop("decoder.conv_in.weight")
    save_file(weights | {"decoder.conv_inn.weight": lost}, file, {"format": "pt"})
    with pytest.raises(
        BadInput, match="2 of its keys would not load in diffusers.*vae.decoder.conv_in"
    ):
        merge(source, "diffusers", tmp_path / "half", base=str(folder))
    assert not (tmp_path / "half").exists()


def test_whole_models_refuse_what_they_cannot_be(tiny, tmp_path, dataset):
    folder, *_ = tiny("sd1")
    run = tuned_run(folder, tmp_path / "run", dataset)
    for sources, options, said in (
        ([run, run], {}, "give it alone"),
        ([run], {"base": str(tiny("sd2")[0])}, "does not fit"),
        (
            [written(adapter_for(folder), tmp_path / "a.safetensors")],
            {"weights": [1, 2]},
            "2 weights for 1",
        ),
    ):
        with pytest.raises(BadInput, match=said):
            merge(sources, "checkpoint", tmp_path / "out.safetensors", **options)
    weights = load_file(run / "unet/diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"][0] = float("inf")
    save_file(weights, run / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(BadInput, match="conv_in.bias"):
        merge(run, "checkpoint", tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.safetensors",
        "run",
    ], "nothing is left behind"


# --- extraction


def best_share(tuned, plain, adapter, rank):
    """The share of the change's sum of S^2 that the first `rank` directions of every layer hold."""
    total = best = 0.0
    for part, name, _ in adapter:
        weight = f"{name}.weight"
        change = tuned.read(part, weight).float() - plain.read(part, weight).float()
        energy = torch.linalg.svdvals(change.flatten(1)).square()
        total += energy.sum().item()
        best += energy[:rank].sum().item()
    return best / total


def test_extraction_is_the_best_of_its_rank_and_exact_at_full_rank(tiny, tmp_path, dataset):
    folder, *_ = tiny("sd1")
    run, target = (
        tuned_run(folder, tmp_path / "run", dataset, ("unet", "text_encoder")),
        open_base_weights(str(folder)),
    )
    tuned, shares_ = open_base_weights(str(folder), run), []
    for rank in (1, 4, 64):
        adapter, kept = extract(run, rank)
        assert set(adapter.layers) == {"unet", "text_encoder"} and {
            y.alpha for *_, y in adapter
        } == {float(rank)}
        left = total = 0.0
        for part, name, layer in adapter:
            change = (
                tuned.read(part, f"{name}.weight").float()
                - target.read(part, f"{name}.weight").float()
            )
            left += (change - layer.delta()).square().sum().item()
            total += change.square().sum().item()
        assert kept.of_layers == pytest.approx(1 - left / total, abs=2e-3)
        # Noise has the flattest spectrum there is, so this is the most that a sketch can miss.
        assert (
            0 <= best_share(tuned, target, adapter, rank) - kept.of_layers + 1e-4 < 0.02
            and kept.of_all < kept.of_layers
        )
        shares_.append(kept.of_layers)
    assert shares_[0] < shares_[1] < shares_[2]
    unet = [share for name, share in kept.by_layer.items() if name.startswith("unet.")]
    assert min(unet) > 0.999, "rank 64 is more than the tiny U-Net's layers have"


def test_the_randomised_svd_keeps_what_the_exact_one_keeps():
    generator = torch.Generator().manual_seed(0)
    for shape in ((192, 768), (128, 64, 3, 3)):
        # As fine-tuning leaves it: some directions stand out of a slowly falling rest.
        flat = torch.randn(shape[0], 192, generator=generator) * torch.arange(1, 193).float().pow(
            -0.7
        )
        change = (flat @ torch.randn(192, int(np.prod(shape[1:])), generator=generator)).reshape(
            shape
        )
        for rank in (1, 8, 16):
            exact, nearly = (low_rank(change, rank, exact=how) for how in (True, False))
            assert exact[1] - 5e-3 < nearly[1] <= exact[1] + 1e-5
            assert low_rank(change, rank, exact=False)[0].up.equal(
                low_rank(change, rank, exact=False)[0].up
            ), "the same every time"


def test_an_extracted_lora_at_full_rank_draws_nearly_what_the_tuned_model_draws(
    tiny, tmp_path, dataset
):
    folder, *_ = tiny("sd1")
    run = tuned_run(folder, tmp_path / "run", dataset)
    adapter, _ = extract(run, 64)
    from safetensors.torch import load_file as load

    part = run / "unet/diffusion_pytorch_model.safetensors"
    base = open_base_weights(str(folder))
    only = {
        n: (
            w
            if f"{n.removesuffix('.weight')}" in adapter.layers["unet"] and n.endswith(".weight")
            else base.read("unet", n).half()
        )
        for n, w in load(part).items()
    }
    save_weights_file(
        part, only, {"format": "pt"}
    )  # norms and biases as they were: no LoRA can hold those
    difference = picture_difference(
        str(folder),
        library_loader(run),
        lambda model: load_adapters(model, {"x": adapter}),
        steps=2,
    )
    assert (
        difference
        <= ROUNDING
        < picture_difference(str(folder), library_loader(run), lambda model: model, steps=2)
    )


def test_extraction_refuses_a_lora_a_rank_of_none_and_an_untouched_model(tiny, tmp_path, dataset):
    folder, *_ = tiny("sd1")
    run = tuned_run(folder, tmp_path / "run", dataset)
    with pytest.raises(BadInput, match="rank is 0"):
        extract(run, 0)
    shutil.copyfile(
        folder / "unet/diffusion_pytorch_model.safetensors",
        run / "unet/diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(BadInput, match="nothing to extract"):
        extract(run, 4)
    shutil.rmtree(run / "unet")
    with pytest.raises(BadInput, match="no tuned weights"):
        extract(run, 4)


# --- several in one


def weights_with(folder, sources, weights):
    base = load_fused(load_base(str(folder)), sources, weights)
    return {
        n.replace(".base_layer", ""): w.detach().clone()
        for n, w in base.denoiser.named_parameters()
        if "lora_" not in n
    }


def test_adapters_add_up_each_with_its_weight(tiny, tmp_path):
    folder, *_ = tiny("sd1")
    one, two = adapter_for(folder), adapter_for(folder, rank=2, alpha=1.0)
    found, target = (
        weights_with(folder, {"one": one, "two": two}, {"one": 1.0, "two": 0.5}),
        open_base_weights(str(folder)),
    )
    for name, layer in one.layers["unet"].items():
        wanted = (
            target.read("unet", f"{name}.weight")
            + layer.delta()
            + two.layers["unet"][name].delta(0.5)
        )
        assert torch.allclose(found[f"{name}.weight"], wanted, atol=1e-4)


@pytest.mark.parametrize("how", MIXES)
def test_pefts_mixes_are_adapters_and_only_the_exact_ones_are_the_sum(tiny, how):
    folder, *_ = tiny("sd1")
    one, two = adapter_for(folder), adapter_for(folder, alpha=4.0, seed=1)
    mixed = mix({"one": one, "two": two}, how, {"one": 1.0, "two": 0.5}, str(folder))
    assert set(mixed.layers) == {"unet", "text_encoder"} and mixed.ranks == (
        [8] if how == "cat" else [4]
    )
    errors = []
    for part, name, layer in mixed:
        wanted = one.layers[part][name].delta() + two.layers[part][name].delta(0.5)
        errors.append(((layer.delta() - wanted).norm() / wanted.norm()).item())
    assert (max(errors) < 2e-3) is (how == "cat")
    again = mix({"one": one, "two": two}, how, {"one": 1.0, "two": 0.5}, str(folder))
    assert all(torch.equal(y.up, again.layers[p][n].up) for p, n, y in mixed)


def test_names_that_clash_or_escape_are_refused(tiny):
    folder, *_ = tiny("sd1")
    for name in ("../x", "a/b", "a.b", "", "x" * 41, None):
        with pytest.raises(BadInput, match="cannot be used"):
            check_name(name)
    base = load_adapters(load_base(str(folder)), {"one": adapter_for(folder)})
    with pytest.raises(BadInput, match="'one' is taken"):
        load_adapters(base, {"one": adapter_for(folder)})
    with pytest.raises(BadInput, match="no adapter 'two'.*one"):
        load_adapters(base, {}, {"two": 1.0})
    with pytest.raises(BadInput, match="SDXL"):
        load_adapters(base, {"big": adapter_for(tiny("sdxl")[0])})
    assert base.pipe.get_list_adapters() == {
        "unet": ["one"],
        "text_encoder": ["one"],
    }, "a refused adapter leaves nothing behind"


def test_what_survives_lies_between_the_base_and_the_concept_alone():
    assert survives(0.7, 0.5, 0.9) == pytest.approx(0.5) and survives(0.9, 0.5, 0.51) is None
    assert survives(0.9, 0.5, 0.59) is None, "a share of 4.4, which would be most of any mean"
    found = shares({"a": 0.9, "b": 0.5}, {"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.9})
    assert found == pytest.approx({"a": 1.0, "b": 0.0, "mean": 0.5})


# --- what ships, and what comes back


@pytest.mark.parametrize("kind", ["clothing", "lighting"])
def test_the_shipped_adapters_fit_the_shipped_base(kind):
    adapter = read_adapter(ROOT / "data" / "adapters" / f"{kind}.safetensors", layers=1)
    assert (
        adapter.metadata["workbench.base_fingerprint"] == open_base_weights("pocket").fingerprint()
    ), (
        "the pocket base was trained again: write them anew with"
        " `python -m benchmarks.shipping_bench --adapters`"
    )
    assert (
        adapter.metadata["workbench.kind"] == kind
        and adapter.metadata["modelspec.license"] == "CC0-1.0"
    )


def test_pictures_are_held_to_the_last_bit_on_a_processor_and_on_average_on_a_gpu(tmp_path):
    source = ROOT / "data" / "adapters" / "clothing.safetensors"
    adapter = read_adapter(source, layers=1)
    right = export_lora(source, "kohya", tmp_path / "right.safetensors").path
    assert (
        check_pictures(source, right, "pocket")
        == "pictures: the same for the same seeds (largest difference 0 of 255)"
    )
    layers = {
        n: replace(y, up=y.up * (1 + 2**-9 * (-1) ** k))
        for k, (n, y) in enumerate(adapter.layers["unet"].items())
    }
    nearly = tmp_path / "nearly.safetensors"  # wrong in the last bits, as sums in another order are
    save_weights_file(nearly, *kohya_tensors(replace(adapter, layers={"unet": layers})))
    with pytest.raises(BadInput, match="does not draw what"):
        check_pictures(source, nearly, "pocket", cuda=False)
    assert "but for rounding (mean difference 0." in check_pictures(
        source, nearly, "pocket", cuda=True
    )
    faint = tmp_path / "faint.safetensors"
    layers = {n: replace(y, alpha=0.8 * y.alpha) for n, y in adapter.layers["unet"].items()}
    save_weights_file(faint, *kohya_tensors(replace(adapter, layers={"unet": layers})))
    with pytest.raises(BadInput, match="mean difference.*4 allowed"):
        check_pictures(source, faint, "pocket", cuda=True)


def test_the_command_line_exports_proves_and_says_so(tmp_path, capsys):
    source = str(ROOT / "data" / "adapters" / "clothing.safetensors")
    assert (
        main(["export", source, "--to", "diffusers", "--out", str(tmp_path / "jacket.safetensors")])
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "212 of 212 keys will load in diffusers" in said and "largest difference 0 of 255" in said
    )
    assert main(["export", source, "--to", "kohya", "--out", str(tmp_path / "x.txt")]) == 1
    assert capsys.readouterr().err.endswith("x.txt.safetensors.\n")


def test_somebodys_lora_becomes_a_run(tiny, tmp_path):
    folder, *_ = tiny("sd1")
    adapter = replace(
        adapter_for(folder),
        metadata={"ss_max_train_steps": "1600", "ss_unet_lr": "0.0002", "ss_seed": "None"},
    )
    path = tmp_path / "theirs.safetensors"
    save_weights_file(path, *kohya_tensors(adapter))
    run = import_lora(path, tmp_path / "run", str(folder))
    settings = Settings.load(run / "settings.json")
    assert (settings.steps, settings.learning_rate, settings.rank, settings.alpha) == (
        1600,
        0.0002,
        4,
        2.0,
    )
    assert picture_difference(str(folder), library_loader(run), library_loader(path), steps=2) == 0
    with pytest.raises(BadInput, match="exists"):
        import_lora(path, tmp_path / "run", str(folder))


def test_data_goes_to_kohyas_folders_and_back(dataset, tmp_path):
    out = data_to_kohya(dataset.root, tmp_path / "kohya", repeats=12)
    folder = out / "train" / "12_zwx robot"
    assert (folder / "000.txt").read_text().strip() == dataset.train[0].caption and len(
        list(folder.glob("*.png"))
    ) == len(dataset.train)
    assert len(list((out / "reg" / "1_robot").glob("*.png"))) == len(dataset.class_images)
    back, notes = from_kohya(out, tmp_path / "back")
    assert "12" in notes[0] and (
        back.subject.identifier,
        back.subject.class_noun,
        back.subject.kind,
    ) == ("zwx", "robot", "character")
    for ours, theirs in (
        (dataset.train, back.train),
        (dataset.test, back.test),
        (dataset.class_images, back.class_images),
    ):
        assert [i.caption for i in ours] == [i.caption for i in theirs]
        assert all(
            np.array_equal(Image.open(a.path), Image.open(b.path)) for a, b in zip(ours, theirs)
        )
    assert len(load_dataset(dataset.root).train) == len(dataset.train), (
        "what was there is as it was"
    )


def test_kohyas_own_folders_are_read_and_bad_ones_refused(tmp_path):
    def folder(name, count=4, caption=None):
        (tmp_path / name).mkdir(parents=True)
        for k, place in enumerate(("beach", "city", "forest", "garden")[:count]):
            shutil.copyfile(
                ROOT / "data/subjects/character" / f"{place}.png", tmp_path / name / f"{place}.png"
            )
            if caption:
                (tmp_path / name / f"{place}.caption").write_text(f"{caption} {k}")

    folder("plain/img/20_sks toy")
    dataset, _ = from_kohya(tmp_path / "plain", tmp_path / "out1")
    assert {i.caption for i in dataset.train} == {"sks toy"} and dataset.subject.class_noun == "toy"
    folder("told/3_sks toy", caption="a sks toy, number")
    assert any(
        "number" in i.caption for i in from_kohya(tmp_path / "told", tmp_path / "out2")[0].train
    )
    folder("two/img/1_sks toy")
    folder("two/img/1_ohwx dog")
    folder("bare/img/1_sks")
    for name, said in (
        ("two", "holds 2 concepts"),
        ("bare", "names no class"),
        ("plain/img/20_sks toy", "no folder such as"),
    ):
        with pytest.raises(BadInput, match=said):
            from_kohya(tmp_path / name, tmp_path / "out3")
    assert not (tmp_path / "out3").exists()


def test_the_card_says_what_was_measured_and_what_was_not(tiny, tmp_path, dataset):
    from lib.convert.model_card import write_card

    run = tuned_run(tiny("sd1")[0], tmp_path / "dreambooth", dataset)
    write_json(
        run / "metrics.json",
        {
            "seconds_per_step": 0.25,
            "train_seconds": 50.0,
            "file_bytes": 1234567,
            "device": "CPU, 2 threads",
        },
    )
    (run / "samples").mkdir()
    for step in (200, 9950, 10_000):  # names with more digits than the first ones
        Image.new("RGB", (8, 8)).save(run / "samples" / f"step_{step:04d}_0.png")
    text = Path(write_card(run, tmp_path / "card")).read_text()
    for said in (
        "zwx robot",
        "CC0-1.0",
        "1,234,567",
        "0.250",
        "pictures/step_10000_0.png",
        "agreed to",
        "*Fidelity was not measured.*",
    ):
        assert said in text, said
    assert [p.name for p in (tmp_path / "card" / "pictures").iterdir()] == ["step_10000_0.png"]
    write_json(
        run.parent / "summary.json", {"dreambooth": {"dino": 0.71}, "about": {"judge": "pocket"}}
    )
    assert (
        "| DINO to held-out photos | 0.710 |"
        in Path(write_card(run, tmp_path / "card")).read_text()
    )
    theirs = run.rename(tmp_path / "theirs")
    assert (
        "*Fidelity was not measured.*" in Path(write_card(theirs, tmp_path / "card")).read_text()
    ), "the summary is not of this run"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my thesis")
    with pytest.raises(BadInput, match="README.md exists and is no card"):
        write_card(theirs, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["README.md"]


def test_positions_that_older_files_hold_are_no_hindrance(tiny, tmp_path, dataset):
    old = Path(shutil.copytree(tiny("sd1")[0], tmp_path / "old"))
    file = next((old / "text_encoder").glob("*.safetensors"))
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    run = tuned_run(old, tmp_path / "run", dataset, ("unet", "text_encoder"))
    save_file(load_file(file) | positions, file, {"format": "pt"})
    done = merge(run, "checkpoint", tmp_path / "one.safetensors", base=str(old)).path
    found = load_file(done)
    assert any(k.endswith("position_ids") for k in found)
    folder = merge(run, "diffusers", tmp_path / "half", base=str(old)).path
    assert picture_difference(str(old), library_loader(folder), library_loader(done), steps=2) == 0


@pytest.mark.parametrize("family", PIPES)
def test_a_single_file_is_a_base_too(tiny, family, tmp_path):
    folder, *_ = tiny(family)
    adapter = adapter_for(folder)
    source = written(adapter, tmp_path / "a.safetensors")
    one = merge(
        source, "checkpoint", tmp_path / "one.safetensors", base=str(folder), weights=[0.0]
    ).path
    there, here = open_base_weights(str(folder)), open_base_weights(str(one))
    assert (
        here.shapes
        == {part: {n: s for n, s in names.items()} for part, names in there.shapes.items()}
        and here.family == there.family
    )
    for part, names in there.shapes.items():
        assert all(torch.equal(here.read(part, n), there.read(part, n).half()) for n in names), part
    done = export_lora(source, "kohya", tmp_path / "k.safetensors", base=str(one))
    assert (
        not done.readers["ComfyUI"][1]
        and not done.read_back
        and "not read back" in list(done.lines())[-1]
    ), "no configurations beside"
    merge(source, "checkpoint", tmp_path / "from_file.safetensors", base=str(one))
    merge(source, "checkpoint", tmp_path / "from_folder.safetensors", base=str(folder))
    made, wanted = (load_file(tmp_path / f"from_{what}.safetensors") for what in ("file", "folder"))
    assert made.keys() == wanted.keys() and all(
        torch.allclose(made[k], wanted[k], atol=2e-3) for k in wanted
    )
