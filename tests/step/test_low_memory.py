"""Recipes that fit: each learns the same as the plain one, saves what it promises, and is refused
where it makes no sense.
"""

import gc
import json
import weakref

import pytest
import torch
from conftest import LONE, write_tiny_base
from safetensors.torch import load_file
from short_runs import batch

from lib.files.errors import BadInput
from lib.memory.ladder import step_down
from lib.memory.tracker import PeakMemory
from lib.models.base import load_base
from lib.step import quantization as recipes
from lib.step.optimizer import Optimizer, group_weights
from lib.step.param_groups import moments_in_fp32, round_stochastically
from lib.step.run_weights import as_saved, load_run
from lib.step.training_step import Step, fused_attention_layers, plain_attention
from lib.training.loop import train

LOW = {"optimizer": "adamw8bit", "weights": "bf16", "checkpointing": "all"}


def taken(tiny_folder, settings, steps=3, **inputs):
    """A `Step` after some steps, what the last returned, and the memory it took. So small a batch
    leaves weights most of the memory.
    """
    base = load_base(tiny_folder)
    step, inputs = Step(base, settings), batch(base, **inputs)
    for _ in range(steps - 1):
        step(*inputs)
    with PeakMemory(step.denoiser, step.optimizer, inputs) as peak:
        numbers = step(*inputs)
    return step, numbers, peak.by_category


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
@pytest.mark.parametrize("how", ["largest", "all"])
def test_gradient_checkpointing_gives_the_same_numbers_with_fewer_activations(
    tiny_folder, make, method, how
):
    plain, numbers, memory = taken(tiny_folder, make(method), size=4, side=16)
    spared, same, less = taken(tiny_folder, make(method, checkpointing=how), size=4, side=16)
    assert torch.equal(numbers, same) and all(
        torch.equal(a, b) for a, b in zip(plain.weights, spared.weights)
    )
    assert less["activations"] < 0.8 * memory["activations"]


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """A tiny base of three levels, in which gradients take more than what a step keeps."""
    return write_tiny_base(tmp_path_factory.mktemp("base") / "deep", (16, 32, 32))


def test_an_update_fused_into_backward_holds_few_gradients_and_is_adamws(
    deep_folder, make, monkeypatch
):
    monkeypatch.setattr("lib.step.optimizer.GROUP_SIZE", 2**12)
    plain, _, memory = taken(deep_folder, make("dreambooth", clip=1000.0))
    fused, _, less = taken(deep_folder, make("dreambooth", clip=1000.0, fused_backward=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, fused.weights)), (
        "unclipped, it is the very same update"
    )
    assert len(fused.optimizer.groups) > 10 and sum(less.values()) < sum(memory.values())
    assert less["gradients"] < 0.3 * memory["gradients"], (
        "of some groups a gradient or two, and those of all small weights, are there"
    )
    assert all(w.grad is None for w in fused.weights)
    fused.close()
    fused.loss(*batch(fused.base)).mean().backward()
    assert all(w.grad is not None for w in fused.weights), (
        "after `close` a backward pass only makes gradients"
    )


@pytest.mark.parametrize("changes", [{}, {"weights": "bf16"}])
@pytest.mark.parametrize("clip", [0.01, 1000.0])
def test_gradients_are_clipped_to_the_norm_of_all(tiny_folder, make, changes, clip):
    step, numbers, _ = taken(tiny_folder, make("dreambooth", clip=clip, **changes), steps=1)
    first = (
        sum(state["exp_avg"].square().sum() for state in step.optimizer.state.values()).sqrt() / 0.1
    )  # 1 - beta1, of AdamW
    assert 0.01 < numbers[2] < 1000 and first == pytest.approx(
        min(clip, float(numbers[2])), rel=0.02
    )


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_nobody_holds_leaves_memory(tiny_folder, make, fused):
    """As where memory runs out and the next recipe needs it: a hook of a weight is out of the
    collector's sight, and what it holds too.
    """
    base = load_base(tiny_folder)
    step = Step(base, make("dreambooth", fused_backward=fused))
    step(*batch(base))
    gone = [weakref.ref(thing) for thing in (step, step.optimizer, step.weights[0])]
    del step
    base.pipe.unet = None
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_fused_clipping_keeps_the_norm_of_all_within_the_limit(tiny_folder, make, monkeypatch):
    base = load_base(tiny_folder)
    monkeypatch.setattr("lib.step.optimizer.GROUP_SIZE", 2**12)
    step = Step(base, make("dreambooth", clip=0.01, fused_backward=True))
    norm = step(*batch(base))[2]
    used = (
        sum(state["exp_avg"].square().sum() for state in step.optimizer.state.values()).sqrt() / 0.1
    )  # 1 - beta1, of AdamW
    assert norm > 0.0101 > used > 0.005 and len(step.optimizer.groups) > 10


