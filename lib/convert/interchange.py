"""Runs and adapters to and from other tools, whatever their form.

    adapter, retained = extract("runs/course/dreambooth", rank=16)
    retained.of_layers          # the share of the change that is in the adapter

A LoRA is extracted from a tuned model by truncated SVD: the best update of its rank (Eckart and
Young 1936) of the difference of each layer's weights, a convolution's as a matrix [out, in x
kernel]. What a LoRA cannot hold (norms, biases, embeddings) is left out, and said. Layers outside
of blocks, which Kohya's own tools pass over, stay in: 0.8 % of the change on the pocket base, and
without them pictures at rank 64 are three times as far from the model's.

The last proof of an exported file is what diffusers or PEFT draws with it:

    ours, theirs = library_loader("runs/course/lora"), library_loader("robot.safetensors")
    picture_difference("pocket", ours, theirs)        # 0: the same to the last bit
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.config import Settings, described
from lib.convert.adapter import Adapter, Source, diffusers_tensors, path_of, read_adapter
from lib.convert.composition import load_adapters, mix
from lib.convert.exporting import (
    IMPORTED,
    base_of,
    export_lora,
    lora_texts,
    read_with_base,
    run_facts,
    tuned_weights,
)
from lib.convert.layer import Cut, Layer, low_rank
from lib.convert.merging import MODEL_FORMS, whole_model, write_model
from lib.convert.readers import Written
from lib.files import BadInput, say, write_json
from lib.files.safetensors_file import open_weights, save_weights_file
from lib.files.text import first_line, progress_lines
from lib.models import Base, BaseWeights, family_of, load_base, open_base_weights, preset
from lib.models.base_files import TRAINABLE_PARTS
from lib.models.compatibility import check_compatible
from lib.models.families import Pocket
from lib.step import load_run

Loader = Callable[[Base], Base]

# Of 255: how far a colour value may move where merged weights were rounded to fp16 (an edge that
# shifts by a hair).
ROUNDING = 40

# Of 255, the mean over all colour values: what is allowed on CUDA, where runs may differ in the
# last bit and weights are bf16, so that the largest says nothing. Measured on the pocket base, on a
# CPU: 1.0 for a merge in bf16, 1.3 for bf16 against fp32, and 6.6 for an adapter at nine tenths of
# its strength, 31 at half of it.
ON_CUDA = 4


def export(
    source: Source,
    to: str,
    out: str | Path,
    base: str | None = None,
    title: str | None = None,
    other_base: bool = False,
) -> Written:
    """Write a run or an adapter for other tools, as `export_lora` or `merge` does.

    `to`: "kohya", "diffusers" or "peft" for a LoRA, and "checkpoint" for one merged into its base;
    "checkpoint" or "diffusers" for a DreamBooth run. Raises BadInput as these two do.
    """
    tuned = run_facts(source).get("settings", {}).get("method") == "dreambooth"
    if tuned and to not in MODEL_FORMS:
        raise BadInput(
            f"{source} is a DreamBooth run, a whole model: export it to"
            f" {' or '.join(MODEL_FORMS)}, or extract a LoRA from it."
        )
    if tuned or to == "checkpoint":
        return write_model(whole_model([source], None, base, other_base), to, out, title)
    return export_lora(source, to, out, base, title, other_base)


@dataclass(frozen=True)
class RetainedEnergy:
    """How much of the change is in the adapter: shares of the sum of S^2 (squared Frobenius norm).

    of_layers: of the change of the layers that a LoRA can sit beside; of_all: of the change of
    every weight; by_layer: {"part.name": share}.
    """

    of_layers: float
    of_all: float
    by_layer: dict[str, float]


def check_rank(rank: int) -> None:
    """Raise BadInput unless a LoRA can be cut to `rank`."""
    if not 1 <= rank <= 1024:
        raise BadInput(f"The rank is {rank}, outside 1 to 1024: choose one in that range.")


def extract(
    run: str | Path,
    rank: int = 16,
    base: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    other_base: bool = False,
) -> tuple[Adapter, RetainedEnergy]:
    """The adapter of `rank`, alpha the same, in a DreamBooth run's tuned parts against its base.

    A layer smaller than `rank` keeps all that it has. `progress(done, total)` is called after each
    weight, by default to print how far it is. Raises BadInput if the run has no tuned parts, or
    they do not fit the base, or nothing was changed, and, unless `other_base`, if it was trained
    on another base.
    """
    check_rank(rank)
    facts = run_facts(run)
    tuned = tuned_weights(run, facts, base, other_base)
    plain = open_base_weights(tuned.name)
    layers: dict[str, dict[str, Layer]] = {}
    shares: dict[str, float] = {}
    retained = in_layers = in_all = 0.0
    names = [(part, name) for part in tuned.tuned for name in tuned.shapes[part]]
    progress = progress or progress_lines(f"extracting from {run}")
    for done, (part, name) in enumerate(names, 1):
        change = tuned.read(part, name).float() - plain.read(part, name).float()
        size, layer_name = change.square().sum().item(), name.removesuffix(".weight")
        in_all += size
        if name.endswith(".weight") and layer_name in tuned.layer_shapes(part):
            layer, share = low_rank(change, rank)
            in_layers += size
            retained += share * size
            layers.setdefault(part, {})[layer_name] = layer
            shares[f"{part}.{layer_name}"] = share
        progress(done, len(names))
    if not in_layers:
        raise BadInput(
            f"{run} has the weights of '{plain.name}' unchanged: there is nothing to extract; check"
            " both names."
        )
    adapter = Adapter(layers, source=str(run))
    texts = lora_texts(plain, facts, f"{Path(run).name} rank {rank}", adapter) | {
        "ss_network_dim": str(rank),  # layers that are smaller have less
        "ss_network_alpha": str(float(rank)),
        "ss_training_comment": (
            f"extracted by SVD from a full fine-tune; {retained / in_layers:.4f} of the layers'"
            " sum of S^2 kept"
        ),
    }
    energy = RetainedEnergy(retained / in_layers, retained / in_all, shares)
    return replace(adapter, metadata=texts), energy


def compose(
    sources: Sequence[Source],
    weights: Sequence[float] | None = None,
    how: str = "cat",
    base: str | None = None,
) -> Adapter:
    """Mix LoRAs, each with its weight (1 where none are given), into one that can be exported.

    `how`: one of `lib.convert.composition.MIXES`. `base`: by default that of the first. Raises
    BadInput as `mix` does.
    """
    if weights is not None and len(weights) != len(sources):
        raise BadInput(
            f"There are {len(sources)} LoRAs and {len(weights)} weights: give one weight for each."
        )
    stems = [re.sub("[^A-Za-z0-9_-]", "_", path_of(source).stem) for source in sources]
    names = [f"{k}_{stem}"[:40] for k, stem in enumerate(stems, 1)]
    strengths = dict(zip(names, weights)) if weights else None
    return mix(dict(zip(names, sources)), how, strengths, base_of(sources[0], base))


def import_lora(
    source: Source,
    out: str | Path,
    base: str | None = None,
    data: str | Path | None = None,
    other_base: bool = False,
    rank: int | None = None,
) -> Path:
    """Make a run folder in `out` from somebody's LoRA in any form. Returns the folder.

    All here that takes a run takes it then: load, combine, merge. Settings come from its header
    where it has them; the others are this project's, and no export calls them the LoRA's own.
    `data`: a data set to judge it by. `rank`: of the LoRA that a LoHa or LoKr is cut to; what is
    lost by that is said. Raises BadInput as `export_lora` does, and if there is something at `out`.
    """
    out = Path(out).expanduser()
    if rank is None:
        adapter, base_weights = read_with_base(source, base)
    else:
        check_rank(rank)
        base_weights = open_base_weights(base or "pocket")
        adapter = read_adapter(source, base_weights.layers, Cut(rank, _layer_shapes(base_weights)))
        say(adapter.told)
    check_compatible(adapter, base_weights, other_base)
    if out.exists():
        raise BadInput(f"The output {out} exists: choose another folder.")
    header, layer = adapter.metadata, next(layer for _, _, layer in adapter)
    texts = {
        "steps": header.get("ss_steps") or header.get("ss_max_train_steps"),
        "seed": header.get("ss_seed"),
        "rank": max(adapter.ranks),
        "learning_rate": header.get("ss_unet_lr") or header.get("ss_learning_rate"),
        "alpha": layer.alpha,
    }
    found = {name: _setting(name, text) for name, text in texts.items()}
    settings = preset("lora", base_weights.name, data=str(data or "-"), output=str(out), **found)
    save_weights_file(out / "adapter.safetensors", *diffusers_tensors(adapter))
    settings.save(out / "settings.json")
    told = [name for name, value in found.items() if value is not None]
    write_json(out / IMPORTED, {"from": path_of(source).name, "settings": told})
    return out


def _layer_shapes(base_weights: BaseWeights) -> dict[tuple[str, str], tuple[int, ...]]:
    """{(part, layer name): shape} of all layers of a base that can train."""
    parts = [part for part in base_weights.shapes if part != "vae"]
    return {(p, name): s for p in parts for name, s in base_weights.layer_shapes(p).items()}


def _setting(name: str, text: Any) -> float | None:
    """What a header says of a setting, brought into its limits; None for what is no number."""
    setting = described(Settings)[name]
    low, high = setting.limits
    try:
        return setting.kind(min(max(float(text), low), high))
    except (TypeError, ValueError):
        return None


def check_pictures(source: str | Path, out: str | Path, base: str, cuda: bool | None = None) -> str:
    """Draw the same prompts and seeds with `source` and the written `out` on the base.

    Returns a sentence on how far apart the pictures are. Adapters must draw the same to the last
    bit, merged models but for rounding, and both on average where `cuda` (by default: where there
    is a GPU). On a processor only the pocket base is drawn: larger ones take minutes, and were read
    back tensor by tensor. Raises BadInput if the pictures differ by more.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    if family_of(base) is not Pocket and not cuda:
        return (
            "pictures: not drawn, for on a processor this base takes minutes (every tensor was read"
            " back)"
        )
    ours, allowed = _source_loader(source, out, base)
    kind, measure = ("mean", np.mean) if cuda else ("largest", np.max)
    allowed = ON_CUDA if cuda else allowed
    apart = picture_difference(base, ours, library_loader(out), measure=measure)
    difference = f"{kind} difference {round(apart, 2)} of 255"
    if apart > allowed:
        raise BadInput(
            f"{out} does not draw what {source} draws ({difference}, {allowed} allowed): an error"
            " of the export, please report it."
        )
    rounding = ", but for rounding" if apart else ""
    return f"pictures: the same for the same seeds{rounding} ({difference})"


