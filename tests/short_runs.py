"""Short trainings: a batch to step on, a watcher that stops, and what two runs have in common."""

import json

import torch
from safetensors.torch import load_file


def weights(run):
    (file,) = [f for f in run.rglob("*.safetensors") if "checkpoint" not in f.parts]
    return load_file(file)


def losses(run):
    return [
        (row["step"], row["instance_loss"], row["prior_loss"])
        for row in map(json.loads, open(run / "log.jsonl"))
    ]


def same(one, other):
    a, b = weights(one), weights(other)
    return (
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) for k in a)
        and losses(one) == losses(other)
    )


def stop_at(step):
    return lambda state: state.stop() if state.step == step else None


def batch(base, size=2, side=8):
    generator = torch.Generator().manual_seed(1)
    latents, noise = (
        torch.randn(size, base.unet.config.in_channels, side, side, generator=generator)
        for _ in range(2)
    )
    return latents, noise, torch.arange(size) * 200, base.conditions(["a robot"] * size)