def test_eight_bit_moments_take_a_quarter_and_the_step_stays_close(tiny_folder, make):
    plain, _, memory = taken(tiny_folder, make("dreambooth"))
    small, _, less = taken(tiny_folder, make("dreambooth", optimizer="adamw8bit"))
    assert less["optimiser"] < 0.5 * memory["optimiser"], (
        "a quarter but for small weights, of which this model has many"
    )
    start = list(load_base(tiny_folder).denoiser.parameters())
    moved = sum((a.detach() - s).square().sum() for a, s in zip(plain.weights, start)).sqrt()
    apart = sum(
        (a.detach() - b.detach()).square().sum() for a, b in zip(plain.weights, small.weights)
    ).sqrt()
    assert apart < 0.2 * moved
    assert all(a.stride() == b.stride() for a, b in zip(plain.weights, small.weights)), (
        "still channels last"
    )


def test_bf16_weights_halve_weights_and_gradients(deep_folder, make):
    _, _, memory = taken(deep_folder, make("dreambooth"))
    step, _, less = taken(deep_folder, make("dreambooth", weights="bf16"))
    assert {w.dtype for w in step.weights} == {torch.bfloat16}
    assert (
        less["weights"] < 0.55 * memory["weights"]
        and less["gradients"] < 0.55 * memory["gradients"]
    )


def test_stochastic_rounding_keeps_the_mean_where_rounding_to_nearest_loses_it():
    exact, generator = (
        torch.full((40_000,), 1.0 + 2**-10),
        torch.Generator().manual_seed(0),
    )  # bf16 steps by 2**-7 here
    round_stochastically(out := exact.clone(), generator)
    assert set(out.tolist()) == {1.0, 1.0 + 2**-7}
    assert out.double().mean().item() == pytest.approx(1.0 + 2**-10, abs=1e-4)
    assert exact.bfloat16().double().mean() == 1.0
    kept = torch.tensor([0.0, -1.5, 3.0, float("inf")])
    round_stochastically(out := kept.clone(), generator)
    assert torch.equal(out, kept), "what bf16 holds exactly stays"
    third = torch.rand(
        9_999, generator=generator
    )  # an odd number of them: every second one takes the other's draw inverted
    rounds = [third.clone() for _ in range(400)]
    for some in rounds:
        round_stochastically(some, generator)
    assert torch.equal(rounds[0].bfloat16().float(), rounds[0]), "what is left is bf16's"
    mean = torch.stack(rounds).double().mean(0)
    assert ((mean - third.double()).abs() < 5 * 2**-9 / 20 + 1e-9).all(), (
        "each number's mean is exact, first half and second"
    )


def test_groups_are_of_one_rate_and_size_and_hold_every_weight_once():
    sizes, shares = [5000, 30, 9000, 20, 7000, 6000, 5000], [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0]
    weights = [torch.empty(n) for n in sizes]
    assert group_weights(weights, shares, 8000) == [
        ([0], 1.0),
        ([1, 3], 1.0),
        ([2], 1.0),
        ([4], 1.0),
        ([5], 0.5),
        ([6], 1.0),
    ]
    assert group_weights(weights, shares, 40_000) == [
        ([0, 2, 4, 6], 1.0),
        ([1, 3], 1.0),
        ([5], 0.5),
    ]


def test_bf16_weights_learn_from_updates_far_below_their_step(make):
    weight = torch.nn.Parameter(torch.full((1000,), 4.0, dtype=torch.bfloat16))
    optimizer = Optimizer(
        [weight], [1.0], make("dreambooth", weights="bf16", learning_rate=1e-3), torch.device("cpu")
    )
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    # 100 steps of 0.001, and the decay of 100 * 0.001 * 0.01 * 4; to the nearest, where 4.0 steps
    # by 0.0156 downwards, all would be lost
    assert weight.float().mean().item() == pytest.approx(4.0 - 0.1 - 0.004, abs=0.005)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_trains_its_adapter_and_is_smaller(tiny_folder, make, kind):
    assert recipes.device_supports(kind, "cpu"), "bitsandbytes runs on the CPU"
    plain, _, memory = taken(tiny_folder, make())
    step, _, less = taken(tiny_folder, make(quantize=kind))
    assert less["weights"] < memory["weights"]
    start, end = (load_base(tiny_folder), make(quantize=kind)), dict(step.named_weights())
    fresh = dict(Step(*start).named_weights())
    assert end.keys() == fresh.keys() == dict(plain.named_weights()).keys(), (
        "the adapter's names do not depend on what it sits beside"
    )
    assert all("lora_" in name for name in end) and any(
        not torch.equal(end[n], fresh[n]) for n in end
    )


