"""A reader written from the published key schemes alone: it knows no line of `lib`, and `lib` no
line of it.

Where the schemes stand: the order of modules in CompVis'
ldm/modules/diffusionmodules/openaimodel.py and model.py and open_clip's transformer.py; Kohya's
prefixes and `alpha` in sd-scripts networks/lora.py; PEFT's names in its checkpoint-format page.
Also tiny pipelines of each family with random weights, whose structure is the published one.
"""

import json
import math

import torch
from safetensors.torch import load_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}


def unet_modules(config):
    """{diffusers name: original name} of every module with weights, counted through as the
    original's constructor does.
    """
    found = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    if config.get("addition_embed_type") == "text_time":
        found |= {
            "add_embedding.linear_1": "label_emb.0.0",
            "add_embedding.linear_2": "label_emb.0.2",
        }
    per, wide = config["layers_per_block"], config["block_out_channels"]
    depth = config.get("transformer_layers_per_block", 1)
    depth = [depth] * len(wide) if isinstance(depth, int) else list(depth)

    def resnet(ours, theirs, shortcut):
        for a, b in (RESNET | ({"conv_shortcut": "skip_connection"} if shortcut else {})).items():
            found[f"{ours}.{a}"] = f"{theirs}.{b}"

    def attention(ours, theirs, blocks):
        inside = [f"attn{i}.{m}" for i in (1, 2) for m in ("to_q", "to_k", "to_v", "to_out.0")]
        inside += ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"]
        names = [
            "norm",
            "proj_in",
            "proj_out",
            *(f"transformer_blocks.{k}.{n}" for k in range(blocks) for n in inside),
        ]
        found.update({f"{ours}.{n}": f"{theirs}.{n}" for n in names})

    at, channels, skips = 1, wide[0], [wide[0]]
    for i, kind in enumerate(config["down_block_types"]):
        for j in range(per):
            resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{at}.0", channels != wide[i])
            channels = wide[i]
            if "CrossAttn" in kind:
                attention(f"down_blocks.{i}.attentions.{j}", f"input_blocks.{at}.1", depth[i])
            skips.append(channels)
            at += 1
        if i < len(wide) - 1:
            found[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{at}.0.op"
            skips.append(channels)
            at += 1
    for k in (0, 1):
        resnet(f"mid_block.resnets.{k}", f"middle_block.{2 * k}", False)
    attention("mid_block.attentions.0", "middle_block.1", depth[-1])
    at = 0
    for i, kind in enumerate(config["up_block_types"]):
        out = wide[::-1][i]
        for j in range(per + 1):
            resnet(
                f"up_blocks.{i}.resnets.{j}", f"output_blocks.{at}.0", channels + skips.pop() != out
            )
            channels, nth = out, 1
            if "CrossAttn" in kind:
                attention(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{at}.1", depth[::-1][i])
                nth = 2
            if j == per and i < len(wide) - 1:
                found[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{at}.{nth}.conv"
            at += 1
    return found


def clip_layers(blocks):
    """Names of a CLIP text encoder's layers, as checkpoints and LoRAs have them."""
    return [
        f"text_model.encoder.layers.{b}.{n}"
        for b in range(blocks)
        for n in (*(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
    ]


# Layers of the U-Net itself, in no block: sd-scripts makes no LoRA modules for them
# (LoRANetwork.create_modules walks through the blocks' Transformer2DModel, ResnetBlock2D,
# Downsample2D and Upsample2D), and drops their keys in silence. WebUI, ComfyUI and diffusers take
# them.
OUTSIDE_OF_BLOCKS = {
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "add_embedding.linear_1",
    "add_embedding.linear_2",
}


def sd_scripts_names(config, blocks, sdxl):
    """Those of `kohya_names` for which Kohya's own tools have a place."""
    return {
        key
        for key, (part, name) in kohya_names(config, blocks, sdxl).items()
        if part != "unet" or name not in OUTSIDE_OF_BLOCKS
    }


def kohya_names(config, blocks, sdxl):
    """{Kohya's name: (part, diffusers name)}. SDXL's trainer works on the original U-Net, the
    other's on diffusers'.
    """
    names = {}
    for ours, theirs in unet_modules(config).items():
        names["lora_unet_" + (theirs if sdxl else ours).replace(".", "_")] = "unet", ours
    for number, layers in enumerate(blocks):
        prefix = f"lora_te{number + 1}_" if sdxl else "lora_te_"
        for name in clip_layers(layers):
            names[prefix + name.replace(".", "_")] = (
                ("text_encoder", "text_encoder_2")[number],
                name,
            )
    return names


def read(path, config, blocks, sdxl=False):
    """{(part, name): update of its weight as a matrix} of an exported file or PEFT folder.
    AssertionError for a key it does not know.
    """
    updates = {}
    if path.is_dir():
        for folder in (p for p in path.iterdir() if p.is_dir()):
            own = json.loads((folder / "adapter_config.json").read_text())
            assert own["peft_type"] == "LORA" and not own["use_dora"]
            tensors = load_file(folder / "adapter_model.safetensors")
            updates |= _peft(
                tensors,
                lambda key, p=folder.name: (p, key.removeprefix("base_model.model.")),
                lambda part, own=own: own,
            )
    else:
        tensors = load_file(path)
        if any(key.startswith("lora_unet_") for key in tensors):
            known, names = kohya_names(config, blocks, sdxl), {key.split(".")[0] for key in tensors}
            assert set(tensors) == {
                f"{n}.{x}" for n in names for x in ("lora_down.weight", "lora_up.weight", "alpha")
            }
            for name in names:
                assert name in known, f"no tool knows {name}"
                down, up = (
                    tensors[f"{name}.lora_{half}.weight"].float().flatten(1)
                    for half in ("down", "up")
                )
                updates[known[name]] = up @ down * (tensors[f"{name}.alpha"].item() / len(down))
        else:
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                flat = json.loads(file.metadata()["lora_adapter_metadata"])

            def settings(part):
                return {
                    key.removeprefix(f"{part}."): value
                    for key, value in flat.items()
                    if key.startswith(f"{part}.")
                }

            updates |= _peft(tensors, lambda key: tuple(key.split(".", 1)), settings)
    known = {("unet", n) for n in unet_modules(config)} | {
        (("text_encoder", "text_encoder_2")[k], n)
        for k, layers in enumerate(blocks)
        for n in clip_layers(layers)
    }
    assert set(updates) <= known, f"layers that the model lacks: {sorted(set(updates) - known)[:3]}"
    return updates


def _peft(tensors, split, settings):
    updates = {}
    for key in [k for k in tensors if k.endswith(".lora_A.weight")]:
        (part, name), up = (
            split(key.removesuffix(".lora_A.weight")),
            key.replace("lora_A", "lora_B"),
        )
        own, down = settings(part), tensors[key].float().flatten(1)
        short = name.removeprefix("text_model.")
        alpha, rank = (
            own["alpha_pattern"].get(short, own["lora_alpha"]),
            own["rank_pattern"].get(short, own["r"]),
        )
        assert rank == len(down) and short in own["target_modules"]
        full = name if part == "unet" else f"text_model.{short}"
        updates[part, full] = tensors[up].float().flatten(1) @ down * (alpha / rank)
    assert 2 * len(updates) == len(tensors)
    return updates


# --- tiny models of each family
# ----------------------------------------------------------------------------------------------------------

WIDTH = {"sd1": 768, "sd2": 1024, "sdxl": 80}


def tiny_pipeline(family, folder):
    """A diffusers folder of a family's published structure at a tiny size, with random weights.
    Returns (U-Net's config, CLIP's layers).
    """
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from lib.models.pipeline import quiet
    from pocket.clip import make_tokenizer

    quiet()
    torch.manual_seed(0)
    tokenizer, xl = make_tokenizer(), family == "sdxl"

    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }

    def text(kind, width, layers):
        return kind(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=2,
                max_position_embeddings=32,
                projection_dim=48,
                **ends,
            )
        )

    down = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    down[0 if xl else 2] = "DownBlock2D"
    extra = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 48 + 6 * 8,
            "transformer_layers_per_block": [1, 2, 1],
        }
        if xl
        else {}
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=2,
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=WIDTH[family],
        use_linear_projection=family != "sd1",
        down_block_types=tuple(down),
        up_block_types=tuple(d.replace("Down", "Up") for d in down[::-1]),
        **extra,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    parts = {"vae": vae, "unet": unet, "tokenizer": tokenizer, "scheduler": scheduler}
    if xl:
        pipe = StableDiffusionXLPipeline(
            text_encoder=text(CLIPTextModel, 32, 1),
            text_encoder_2=text(CLIPTextModelWithProjection, 48, 2),
            tokenizer_2=tokenizer,
            **parts,
        )
    else:
        pipe = StableDiffusionPipeline(
            text_encoder=text(CLIPTextModel, WIDTH[family], 2),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )
    pipe.save_pretrained(folder)
    return dict(unet.config), (1, 2) if xl else (2,)


def random_adapter(shapes, rank, seed):
    """{(part, name): (down, up)} in fp16 for layers of the given weight shapes, {(part, name):
    shape}.
    """
    generator = torch.Generator().manual_seed(seed)
    halves = {}
    for where, shape in shapes.items():
        down = torch.randn(rank, *shape[1:], generator=generator) / math.sqrt(math.prod(shape[1:]))
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * 0.3
        halves[where] = down.half(), up.half()
    return halves
