"""Several concepts in one model: adapters together with a weight each, mixed by PEFT's methods, or
tuned checkpoints added up.

    base = load_base("pocket")
    load_adapters(base, {"robot": "runs/course/lora", "light": "data/adapters/lighting.safetensors"}, {"robot": 1.0, "light": 0.7})
    base.generate(["a zwx robot in vqx light"], [0])

How much of each concept is left is a share: 0 is the base model's likeness to the concept's photos,
1 that of the concept alone.
"""

import re
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from lib.convert.adapter import (
    Adapter,
    Layer,
    diffusers_tensors,
    peft_config,
    peft_tensors,
    read_adapter,
)
from lib.convert.readers import unfilled_model
from lib.files.errors import BadInput
from lib.files.safetensors_file import save_weights_file
from lib.models.base_weights import read_target
from lib.models.compatibility import check_fit
from lib.models.layer_names import full_name

# PEFT's ways of mixing (peft.tuners.lora.model.LoraModel.add_weighted_adapter), and what each does,
# in a few words.
MIXES = {
    "cat": "every update whole, side by side: the exact sum, and the sum of the ranks",
    "linear": "A's and B's added apart: A1 B2 and A2 B1 come in uncalled",
    "svd": "the exact sum, cut back to one adapter's rank",
    "ties_svd": "small values dropped, signs voted on, then as svd (Yadav et al. 2023)",
    "dare_linear_svd": (
        "values dropped by chance and the rest scaled up, then as svd (Yu et al. 2023)"
    ),
    "dare_ties_svd": "dropped by chance, signs voted on, then as svd",
}


DENSITY = 0.5  # share of the values that ties and dare keep


