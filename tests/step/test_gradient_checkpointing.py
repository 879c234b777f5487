"""What a step keeps for the way back: which transformers are the largest, and frozen convolutions
that keep nothing.
"""

import weakref

import pytest
import torch
from short_runs import batch
from torch.utils.flop_counter import FlopCounterMode

from lib.memory.cards import weigh
from lib.memory.fake_tensors import fake_device
from lib.memory.forecasting import BASES, hollow_base, plan
from lib.models.base import load_base
from lib.step.gradient_checkpointing import keep, largest
from lib.step.training_step import Step

LARGEST = {
    "pocket": {"down_blocks.1": 1, "up_blocks.1": 2},  # 8 x 8, not 4 x 4
    "sd15": {
        "down_blocks.0": 2,
        "down_blocks.1": 2,
        "up_blocks.2": 3,
        "up_blocks.3": 3,
    },  # 64 x 64 and 32 x 32
    "sd21": {"down_blocks.0": 2, "down_blocks.1": 2, "up_blocks.2": 3, "up_blocks.3": 3},
    "sdxl": {"down_blocks.2": 2, "up_blocks.0": 3, "mid_block": 1},  # ten layers deep, on 32 x 32
}


@pytest.mark.parametrize("name", BASES)
def test_the_largest_transformers_are_those_that_keep_most(name):
    with fake_device("cpu"):
        unet = hollow_base(name).unet
        paths = {id(module): path for path, module in unet.named_modules()}
        found = [paths[id(transformer)].split(".attentions")[0] for transformer in largest(unet)]
    assert {path: found.count(path) for path in found} == LARGEST[name]


def test_each_rung_of_checkpointing_takes_less_memory_than_the_one_before():
    for name in ("sd15", "sdxl"):
        recipes = [
            plan("lora", name, prior_weight=0.0, checkpointing=how)
            for how in ("none", "largest", "all")
        ]
        took = [weigh(recipe)["by_category"]["activations"] for recipe in recipes]
        assert took[1] < 0.6 * took[0] and took[2] < 0.6 * took[1]


def test_the_rungs_compute_more_in_turn_and_leave_no_trace(tiny_folder, make):
    """The arithmetic of a step, which is the same on every machine: a part of the forward pass
    again, then all of it; closed, none is.
    """
    flop = {}
    for how in ("none", "largest", "all"):
        step = Step(load_base(tiny_folder), make(checkpointing=how))
        with FlopCounterMode(display=False) as counted:
            step(*batch(step.base))
        flop[how] = counted.get_total_flops()
        step.close()
        assert not any(
            getattr(m, "gradient_checkpointing", False) or "forward" in vars(m)
            for m in step.unet.modules()
        )
    assert flop["none"] < flop["largest"] < flop["all"] < 1.5 * flop["none"]


@pytest.mark.parametrize("trains", [False, True])
def test_a_convolution_keeps_its_input_only_if_it_trains(trains):
    unet = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.SiLU()).requires_grad_(
        trains
    )
    unet.enable_gradient_checkpointing = unet.disable_gradient_checkpointing = lambda *_: None
    inputs, gradients = (
        [
            torch.randn(2, 4, 8, 8, requires_grad=True, generator=torch.Generator().manual_seed(0))
            for _ in range(2)
        ],
        [],
    )
    for how, leaf in zip(("none", "all"), inputs):
        keep(unet, how)
        x = leaf * 1
        kept, out = weakref.ref(x.untyped_storage()), unet(x)
        del x
        assert (kept() is not None) is (trains or how == "none")
        out.square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
