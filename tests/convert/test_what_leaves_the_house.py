"""What leaves the house tells the truth and no secrets: headers, cards, folders, what is said."""

import json

import pytest
from adapters import adapter_for, written
from safetensors import safe_open

from lib.convert.adapter import kohya_tensors
from lib.convert.composition import mix
from lib.convert.exporting import export_lora, public_name, run_facts
from lib.convert.interchange import export, import_lora
from lib.convert.merging import merge
from lib.convert.model_card import write_card
from lib.convert.readers import Written
from lib.files.errors import BadInput
from lib.files.json_file import read_json, write_json
from lib.files.safetensors_file import save_weights_file
from lib.models.base_weights import open_base_weights
from lib.models.families import preset


def header_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.fixture
def run(tiny, tmp_path, dataset):
    """A LoRA run on the tiny base, in whose settings its path stands."""
    folder, run = tiny("sd1")[0], tmp_path / "run"
    run.mkdir()
    written(adapter_for(folder), run / "adapter.safetensors")
    preset("lora", str(folder), data=str(dataset.root), output=str(run), rank=4).save(
        run / "settings.json"
    )
    return run


@pytest.fixture
def theirs(tiny, tmp_path):
    """Somebody's LoRA in Kohya's form, which tells its steps and nothing else of its training."""
    tensors, _ = kohya_tensors(adapter_for(tiny("sd1")[0]))
    save_weights_file(tmp_path / "theirs.safetensors", tensors, {"ss_steps": "1600"})
    return tmp_path / "theirs.safetensors"


INVENTED = (
    "ss_seed ss_total_batch_size ss_lr_warmup_steps ss_learning_rate ss_unet_lr ss_max_grad_norm"
    " ss_prior_loss_weight ss_min_snr_gamma ss_sd_model_name workbench.settings workbench.base"
    " workbench.base_fingerprint modelspec.date workbench.identifier ss_num_train_images"
).split()


@pytest.mark.parametrize("way", ["kohya", "diffusers", "straight"])
def test_what_nobody_told_is_not_told_of_an_imported_lora(theirs, tiny, tmp_path, dataset, way):
    """It said seed 0, batch 1, warmup 10, `targets attention`, and bore our base's fingerprint."""
    folder, source = tiny("sd1")[0], theirs
    if way != "straight":
        source = import_lora(theirs, tmp_path / "run", str(folder), data=dataset.root)
    form = "kohya" if way == "straight" else way
    out = export(source, form, tmp_path / "out.safetensors", base=str(folder)).path
    header = header_of(out)
    assert not set(INVENTED) & header.keys(), set(INVENTED) & header.keys()
    assert header["ss_steps"] == "1600" and header["ss_network_alpha"] == "2.0"
    assert export(source, form, out, base=str(folder)).path == out, "an export replaces its own"


def test_an_imported_run_keeps_what_its_file_told_and_its_card_too(theirs, tiny, tmp_path):
    run = import_lora(theirs, tmp_path / "run", str(tiny("sd1")[0]))
    assert run_facts(run)["settings"].keys() == {"method", "base", "steps", "rank", "alpha"}
    text = write_card(run, tmp_path / "card").read_text("utf-8")
    assert "| steps | 1600 |" in text and "| seed |" not in text and "| targets |" not in text


def test_a_merge_of_an_imported_lora_invents_nothing_either(theirs, tiny, tmp_path):
    run = import_lora(theirs, tmp_path / "run", str(tiny("sd1")[0]))
    header = header_of(merge(run, "checkpoint", tmp_path / "m.safetensors").path)
    assert "workbench.settings" not in header and "modelspec.date" not in header
    fingerprint = open_base_weights(str(tiny("sd1")[0])).fingerprint()
    assert header["workbench.base_fingerprint"] == fingerprint, "that base is in it"


