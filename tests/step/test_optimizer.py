"""The optimiser's pieces against libraries that have them too: torch's AdamW, and torchao where it
is installed (`pip install torchao`).
"""

import pytest
import torch

from lib.step.optimizer import Optimizer

STEPS, RATE = 20, 1e-2


def gradients():
    """The same few gradients each time, of a weight of 64 x 256 numbers."""
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(64, 256, generator=generator)
    return [mean + torch.randn(64, 256, generator=generator) for _ in range(STEPS)]


def start(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.nn.Parameter(torch.randn(64, 256, generator=generator).to(dtype))


def after(weight, optimizer):
    """A weight's change by `STEPS` steps of an optimiser, in fp32."""
    before = weight.detach().float().clone()
    for gradient in gradients():
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()
    return weight.detach().float() - before


def ours(make, **changes):
    weight = start(torch.bfloat16 if changes.get("weights") == "bf16" else torch.float32)
    settings = make("dreambooth", learning_rate=RATE, clip=1000.0, **changes)
    return after(weight, Optimizer([weight], [1.0], settings, torch.device("cpu")))


def torchs():
    weight = start()
    return after(weight, torch.optim.AdamW([weight], lr=RATE, weight_decay=1e-2))


def apart(one, other):
    """Their difference over the second, as norms."""
    return ((one - other).norm() / other.norm()).item()


@pytest.fixture
def torchao():
    """torchao.optim as it is, without the kernels that it would compile first."""
    optim = pytest.importorskip("torchao.optim")
    with torch.compiler.set_stance("force_eager"):
        yield optim


@pytest.mark.parametrize(
    "changes, most",
    [({}, 1e-6), ({"weights": "bf16"}, 0.1), ({"optimizer": "adamw8bit"}, 0.05)],
)
def test_each_recipe_updates_as_torchs_adamw(make, changes, most):
    assert apart(ours(make, **changes), torchs()) < most


def test_eight_bit_moments_are_torchaos(make, torchao):
    weight = start()
    theirs = after(weight, torchao.AdamW8bit([weight], lr=RATE, weight_decay=1e-2))
    found = ours(make, optimizer="adamw8bit")
    assert apart(found, theirs) < 0.3 * apart(found, torchs())


def test_stochastic_rounding_is_torchaos_in_the_mean(make, torchao):
    """Both draw their own numbers: rounding errors are as large and as free of bias."""
    torch.manual_seed(0)  # of theirs
    weight = start(torch.bfloat16)
    adamw = torchao._AdamW([weight], lr=RATE, weight_decay=1e-2, bf16_stochastic_round=True)
    exact, theirs, found = torchs(), after(weight, adamw), ours(make, weights="bf16")
    assert apart(found, exact) == pytest.approx(apart(theirs, exact), rel=0.1)
    assert (found - theirs).mean().abs() < 0.01 * exact.abs().mean()
