import gc
import subprocess
import sys
import weakref

import pytest
import torch
from conftest import ROOT

from lib.memory.tracker import PeakMemory


def step(model, optimizer, x):
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_every_byte_of_a_known_step_is_in_its_category():
    model = torch.nn.Linear(256, 256, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(4, 256)
    step(model, optimizer, x)
    with PeakMemory(model, optimizer, x) as peak:
        step(model, optimizer, x)
    weight = 256 * 256 * 4
    assert peak.by_category["weights"] == weight
    assert peak.by_category["gradients"] == weight
    assert 2 * weight <= peak.by_category["optimiser"] <= 2 * weight + 64, (
        "two moments and a step counter"
    )
    assert peak.bytes == sum(peak.by_category.values()) >= 4 * weight


def test_freezing_weights_saves_gradients_and_moments_but_not_weights():
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 8))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters())
    x = torch.randn(4, 256)
    step(model, optimizer, x)
    with PeakMemory(model, optimizer, x) as peak:
        step(model, optimizer, x)
    last = sum(p.numel() * 4 for p in model[1].parameters())
    assert peak.by_category["gradients"] <= last and peak.by_category["optimiser"] <= 2 * last + 64
    assert peak.by_category["weights"] == sum(p.numel() * 4 for p in model.parameters())


def test_activations_grow_with_the_batch_and_are_released():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    peaks = []
    for size in (8, 80):
        x = torch.randn(size, 64)
        with PeakMemory(model, optimizer, x) as peak:
            for _ in range(5):
                step(model, optimizer, x)
        peaks.append(peak.by_category["activations"])
        assert peak.now["activations"] < 2 * x.nbytes + 1024, (
            "five steps must leave no activations behind"
        )
    assert peaks[1] > 3 * peaks[0]


def test_what_was_measured_is_free_afterwards():
    """A finaliser for each storage knows its `PeakMemory`: did that know the model, neither would
    ever go.
    """
    model = torch.nn.Linear(64, 64)
    optimizer, x = torch.optim.AdamW(model.parameters()), torch.randn(4, 64)
    step(model, optimizer, x)
    with PeakMemory(model, optimizer, x) as peak:
        step(model, optimizer, x)
    gone = [weakref.ref(part) for part in (model, optimizer, x)]
    del model, optimizer, x
    gc.collect()
    assert [one() for one in gone] == [None] * 3 and peak.bytes > 4 * 64 * 64 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_freed_memory_waits_for_the_next_step_and_large_blocks_go_back():
    """Counted in page faults, in a process of its own: what is set there lasts."""
    code = """
import resource
import torch
from lib.memory import keep_freed_memory
def faults(mib, blocks):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        kept = [torch.ones(mib * 2**18) for _ in range(blocks)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults(8, 12)
keep_freed_memory()
faults(8, 12)
print(first, faults(8, 12), faults(64, 2))
"""
    words = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    given_back, kept, large = map(int, words)
    assert kept < 1000 and given_back > 20_000 < large, words