def check_name(name, taken=()):
    """Raise BadInput unless `name` can name an adapter: letters, digits, - and _ (it is a key and a
    file name), and not yet taken.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise BadInput(
            f"The adapter name {name!r} cannot be used: write it with letters, digits, - and _, at"
            " most 40, and no folder."
        )
    if name in taken:
        raise BadInput(
            f"The adapter name '{name}' is taken by another adapter in this pipeline: choose"
            " another."
        )


def load_adapters(base, adapters, weights=None, other_base=False):
    """Load `adapters` (name -> run, file or PEFT folder, or an `Adapter`) into a `Base`, beside
    those it has, and switch them on.

    `weights`: name -> strength, 1 where not given; adapters that are loaded already may be named
    too. Returns the base. Raises BadInput, before anything is changed, for a name that is taken or
    no name, and for an adapter that is damaged or for another base.
    """
    loaded = {name for names in base.pipe.get_list_adapters().values() for name in names}
    for name in adapters:
        check_name(name, loaded)
    target = read_target(base.name) if adapters else None
    read = {
        name: source if isinstance(source, Adapter) else read_adapter(source, target.layers)
        for name, source in adapters.items()
    }
    for adapter in read.values():
        check_fit(adapter, target, other_base)
    for name, adapter in read.items():
        load_adapter(base, name, adapter)
    weights = dict.fromkeys(read, 1.0) | (weights or {})
    unknown = sorted(set(weights) - loaded - set(read))
    if unknown:
        raise BadInput(
            f"There is no adapter '{unknown[0]}' in this pipeline, which has"
            f" {', '.join(sorted(loaded | set(read))) or 'none'}."
        )
    base.pipe.set_adapters(list(weights), [float(w) for w in weights.values()])
    return base


def load_fused(base, adapters, weights=None):
    """`load_adapters` on a fresh `Base`, and then written into its weights: it draws as fast as without.
    Returns the base.
    """
    load_adapters(base, adapters, weights).pipe.fuse_lora()
    return base


def load_adapter(base, name, adapter):
    """Put a checked `Adapter` into a `Base` under `name`: diffusers' own loader, part by part, with
    the configuration that it came with.
    """
    import warnings

    for part, layers in adapter.layers.items():
        tensors, _ = diffusers_tensors(Adapter({part: layers}))
        config = {f"{part}.{key}": value for key, value in peft_config(part, layers).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if part == "unet":
                base.unet.load_lora_adapter(
                    tensors,
                    prefix="unet",
                    adapter_name=name,
                    metadata=config,
                    low_cpu_mem_usage=True,
                )
            else:
                encoder = getattr(base.pipe, part)
                base.pipe.load_lora_into_text_encoder(
                    tensors, None, encoder, prefix=part, adapter_name=name, metadata=config
                )


def mix(adapters, how="cat", weights=None, base="pocket", density=DENSITY):
    """One `Adapter` made of several (name -> `Adapter` or source) by PEFT's `add_weighted_adapter`;
    `how`: one of `MIXES`.

    The base's weights are not needed. Chance (dare) is the same every time. Raises BadInput if PEFT
    cannot mix these that way, such as linear with unlike ranks.
    """
    from peft import PeftModel

    target = read_target(base)
    adapters = {
        name: a if isinstance(a, Adapter) else read_adapter(a, target.layers)
        for name, a in adapters.items()
    }
    for name, adapter in adapters.items():
        check_name(name, [n for n in adapters if n == name][1:])
        check_fit(adapter, target, other_base=True)
    weights, mixed = weights or dict.fromkeys(adapters, 1.0), {}
    extra = {"svd_full_matrices": False}  # of these only the first directions are kept anyway
    extra |= {"density": density} if how.startswith(("ties", "dare", "magnitude")) else {}
    for part in sorted({p for a in adapters.values() for p in a.layers}):
        names = [n for n, a in adapters.items() if part in a.layers]
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _peft_folders(folder, part, {n: adapters[n] for n in names})
            model = PeftModel.from_pretrained(
                unfilled_model(part, target), f"{folder}/{names[0]}", names[0]
            )
            for name in names[1:]:
                model.load_adapter(f"{folder}/{name}", name)
            try:
                model.base_model.add_weighted_adapter(
                    names,
                    [float(weights[n]) for n in names],
                    "mixed",
                    combination_type=how,
                    **extra,
                )
            except ValueError as error:
                raise BadInput(
                    f"These adapters cannot be mixed by '{how}' ({str(error).splitlines()[0]}):"
                    " choose another way."
                ) from None
            modules = [
                (n, m)
                for n, m in model.base_model.model.named_modules()
                if hasattr(m, "lora_A") and "mixed" in m.lora_A
            ]
            mixed[part] = {full_name(part, n): _layer(m) for n, m in modules}
    return Adapter(
        mixed,
        {"modelspec.merged_from": ", ".join(adapters), "workbench.base": base},
        f"{how} of {', '.join(adapters)}",
    )


def _layer(module):
    down, up = (
        half["mixed"].weight.detach().half().contiguous() for half in (module.lora_A, module.lora_B)
    )
    return Layer(down, up, module.scaling["mixed"] * len(down))


def _peft_folders(folder, part, adapters):
    import json

    for name, adapter in adapters.items():
        tensors, _, config = peft_tensors(Adapter({part: adapter.layers[part]}))[part]
        save_weights_file(
            Path(folder) / name / "adapter_model.safetensors", tensors, {"format": "pt"}
        )
        (Path(folder) / name / "adapter_config.json").write_text(json.dumps(config), "utf-8")


def add_changes(base, runs, weights):
    """Add what DreamBooth runs changed to the weights of a fresh `Base`, each times its weight: how
    checkpoints are merged.

    Weights of 1 / n give the average of n checkpoints, weights of 1 the "add difference" of WebUI's
    merger. Returns the base.
    """
    plain = read_target(base.name)
    state = {name: p.detach().float() for name, p in base.unet.named_parameters()}
    for run, weight in zip(runs, weights):
        tuned = read_target(base.name, run)
        if "unet" not in tuned.tuned:
            raise BadInput(f"{run} has no tuned U-Net: name a DreamBooth run.")
        for name in state:
            change = tuned.read("unet", name).float() - plain.read("unet", name).float()
            state[name] = state[name] + weight * change.to(state[name].device)
    base.unet.load_state_dict(
        {name: value.to(base.unet.dtype) for name, value in state.items()}, strict=False
    )
    return base


@contextmanager
def timed(into):
    """Append the seconds that the block took to the list `into`."""
    start = time.perf_counter()
    yield
    into.append(time.perf_counter() - start)


def switch_times(base, adapters, run=None, rounds=5):
    """Median seconds to change concept in a running `Base`: {"load", "choose", "remove", "fuse",
    "unfuse", with a `run` "checkpoint"}.

    `adapters`: two or more, name -> source. load: from disk into the pipeline; choose: another of
    those loaded; checkpoint: a DreamBooth run's U-Net from disk in its place. The base ends as it
    began.
    """
    found = {
        name: []
        for name in ("load", "choose", "remove", "fuse", "unfuse") + ("checkpoint",) * bool(run)
    }
    # Imports, and layers wrapped for the first time.
    load_adapters(base, {"warm_up": next(iter(adapters.values()))})
    for _ in range(rounds):
        for name, source in adapters.items():
            with timed(found["load"]):
                load_adapters(base, {name: source})
        for name in adapters:
            with timed(found["choose"]):
                base.pipe.set_adapters([name], [1.0])
        with timed(found["fuse"]):
            base.pipe.fuse_lora(adapter_names=[name])
        with timed(found["unfuse"]):
            base.pipe.unfuse_lora()
        base.pipe.set_adapters(["warm_up"], [1.0])  # PEFT warns where an active adapter goes
        for name in adapters:
            with timed(found["remove"]):
                base.pipe.delete_adapters(name)
    base.pipe.unload_lora_weights()
    if run:
        from lib.step.run_weights import load_run

        for _ in range(rounds):
            before = base.pipe.unet
            with timed(found["checkpoint"]):
                load_run(run, base)
            base.pipe.unet = before
    return {name: median(seconds) for name, seconds in found.items()}