def test_layers_are_quantised_one_at_a_time():
    """Never are all layers there both as they were and quantised: the peak is the model and one
    layer's passing copies.
    """
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(64))).requires_grad_(False)
    before = sum(p.nbytes for p in model.parameters())
    with PeakMemory(model) as peak:
        recipes.quantize_linear_layers(model, "nf4", torch.float32, torch.device("cpu"))
    after = sum(p.nbytes for p in model.parameters())
    assert after < 0.2 * before and peak.bytes < before + 0.5 * after


def test_a_run_trained_on_a_quantised_base_is_an_ordinary_adapter(tiny_folder, make):
    run = train(make(quantize="nf4", sample_every=3, sample_steps=2))
    assert len(load_run(run, load_base(tiny_folder)).generate(["a robot"], [0], 2)) == 1
    assert json.loads((run / "metrics.json").read_text())["recipe"]["quantize"] == "nf4"


def test_what_the_device_cannot_do_falls_back_and_is_said_once(make, monkeypatch, capsys):
    import bitsandbytes

    recipes.device_supports.cache_clear()
    monkeypatch.setattr(
        bitsandbytes.optim.AdamW8bit,
        "step",
        lambda self: (_ for _ in ()).throw(RuntimeError("no kernel image")),
    )
    settings = make(optimizer="adamw8bit", checkpointing="all")
    for _ in range(2):
        assert recipes.supported_settings(settings, torch.device("cpu")) == settings.replace(
            optimizer="adamw"
        )
    assert capsys.readouterr().out.count("no kernel image") == 1
    recipes.device_supports.cache_clear()


def test_the_step_down_passes_over_what_the_device_cannot_do(make, monkeypatch):
    full = make("dreambooth")
    assert (
        step_down(full)[0]
        == step_down(full, torch.device("cpu"))[0]
        == full.replace(optimizer="adamw8bit")
    )
    monkeypatch.setattr(recipes, "device_supports", lambda what, device: False)
    seen = [full]
    while lower := step_down(seen[-1], torch.device("cpu")):
        seen.append(lower[0])
    assert (
        {s.optimizer for s in seen} == {"adamw"}
        and seen[-1].checkpointing == "all"
        and seen[-1].fused_backward
        and len(seen) == 5
    )


@pytest.mark.parametrize(
    "method, changes, word",
    [
        ("dreambooth", {"quantize": "nf4"}, "quantize"),
        ("lora", {"fused_backward": True}, "fused_backward"),
        ("dreambooth", {"weights": "bf16", "precision": "fp32"}, "precision"),
        ("dreambooth", {"weights": "fp16"}, "fp32, bf16"),
        ("lora", {"checkpointing": True}, "must be a text"),
        ("lora", {"checkpointing": "some"}, "none, largest, all"),
        ("dreambooth", {"fused_backward": 1}, "True or False"),
        ("lora", {"optimizer": "adam"}, "adamw8bit"),
    ],
)
def test_recipes_that_make_no_sense_are_refused_in_one_sentence(make, method, changes, word):
    with pytest.raises(BadInput, match=word) as caught:
        make(method, **changes)
    assert "\n" not in str(caught.value)


def test_samples_are_drawn_with_the_weights_as_saved_and_training_goes_on_exactly(
    tiny_folder, make
):
    step, _, _ = taken(tiny_folder, make("dreambooth"))
    before = [w.detach().clone() for w in step.weights]
    with as_saved(step.weights):
        assert all(torch.equal(w, b.half().float()) for w, b in zip(step.weights, before))
        assert any(not torch.equal(w, b) for w, b in zip(step.weights, before))
    assert all(torch.equal(w, b) for w, b in zip(step.weights, before))


def test_vae_and_text_encoder_are_gone_while_training_and_come_back_the_same(tiny_folder, make):
    base = load_base(tiny_folder)
    words, seen = base.conditions(["a robot"])["encoder_hidden_states"], []
    train(
        make(steps=2),
        base,
        [lambda state: seen.append({p.device.type for p in base.pipe.vae.parameters()})],
    )
    assert seen == [{"meta"}] * 2
    assert torch.equal(base.conditions(["a robot"])["encoder_hidden_states"], words)
    assert base.pipe.vae.device == base.pipe.text_encoder.device == base.device


