"""Whether an adapter or a run belongs to a base model: its layers have their places there, and it
was trained on these very weights.

check_fit(read_adapter("robot.safetensors"), read_target("pocket"))       # BadInput, naming both,
if not
"""

from pathlib import Path

from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.models.base_weights import FAMILIES


def adapter_family(adapter):
    """The family that an adapter was made for, in words, from its parts and the text width of its
    cross-attention; None if it has none.
    """
    if "text_encoder_2" in adapter.layers:
        return "SDXL"
    width = next(
        (
            y.down.shape[1]
            for part, name, y in adapter
            if part == "unet" and name.endswith(("attn2.to_k", "attn2.to_v"))
        ),
        None,
    )
    return (
        None
        if width is None
        else FAMILIES[width][0]
        if width in FAMILIES
        else f"a base of text width {width}"
    )


def check_fit(adapter, target, other_base=False):
    """Raise BadInput unless every layer of `adapter` has its place in `target`, naming both
    families; and, unless `other_base`, if the adapter's header, or the run that it comes from, says
    that it was trained on another base of the same shape.
    """
    wrong = []
    for part, name, layer in adapter:
        shape = target.layer_shapes(part).get(name)
        down, up = tuple(layer.down.shape[1:]), layer.up.shape[0]
        if shape is None:
            wrong.append(f"{part}.{name}, which it lacks")
        elif (up, *_bare(down)) != (shape[0], *_bare(shape[1:])):
            wrong.append(f"{part}.{name}, {list((up, *down))} against {list(shape)}")
    if wrong:
        made_for = (
            adapter_family(adapter)
            or adapter.metadata.get("ss_base_model_version")
            or "another model"
        )
        raise BadInput(
            f"{adapter.source or 'The adapter'} is a LoRA for {made_for} and '{target.name}' is"
            f" {target.family}: {len(wrong)} of {sum(1 for _ in adapter)} layers do not fit"
            f" ({'; '.join(wrong[:2])}); take the base that it was trained on."
        )
    if not other_base:
        check_base(adapter.source, target, adapter.metadata)


def check_base(source, target, said=None):
    """Raise BadInput if `source` was trained on other weights than those of `target` (not a run's:
    its base's), naming both.

    By the header `said`, or else by what training wrote into the run folder `source`; a source that
    says nothing passes.
    """
    said = said if said and said.get("workbench.base_fingerprint") else trained_on(source)
    known_by, name = said.get("workbench.base_fingerprint"), said.get("workbench.base")
    if known_by and known_by != target.fingerprint():
        raise BadInput(
            f"{source or 'The adapter'} was trained on '{name}' ({known_by}) and '{target.name}'"
            f" has other weights ({target.fingerprint()}): take that base, or say that you want it"
            " on another of its family with --other-base."
        )


def trained_on(run):
    """What a run folder says of its base, in the header's words: name and fingerprint. {} for what
    is no run, or an older one.
    """
    settings, metrics = (Path(run) / f"{name}.json" for name in ("settings", "metrics"))
    known_by = (
        read_json(metrics).get("base_fingerprint")
        if run and settings.is_file() and metrics.is_file()
        else None
    )
    return (
        {"workbench.base": read_json(settings).get("base"), "workbench.base_fingerprint": known_by}
        if known_by
        else {}
    )


def _bare(shape):
    """(in, kernel...) without a kernel of 1 x 1: a linear layer and a 1 x 1 convolution are the
    same.
    """
    return tuple(shape[:1]) if all(side == 1 for side in shape[1:]) else tuple(shape)
