"""LoHa and LoKr come in as a LoRA of a stated rank, and what the cut lost is told.

The changes are computed here number by number, from the formulas of LyCORIS (Yeh et al. 2023, arXiv
2309.14859); `make interop` holds them to files that lycoris-lora itself wrote.
"""

import pytest
import torch
from adapters import adapter_for
from safetensors.torch import save_file

from lib.__main__ import app
from lib.convert.adapter import read_adapter
from lib.convert.interchange import export, import_lora
from lib.files import BadInput
from lib.models import open_base_weights

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "mid_block.resnets.0.conv1"


def random(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator)


def kron(one, two):
    """The Kronecker product, number by number."""
    (a, b), (c, d) = one.shape, two.shape
    rows = [[one[i // c, j // d] * two[i % c, j % d] for j in range(b * d)] for i in range(a * c)]
    return torch.tensor(rows)


def written(path, layers):
    """A file in Kohya's form of {layer: {role: tensor}}."""
    tensors = {
        f"lora_unet_{name.replace('.', '_')}.{role}": tensor
        for name, roles in layers.items()
        for role, tensor in roles.items()
    }
    save_file(tensors, path, {"ss_network_module": "lycoris.kohya", "ss_network_dim": "2"})
    return path


def shape_of(folder, name):
    return open_base_weights(str(folder)).layer_shapes("unet")[name]


def loha(out, inside, rank=2, alpha=1.0):
    """(tensors, change) of a LoHa, the change as a matrix."""
    a1, b1 = random(out, rank), random(rank, inside)
    a2, b2 = random(out, rank).flip(0), random(rank, inside).flip(1)
    roles = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    return roles | {"alpha": torch.tensor(alpha)}, (a1 @ b1) * (a2 @ b2) * alpha / rank


@pytest.mark.parametrize("layer", [LINEAR, CONVOLUTION])
def test_a_loha_of_enough_rank_is_what_its_formula_says(tiny, tmp_path, layer):
    folder = tiny("sd1")[0]
    out, *rest = shape_of(folder, layer)
    roles, change = loha(out, torch.Size(rest).numel())
    path = written(tmp_path / "x.safetensors", {layer: roles})
    run = import_lora(path, tmp_path / "run", str(folder), rank=16)
    found = read_adapter(run).layers["unet"][layer]
    assert found.delta().shape == (out, *rest)
    assert torch.allclose(found.delta().flatten(1), change, atol=4e-3 * change.abs().max())


def test_a_loha_of_tuckers_form_is_what_its_formula_says(tiny, tmp_path):
    folder = tiny("sd1")[0]
    out, inside, height, width = shape_of(folder, CONVOLUTION)
    halves, roles = [], {"alpha": torch.tensor(2.0)}
    for k in (1, 2):
        core, a, b = random(2, 2, height, width) * k, random(2, out), random(2, inside)
        half = torch.zeros(out, inside, height, width)
        for i in range(2):
            for j in range(2):
                half += a[i][:, None, None, None] * b[j][None, :, None, None] * core[i, j]
        halves.append(half)
        roles |= {f"hada_t{k}": core, f"hada_w{k}_a": a, f"hada_w{k}_b": b}
    path = written(tmp_path / "x.safetensors", {CONVOLUTION: roles})
    found = read_adapter(import_lora(path, tmp_path / "run", str(folder), rank=16))
    change = halves[0] * halves[1]
    gap = found.layers["unet"][CONVOLUTION].delta() - change
    assert gap.norm() < 2e-3 * change.norm()


@pytest.mark.parametrize("form", ["whole", "second in halves", "both in halves"])
def test_a_lokr_is_what_its_formula_says_in_each_of_its_forms(tiny, tmp_path, form):
    folder = tiny("sd1")[0]
    out, inside = shape_of(folder, LINEAR)
    one, scale = random(2, 4), 1.0
    roles = {"alpha": torch.tensor(3.0), "lokr_w1": one}
    a, b = random(out // 2, 2), random(2, inside // 4)
    two = a @ b
    if form == "whole":  # then alpha says nothing
        roles["lokr_w2"] = two
    else:
        roles |= {"lokr_w2_a": a, "lokr_w2_b": b}
        scale = 3.0 / 2
    if form == "both in halves":
        del roles["lokr_w1"]
        roles |= {"lokr_w1_a": random(2, 2), "lokr_w1_b": one}
        one = roles["lokr_w1_a"] @ roles["lokr_w1_b"]
    path = written(tmp_path / "x.safetensors", {LINEAR: roles})
    found = read_adapter(import_lora(path, tmp_path / "run", str(folder), rank=16))
    change = kron(one, two) * scale
    gap = found.layers["unet"][LINEAR].delta() - change
    assert gap.norm() < 2e-3 * change.norm()


def test_a_lokr_of_a_convolution_has_its_kernel_in_the_second_factor(tiny, tmp_path):
    folder = tiny("sd1")[0]
    out, inside, height, width = shape_of(folder, CONVOLUTION)
    one, two = random(2, 2), random(out // 2, inside // 2, height, width)
    halves = random(out // 2, 2), random(2, inside // 2 * height * width)
    flat = (halves[0] @ halves[1]).reshape(two.shape)
    forms = [
        ({"lokr_w2": two}, two),
        ({"lokr_w2_a": halves[0], "lokr_w2_b": halves[1], "alpha": torch.tensor(2.0)}, flat),
    ]
    for k, (roles, second) in enumerate(forms):
        path = written(tmp_path / f"{k}.safetensors", {CONVOLUTION: {"lokr_w1": one} | roles})
        run = import_lora(path, tmp_path / f"run{k}", str(folder), rank=1024)
        found = read_adapter(run).layers["unet"][CONVOLUTION].delta()
        for y in range(height):
            for x in range(width):
                wanted = kron(one, second[:, :, y, x])
                gap = found[:, :, y, x] - wanted
                assert gap.norm() < 2e-3 * wanted.norm()


def test_what_a_cut_loses_is_told_and_goes_with_the_file(tiny, tmp_path, capsys):
    folder = tiny("sd1")[0]
    out, inside = shape_of(folder, LINEAR)
    roles, change = loha(out, inside, rank=3)
    path = written(tmp_path / "x.safetensors", {LINEAR: roles})
    done = app(
        ["import", str(path), "--base", str(folder), "--rank", "2", "--out", str(tmp_path / "run")],
        standalone_mode=False,
    )
    assert not done
    singular = torch.linalg.svdvals(change).square()
    share = (singular[:2].sum() / singular.sum()).item()
    said = f"LoHa cut by SVD to a LoRA of rank 2: {share:.4f} of the change kept"
    assert said in capsys.readouterr().out and share < 0.99
    export(tmp_path / "run", "kohya", tmp_path / "out.safetensors")
    again = read_adapter(tmp_path / "out.safetensors")
    assert said in again.metadata["ss_training_comment"]
    assert again.metadata["ss_network_dim"] == "2"
    assert again.metadata["ss_network_module"] == "networks.lora"


def test_layers_of_a_lora_beside_those_of_a_lokr_come_in_as_they_are(tiny, tmp_path):
    folder = tiny("sd1")[0]
    shape = shape_of(folder, CONVOLUTION)
    roles, _ = loha(*shape_of(folder, LINEAR))
    down, up = random(2, *shape[1:]), random(shape[0], 2, 1, 1)
    lora = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    path = written(tmp_path / "x.safetensors", {LINEAR: roles, CONVOLUTION: lora})
    found = read_adapter(import_lora(path, tmp_path / "run", str(folder), rank=8)).layers["unet"]
    assert found[CONVOLUTION].down.equal(down) and found[CONVOLUTION].alpha == 1
    assert set(found) == {LINEAR, CONVOLUTION}


def refused(words, *arguments, **options):
    with pytest.raises(BadInput, match=words):
        import_lora(*arguments, **options)


def test_what_cannot_be_cut_is_refused_by_its_reason(tiny, tmp_path):
    folder, run = str(tiny("sd1")[0]), tmp_path / "run"
    roles, _ = loha(*shape_of(folder, LINEAR))
    file = written(tmp_path / "x.safetensors", {LINEAR: roles})
    refused("a LoHa .* comes in as a LoRA of a rank that you choose, .*--rank", file, run, folder)
    refused("The rank is 0, outside", file, run, folder, rank=0)

    def with_roles(**more):
        return written(tmp_path / "y.safetensors", {LINEAR: roles | more})

    decomposed = with_roles(dora_scale=torch.ones(16, 1))
    refused("LoHa with weight decomposition", decomposed, run, folder, rank=4)
    refused("holds lokr_w1 too", with_roles(lokr_w1=torch.ones(2, 2)), run, folder, rank=4)
    refused("unknown keys.*diff", with_roles(diff=torch.ones(2, 2)), run, folder, rank=4)
    refused("cannot be put together", with_roles(hada_w2_a=torch.ones(3, 2)), run, folder, rank=4)
    half = {role: tensor for role, tensor in roles.items() if role != "hada_w2_b"}
    broken = written(tmp_path / "z.safetensors", {LINEAR: half})
    refused("cannot be put together .*hada_w2_b", broken, run, folder, rank=4)
    other = written(tmp_path / "o.safetensors", {"down_blocks.7.resnets.0.conv1": roles})
    refused("that the base has not: name its own base", other, run, folder, rank=4)
    assert not run.exists()


def test_a_lora_needs_no_rank_and_says_so(tiny, tmp_path):
    folder = tiny("sd1")[0]
    export(adapter_for(folder), "kohya", tmp_path / "x.safetensors", str(folder))
    refused("leave the rank out", tmp_path / "x.safetensors", tmp_path / "r", str(folder), rank=4)