def _source_loader(source: str | Path, out: str | Path, base: str) -> tuple[Loader, int]:
    """What loads `source`, and how far a colour value of `out` may be from its."""
    if not is_adapter(source):
        return library_loader(source), 0
    adapter = read_adapter(source, open_base_weights(base).layers)

    def load(model: Base) -> Base:
        return load_adapters(model, {"source": adapter}, other_base=True)

    uneven = len({layer.alpha for _, _, layer in adapter}) > 1  # `with_one_alpha` rounds once more
    return load, ROUNDING if uneven or not is_adapter(out) else 0


def picture_difference(
    base: str,
    ours: Loader,
    theirs: Loader,
    steps: int = 10,
    measure: Callable[[Any], Any] = np.max,
) -> float:
    """The largest difference of a colour value (0 to 255) between the pictures of two loaders.

    Loaders put weights into a fresh `Base`. With `measure=np.mean` it is the mean difference.
    """
    prompts = ["a picture", "a picture in the snow"]
    one, two = (load(load_base(base)).generate(prompts, [0, 1], steps) for load in (ours, theirs))
    pairs = [[np.asarray(image, np.int16) for image in pair] for pair in zip(one, two)]
    return measure([np.abs(a - b) for a, b in pairs]).item()


def is_adapter(path: str | Path) -> bool:
    """Whether a path holds a LoRA (a run's, a file, a PEFT folder), and not a whole model."""
    path = Path(path)
    if path.is_dir():
        return (path / "adapter.safetensors").is_file() or any(path.rglob("adapter_config.json"))
    return any("lora" in name for name in open_weights(path).names)