FUSED = {"fused_backward": True}


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    "one, other",
    [
        ({}, LOW),
        ({}, FUSED),
        ({}, LOW | FUSED),
        (LOW, LOW | FUSED),
        (LOW, {}),
        (FUSED, LOW),
        ({"weights": "bf16"}, {"optimizer": "adamw8bit"}),
        ({"optimizer": "adamw8bit"}, FUSED),
    ],
)
def test_moments_survive_saving_and_change_of_recipe(
    tiny_folder, make, monkeypatch, one, other, small
):
    """What one recipe saves and another loads and saves again is the same, as close as 8 bits are,
    and the training goes on.
    """
    monkeypatch.setattr("lib.step.optimizer.GROUP_SIZE", 2**13)
    if not small:
        monkeypatch.setattr("lib.step.training_step.SMALL_LATENT", 0)
    before, _, _ = taken(tiny_folder, make("dreambooth", **one))
    saved = before.optimizer.state_dict()
    after = Step(load_base(tiny_folder), make("dreambooth", **other))
    after.optimizer.load_state_dict(saved)
    again = after.optimizer.state_dict()
    eight = [settings.get("optimizer") == "adamw8bit" for settings in (one, other)]
    assert [any(name.endswith("absmax1") for name in some) for some in (saved, again)] == eight
    fp32, same = moments_in_fp32(saved), moments_in_fp32(again)
    assert fp32.keys() == same.keys() and len([n for n in fp32 if n.endswith(".step")]) == len(
        before.weights
    )
    for name, value in fp32.items():
        near = 0.04 * value.float().abs().max() if eight[1] and not eight[0] else 0.0
        assert (same[name].float() - value.float()).abs().max() <= near, name
    k = max(range(len(before.weights)), key=lambda k: before.weights[k].numel())
    assert before.weights[k].is_contiguous() is small, "channels last where pictures are large"
    assert torch.isfinite(after(*batch(after.base))).all()
    assert (
        int(moments_in_fp32(after.optimizer.state_dict())[f"{k}.step"])
        == int(fp32[f"{k}.step"]) + 1
        == 4
    ), "bias correction goes on, too"


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_plain_attention_learns_what_the_fused_one_learns_and_is_gone_after_the_step(
    tiny_folder, make, monkeypatch, method
):
    """The fused kernel's own name is counted in backward: never in a step of a small base, for
    each attention in one of a larger.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        fused = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.fused += "flash_attention_for_cpu_backward" in str(function)
            return function(*args, **(kwargs or {}))

    plain, numbers, _ = taken(tiny_folder, make(method, precision="fp32"))
    kinds = {type(layer.processor).__name__ for layer in plain.small_attention}
    monkeypatch.setattr("lib.step.training_step.SMALL_LATENT", 0)
    fused, same, _ = taken(tiny_folder, make(method, precision="fp32"))
    assert plain.small_attention and kinds == {"AttnProcessor2_0"} and not fused.small_attention
    torch.testing.assert_close(numbers, same, rtol=1e-4, atol=1e-5)
    counts = []
    for step in (plain, fused):
        with Count() as count:
            step(*batch(step.base))
        counts.append(count.fused)
    assert counts[0] == 0 < counts[1]


def test_the_lone_head_of_the_pocket_base_has_no_gradient_and_plain_attention_says_so():
    base = load_base()
    unet, generator = base.denoiser.requires_grad_(True), torch.Generator().manual_seed(0)
    latents, noise = (
        torch.randn(2, unet.config.in_channels, 16, 16, generator=generator) for _ in range(2)
    )
    layers = fused_attention_layers(unet)
    words = base.conditions(["a photo of zwx robot", "a red car"])["encoder_hidden_states"]

    def gradient(layers, dtype):
        unet.to(dtype).zero_grad()
        with (
            plain_attention(layers),
            base.autocast(base.fast if dtype == torch.float32 else "fp32"),
        ):
            unet(latents.to(dtype), torch.tensor([100, 700]), words.to(dtype)).sample.float().sub(
                noise
            ).square().mean().backward()
        lone = unet.get_submodule(LONE)
        return [layer.weight.grad.abs().max().item() for layer in (lone.to_q, lone.to_k, lone.to_v)]

    true, plain, fused = (
        gradient(layers, torch.float64),
        gradient(layers, torch.float32),
        gradient([], torch.float32),
    )
    assert max(true[:2]) < 1e-11 * true[2]
    assert plain == pytest.approx(true, rel=0.2) and min(fused[:2]) > 100 * max(true[:2])


def test_the_file_is_fp16_whatever_the_weights_were(make):
    run = train(make("dreambooth", steps=2, **LOW))
    assert {
        t.dtype for t in load_file(run / "unet" / "diffusion_pytorch_model.safetensors").values()
    } == {torch.float16}
