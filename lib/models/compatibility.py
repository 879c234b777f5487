"""Whether an adapter or a run belongs to a base model.

Its layers have their places there, and it was trained on these very weights:

    check_compatible(read_adapter("robot.safetensors"), open_base_weights("pocket"))

raises BadInput, naming both, if not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.files import BadInput, read_json
from lib.models.base_weights import BaseWeights
from lib.models.families import known_label

FINGERPRINT, BASE = "workbench.base_fingerprint", "workbench.base"  # in headers of adapters


def adapter_family(adapter: Any) -> str | None:
    """The family that an adapter (`lib.convert.adapter`) was made for, in words.

    Read from its parts and the text width of its cross-attention; None if it has none.
    """
    ends = ("attn2.to_k", "attn2.to_v")
    widths = (y.down.shape[1] for part, n, y in adapter if part == "unet" and n.endswith(ends))
    width = next(widths, None)
    return known_label(adapter.layers, width) or (width and f"a base of text width {width}")


def check_compatible(adapter: Any, base: BaseWeights, other_base: bool = False) -> None:
    """Raise BadInput unless every layer of `adapter` has its place in `base`, naming both families.

    Unless `other_base`, also if the adapter's header, or the run that it comes from, says that it
    was trained on another base of the same shape.
    """
    wrong = []
    shapes = {part: base.layer_shapes(part) for part in adapter.layers}
    for part, name, layer in adapter:
        shape = shapes[part].get(name)
        down, up = tuple(layer.down.shape[1:]), layer.up.shape[0]
        if shape is None:
            wrong.append(f"{part}.{name}, which it lacks")
        elif (up, *_without_kernel(down)) != (shape[0], *_without_kernel(shape[1:])):
            wrong.append(f"{part}.{name}, {list((up, *down))} against {list(shape)}")
    if wrong:
        made_for = (
            adapter_family(adapter)
            or adapter.metadata.get("ss_base_model_version")
            or "another model"
        )
        raise BadInput(
            f"{adapter.source or 'The adapter'} is a LoRA for {made_for} and '{base.name}' is"
            f" {base.family}: {len(wrong)} of {sum(1 for _ in adapter)} layers do not fit"
            f" ({'; '.join(wrong[:2])}); take the base that it was trained on."
        )
    if not other_base:
        check_base(adapter.source, base, adapter.metadata)


def check_base(
    source: str | Path | None, base: BaseWeights, header: Mapping[str, Any] | None = None
) -> None:
    """Raise BadInput if `source` was trained on other weights than those of `base`, naming both.

    `base`: without a run's parts over it. By the `header`, or else by what training wrote into the
    run folder `source`; a source that says nothing passes.
    """
    if not header or not header.get(FINGERPRINT):
        header = trained_on(source)
    if of_other_weights(header, base):
        fingerprint, name = header[FINGERPRINT], header.get(BASE)
        raise BadInput(
            f"{source or 'The adapter'} was trained on '{name}' ({fingerprint}) and '{base.name}'"
            f" has other weights ({base.fingerprint()}): take that base, or say that you want it"
            " on another of its family with --other-base."
        )


def of_other_weights(header: Mapping[str, Any], base: BaseWeights) -> bool:
    """Whether a header, or what `trained_on` says, names other weights than those of `base`.

    One that names none does not.
    """
    fingerprint = header.get(FINGERPRINT)
    return bool(fingerprint) and fingerprint != base.fingerprint()


def check_unchanged(run: str | Path, base: BaseWeights) -> None:
    """Raise BadInput if the base that `run` was trained on has other weights by now.

    A run that does not say what it was trained on passes.
    """
    header = trained_on(run)
    if of_other_weights(header, base):
        raise BadInput(
            f"The run {run} was trained on other weights of '{base.name}' ({header[FINGERPRINT]})"
            f" than lie there now ({base.fingerprint()}), and means nothing on these: bring those"
            " back, or train the run again."
        )


def trained_on(run: str | Path | None) -> dict[str, Any]:
    """What a run folder says of its base, in the header's words: name and fingerprint.

    {} for what is no run, or an older one.
    """
    if not run:
        return {}
    settings, metrics = (Path(run) / f"{name}.json" for name in ("settings", "metrics"))
    if not settings.is_file() or not metrics.is_file():
        return {}
    fingerprint = read_json(metrics).get("base_fingerprint")
    if not fingerprint:
        return {}
    return {BASE: read_json(settings).get("base"), FINGERPRINT: fingerprint}


def _without_kernel(shape: Sequence[int]) -> tuple[int, ...]:
    """(in, kernel...) without a kernel of 1 x 1: as convolution such a layer is a linear one."""
    return tuple(shape[:1]) if all(side == 1 for side in shape[1:]) else tuple(shape)