def library_loader(path: str | Path) -> Loader:
    """A function Base -> Base that loads `path` by the libraries' own loaders.

    `path`: a run, a LoRA file or PEFT folder, a whole model. Nothing of ours but file names is in
    the way, so that pictures prove the file and not our reader of it.
    """
    path = Path(path)

    def load(model: Base) -> Base:
        if (path / "settings.json").is_file():
            return load_run(path, model)
        if (path / "model_index.json").is_file():
            return load_base(str(path))
        if path.is_dir():
            _load_peft_folder(path, model)
        elif is_adapter(path):
            model.pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        else:
            _load_checkpoint(path, model)
        return model

    return load


def _load_peft_folder(path: Path, model: Base) -> None:
    from peft import PeftModel  # late: takes seconds

    for part in TRAINABLE_PARTS:
        if (path / part).is_dir():
            plain = getattr(model.pipe, part)
            setattr(model.pipe, part, PeftModel.from_pretrained(plain, path / part).eval())


def _load_checkpoint(path: Path, model: Base) -> None:
    scheduler, kind = model.pipe.scheduler, type(model.pipe)
    try:
        config = str(open_base_weights(model.name).configurations())
        model.pipe = kind.from_single_file(
            str(path), config=config, local_files_only=True, torch_dtype=model.denoiser.dtype
        ).to(model.device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise BadInput(
            f"{path} cannot be loaded as a checkpoint of '{model.name}' ({reason}): name its base."
        ) from None
    model.pipe.scheduler = scheduler
