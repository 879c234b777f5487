"""Tiny, randomly initialised pipelines of each family, with the very classes and options of the
published ones; a few hundred kB each.
"""

import torch

SIDE = 64  # pixels


def make_tiny(family, folder, seed=0):
    """Write a tiny pipeline of `family` ("sd1", "sd2" or "sdxl") in diffusers form to `folder`, and
    return it as a string.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from lib.models.pipeline import quiet
    from pocket import clip

    quiet()
    torch.manual_seed(seed)
    tokenizer, newer = clip.make_tokenizer(), family != "sd1"

    def tower(kind, width, act):
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act=act,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return kind(config)

    xl = family == "sdxl"
    parts = {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=SIDE,
            scaling_factor=0.13025 if xl else 0.18215,
        ),
        "text_encoder": tower(CLIPTextModel, 32, "gelu" if family == "sd2" else "quick_gelu"),
        "tokenizer": tokenizer,
        "unet": diffusers.UNet2DConditionModel(
            sample_size=SIDE // 8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32 + 48 * xl,
            attention_head_dim=(2, 4) if newer else 4,
            use_linear_projection=newer,
            transformer_layers_per_block=(1, 2) if xl else 1,
            **(
                dict(
                    addition_embed_type="text_time",
                    addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=96,
                )
                if xl
                else {}
            ),
        ),
        "scheduler": (diffusers.EulerDiscreteScheduler if xl else diffusers.PNDMScheduler)(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            prediction_type="v_prediction" if family == "sd2" else "epsilon",
        ),
    }
    if xl:
        parts |= {
            "text_encoder_2": tower(CLIPTextModelWithProjection, 48, "gelu"),
            "tokenizer_2": tokenizer,
        }
        pipe = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipe = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.save_pretrained(folder)
    return str(folder)