def test_a_mix_says_its_base_only_where_all_its_parts_do(run, theirs, tiny):
    folder = tiny("sd1")[0]
    fingerprint = open_base_weights(str(folder)).fingerprint()
    write_json(run / "metrics.json", {"base_fingerprint": fingerprint})
    own = mix({"a": run, "b": run}, "cat", base=str(folder)).metadata
    other = mix({"a": run, "b": theirs}, "cat", base=str(folder)).metadata
    assert own["workbench.base_fingerprint"] == fingerprint
    assert "workbench.base_fingerprint" not in other


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft", "checkpoint"])
def test_no_place_on_this_machine_is_told(run, tiny, tmp_path, form):
    out = tmp_path / ("p" if form == "peft" else "out.safetensors")
    done = export(run, form, out)
    files = [done.path] if done.path.is_file() else list(done.path.rglob("*.*"))
    for file in files:
        assert str(tmp_path).encode() not in file.read_bytes(), file
        assert str(tiny("sd1")[0].parent).encode() not in file.read_bytes(), file
    header = header_of(next(file for file in files if file.suffix == ".safetensors"))
    assert header["workbench.base"] == "sd1"
    assert json.loads(header["workbench.settings"])["base"] == "sd1"
    if form == "checkpoint":
        assert header["modelspec.merged_from"] == "sd1, run"


def test_the_card_names_the_base_without_its_place(run, tiny, tmp_path):
    text = write_card(run, tmp_path / "card").read_text("utf-8")
    assert "base_model: sd1\n" in text and "| base | sd1 |" in text
    assert str(tiny("sd1")[0].parent) not in text


def test_a_folder_does_not_say_what_its_parts_were_loaded_from(run, tiny, tmp_path):
    """diffusers writes `_name_or_path` into each part's configuration."""
    import shutil

    base = tmp_path / "secret" / "base"
    shutil.copytree(tiny("sd1")[0], base)
    config = base / "unet" / "config.json"
    write_json(config, read_json(config) | {"_name_or_path": str(base / "unet")})
    out = merge(run, "diffusers", tmp_path / "model", base=str(base), other_base=True).path
    assert read_json(out / "unet" / "config.json")["_name_or_path"] == "unet"
    assert not [f for f in out.rglob("*.json") if "secret" in f.read_text("utf-8")]


def passed_on(header, tiny, tmp_path):
    """The header of the export of somebody's LoRA that has `header`."""
    base = str(tiny("sd1")[0])
    tensors, _ = kohya_tensors(adapter_for(base))
    save_weights_file(tmp_path / "x.safetensors", tensors, header)
    return header_of(
        export_lora(tmp_path / "x.safetensors", "kohya", tmp_path / "y.safetensors", base=base).path
    )


def test_anothers_header_is_passed_on_without_their_places(tiny, tmp_path):
    header = {
        "ss_sd_model_name": "/home/ann/models/photo.safetensors",
        "ss_vae_name": r"C:\Users\ann\vae.pt",
        "ss_training_comment": "/home/ann/notes",
        "ss_tag_frequency": '{"a/b": {"c": 1}}',
        "modelspec.author": "Ann / Studio",
    }
    found = passed_on(header, tiny, tmp_path)
    assert {key: found[key] for key in header} == header | {
        "ss_sd_model_name": "photo.safetensors",
        "ss_vae_name": "vae.pt",
        "ss_training_comment": "notes",
    }


def test_no_place_is_told_by_the_json_that_tools_write_into_headers(tiny, tmp_path):
    """OneTrainer writes its whole configuration, with the folders of the machine it ran on."""
    tags = json.dumps({"10_zwx": {"1/2": 3, "\\m/": 1, "/": 1}})
    header = {
        "ot_secrets": json.dumps({"from": "ftp://ann:secret@host.org/x", "say": "zwx: a/b"}),
        "ot_config": json.dumps({"base": r"C:\Users\ann\sd.safetensors", "dirs": ["/home/ann/w"]}),
        "ss_dataset_dirs": json.dumps({"/home/ann/10_zwx toy": {"n_repeats": 10}}),
        "ss_tag_frequency": tags,
        "ss_network_args": "{broken /home",
    }
    found = passed_on(header, tiny, tmp_path)
    secrets = {"from": "ftp://host.org/x", "say": "zwx: a/b"}
    assert json.loads(found["ot_secrets"]) == secrets
    assert json.loads(found["ot_config"]) == {"base": "sd.safetensors", "dirs": ["w"]}
    assert json.loads(found["ss_dataset_dirs"]) == {"10_zwx toy": {"n_repeats": 10}}
    assert found["ss_tag_frequency"] == tags and found["ss_network_args"] == "{broken /home"


