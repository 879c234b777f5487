"""What a LoRA's configuration says of it: every setting that changes what its layers do.

It stands in PEFT's adapter_config.json, in a text of diffusers' header, or in single texts of a
header (diffusers' and Kohya's). Each is read here, converted exactly, or refused by name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lib.files import BadInput, listed, read_json
from lib.models.base_files import TRAINABLE_PARTS
from lib.models.layer_names import short_name

Config = dict[str, Any]  # PEFT's LoraConfig, and `ss_network_alpha`, `ss_network_args` of Kohya's

# Where diffusers has the configuration in a header (diffusers.loaders.lora_base).
CONFIG_KEY = "lora_adapter_metadata"

# Where PEFT has it: a file beside the weights.
CONFIG_FILE = "adapter_config.json"

# Settings that are read below, and those of PEFT (0.21) that only say how a LoRA was trained or
# where its layers sit, which the tensors say too. Any other that is set is refused by name.
KNOWN = set(
    """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    target_modules exclude_modules lora_dropout fan_in_fan_out layers_to_transform layers_pattern
    megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config velora_config
    qalora_group_size runtime_config ensure_weight_tying r rank_pattern lora_alpha alpha_pattern
    use_rslora use_dora init_lora_weights ss_network_alpha ss_network_args
    """.split()
)

# Values of `init_lora_weights` after which the base's own weights are as they were. After others
# (pissa, corda, olora, loftq, lora_ga) PEFT takes the start away from them, so that the change of
# the model is not what stands in the file; and of one that is not known here nobody can say.
LEAVES_THE_BASE = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")


def config_beside(path: Path) -> Config:
    """PEFT's configuration beside its adapter_model."""
    config = path.absolute().with_name(CONFIG_FILE)
    if not config.is_file():
        raise BadInput(
            f"{path} is PEFT's, and its {CONFIG_FILE}, which holds alpha, is not beside it: get"
            " both files into one folder."
        )
    return read_json(config)


def check_config(config: Config, source: Path) -> None:
    """Raise BadInput for settings by which the layers are not (alpha / rank) up down."""
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        raise BadInput(
            f"{source} is PEFT's {kind}, no LoRA: merge it into its base with PEFT, or name a LoRA."
        )
    start = config.get("init_lora_weights")
    if str(start).lower() not in LEAVES_THE_BASE:
        raise BadInput(
            f"{source} was started by `init_lora_weights: {start}`, which changes the base's own"
            " weights too, or is not known to leave them, so that its layers alone may not be what"
            " it learnt: write it as a plain"
            " LoRA, by PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`."
        )
    odd = {name: value for name, value in config.items() if name not in KNOWN and value}
    if odd.get("bias") == "none":
        del odd["bias"]
    if odd:
        told = listed([f"`{name}: {value}`"[:80] for name, value in sorted(odd.items())], 3)
        raise BadInput(
            f"{source} is more than a LoRA's layers ({told}), and that would be lost: get it as a"
            " plain LoRA, or merge it with the tool that made it."
        )


def configured_alpha(config: Config, part: str, name: str, down: torch.Tensor) -> float:
    """A layer's alpha by PEFT's configuration, or Kohya's words in a header; else the rank.

    Raises ValueError if the configuration is for another rank, by which alpha would be divided.
    """
    rank = len(down)
    if "lora_alpha" not in config:
        return _header_alpha(config, down)
    said = _patterned(config, "rank_pattern", "r", part, name)
    if said is not None and int(said) != rank:
        raise ValueError(f"the rank is {rank} and the settings say {said}")
    alpha = _patterned(config, "alpha_pattern", "lora_alpha", part, name)
    return float(alpha * rank**0.5 if config.get("use_rslora") else alpha)


def _patterned(config: Config, patterns_key: str, key: str, part: str, name: str) -> Any:
    """A layer's value in PEFT's configuration.

    The patterns are regular expressions for the end of a name.
    """
    from peft.utils.other import get_pattern_key  # late: PEFT takes seconds to import

    patterns: Any = config.get(patterns_key) or {}
    hits = [get_pattern_key(patterns, known) for known in (name, short_name(part, name))]
    return next((patterns[hit] for hit in hits if hit in patterns), config.get(key))


def _header_alpha(config: Config, down: torch.Tensor) -> float:
    """Alpha by Kohya's words in a header; for convolutions with a kernel `conv_alpha`, 1 if unsaid.

    As sd-scripts has it (networks/lora.py): none, or 0, is the rank. Raises ValueError for alphas
    by block.
    """
    alpha, arguments = config.get("ss_network_alpha"), config.get("ss_network_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    if by_block := [name for name in arguments if name.endswith("block_alphas")]:
        raise ValueError(f"the header has {by_block[0]}")
    if down.shape[2:].numel() > 1 and arguments.get("conv_dim"):
        alpha = arguments.get("conv_alpha", 1)
    return float(len(down) if alpha in (None, "None", "") else alpha) or float(len(down))


def header_configs(metadata: Mapping[str, str], path: Path) -> dict[str, Config]:
    """{part: PEFT's configuration and Kohya's alpha}, from a header.

    diffusers has one JSON text; others have a text for each setting (`unet.lora_alpha`), or one for
    all parts (`lora_alpha`, `ss_network_alpha`).
    """
    configs: dict[str, Config] = {part: {} for part in TRAINABLE_PARTS}
    for key, text in metadata.items():
        part, _, setting = key.rpartition(".")
        if part in configs:
            configs[part][setting] = _value(text)
        elif key in KNOWN:
            for config in configs.values():
                config.setdefault(key, _value(text))  # what is said of one part counts more
    try:
        for key, value in json.loads(metadata.get(CONFIG_KEY) or "{}").items():
            part, _, setting = key.partition(".")
            configs.setdefault(part, {})[setting] = value
        return configs
    except (ValueError, AttributeError) as error:
        raise BadInput(
            f"{path} has a header whose LoRA settings cannot be read ({error}): get the file again."
        ) from None


def _value(text: str) -> Any:
    """What a text of a header stands for: JSON, Python's True, False and None, or itself."""
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except ValueError:
        return text