@pytest.mark.parametrize(
    "name, public",
    [
        ("pocket", "pocket"),
        ("stabilityai/sd-turbo", "stabilityai/sd-turbo"),
        ("/models/sd15/", "sd15"),
        ("~/sd15.safetensors", "sd15.safetensors"),
        ("a/b/c/sd15.safetensors", "sd15.safetensors"),
        ("../sd15", "sd15"),
        (r"D:\models\sd15.safetensors", "sd15.safetensors"),
        ("/home/ann/.cache/huggingface/hub/models--owner--name/snapshots/0a1b", "owner/name"),
        ("https://huggingface.co/owner/name", "https://huggingface.co/owner/name"),
        ("https://ann:hf_secret@host.org/owner/name", "https://host.org/owner/name"),
        ("https://host.org/x.safetensors?token=hf_secret#a", "https://host.org/x.safetensors"),
        ("HTTPS://ann:hf_secret@host.org/x", "HTTPS://host.org/x"),
        ("ftp://ann:secret@host.org/x.safetensors", "ftp://host.org/x.safetensors"),
        ("gs://bucket/x.safetensors?token=secret", "gs://bucket/x.safetensors"),
        ("s3://bucket/x.safetensors", "s3://bucket/x.safetensors"),
        (r"models\sd15.safetensors", "sd15.safetensors"),
        ("file:///home/ann/sd15.safetensors", "sd15.safetensors"),
        (r"\\server\ann\sd15.safetensors", "sd15.safetensors"),
        ("$HOME/models/sd15", "sd15"),
        (r"%USERPROFILE%\models\sd15", "sd15"),
    ],
)
def test_a_name_is_kept_and_a_place_is_not(name, public):
    assert public_name(name, named=True) == public


def test_the_diffusers_form_warns_whom_it_is_not_for(run, tiny, tmp_path):
    """ "224 of 480 keys will load in ComfyUI" was a plain line, and the tools say nothing."""
    lines = list(export(run, "diffusers", tmp_path / "d.safetensors").lines())
    [warning] = [line for line in lines if line.startswith("Warning:")]
    assert "--to kohya" in warning
    for tool in ("ComfyUI", "Forge", "WebUI", "Kohya"):
        assert f"in {tool}" in warning and not any(f"load in {tool}" in line for line in lines)
    assert any(line.endswith("keys will load in diffusers") for line in lines)
    for form in ("kohya", "peft"):
        out = tmp_path / ("p" if form == "peft" else "k.safetensors")
        assert not [line for line in export(run, form, out).lines() if "Warning" in line]


def test_a_few_keys_left_aside_are_no_warning(tmp_path):
    readers = {"one": (["a"] * 75, ["b.alpha"] * 25), "two": (["a"] * 74, ["b.alpha"] * 26)}
    first, warning = Written(tmp_path, 1, 1.0, readers).lines()
    assert first == "75 of 100 keys will load in one; it leaves aside b"
    assert warning.startswith("Warning") and "74 of 100 keys in two" in warning


def test_a_base_that_a_file_names_and_is_not_here_is_one_sentence(run, tmp_path):
    out = export(run, "kohya", tmp_path / "k.safetensors").path
    with pytest.raises(BadInput, match="no base model 'sd1'"):
        merge(out, "checkpoint", tmp_path / "m.safetensors")
