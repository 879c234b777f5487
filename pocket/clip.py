"""A small CLIP, trained contrastively on the pocket world: the base's text tower, and (on other
seeds) the judge's CLIP.

Captions are partial, so one caption is true of many pictures in a batch. The grammar knows which,
and the loss shares the target over all of them (as in UniCL, Yang et al. 2022) where plain CLIP
would call them wrong.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    CLIPTextConfig,
    CLIPTokenizer,
    ConvNextConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from .objects import CLASSES
from .places import PHRASES
from .world import COLORS, GENERIC_NOUNS, RARE_WORDS, SIZE, TEMPLATES, Scene, caption

MAX_TOKENS = 32
Meaning = tuple[int, int, int]  # class, colour, place
# Words that prompts of the course use beyond the world's grammar.
OTHER_WORDS = (
    "the",
    "of",
    "an",
    "and",
    "with",
    "style",
    "pose",
    "light",
    "drawing",
    "wearing",
    "subject",
    "person",
    "backpack",
    "photograph",
)


def make_tokenizer() -> CLIPTokenizer:
    """A `CLIPTokenizer` in which each of the world's words is one token and any other text falls
    into smaller pieces.
    """
    text = " ".join([*TEMPLATES, *PHRASES.values()]).format_map({"c": "", "o": "", "p": ""})
    words = sorted(
        {
            *text.replace(",", " ").split(),
            *CLASSES,
            *COLORS,
            *GENERIC_NOUNS,
            *RARE_WORDS,
            *OTHER_WORDS,
        }
    )
    blank = CLIPTokenizer()._tokenizer  # CLIP's own way of splitting text into words and bytes
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        end_of_word_suffix="</w>",
        initial_alphabet=bytes_,
        show_progress=False,
    )
    trained.train_from_iterator(words * 2, trainer)
    model = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(m) for m in model["merges"]]  # of pairs, which its type hint leaves out
    symbols = dict.fromkeys(
        [
            *bytes_,
            *(b + "</w>" for b in bytes_),
            *("".join(m) for m in merges),
            "<|startoftext|>",
            "<|endoftext|>",
        ]
    )
    return CLIPTokenizer(
        vocab={s: i for i, s in enumerate(symbols)}, merges=merges, model_max_length=MAX_TOKENS
    )


def make_clip(
    tokenizer: CLIPTokenizer,
    text_width: int = 128,
    text_layers: int = 3,
    widths: Sequence[int] = (64, 128, 256),
    size: int = SIZE,
) -> VisionTextDualEncoderModel:
    """A CLIP for `size` x `size` pictures: CLIP's text tower beside a ConvNeXt, which learns
    drawings in fewer pictures than a ViT.
    """
    ends: dict[str, Any] = dict(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=text_layers,
        num_attention_heads=text_width // 32,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        **ends,
    )
    # the dual encoder looks for the width under this name
    width: dict[str, Any] = {"hidden_size": widths[-1]}
    vision = ConvNextConfig(
        patch_size=4,
        hidden_sizes=list(widths),
        depths=[2] * len(widths),
        num_stages=len(widths),
        image_size=size,
        **width,
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=128)
    model: Any = VisionTextDualEncoderModel(config)
    return model.to(memory_format=torch.channels_last)


def meaning(scene: Scene) -> Meaning:
    """A scene as three numbers: class, colour, place."""
    return (
        list(CLASSES).index(scene.identity.kind),
        list(COLORS).index(scene.color),
        list(PHRASES).index(scene.place),
    )


def claims(text: str) -> Meaning:
    """What a caption says, as three numbers in the order of `meaning`; -1 where it says nothing."""
    padded = f" {text.replace(',', ' ')} "

    def find(words: Iterable[str]) -> int:
        return next((i for i, w in enumerate(words) if f" {w} " in padded), -1)

    return (find(CLASSES), find(COLORS), find(PHRASES.values()))


def matches(captions: Any, scenes: Any) -> np.ndarray:
    """Boolean [captions, scenes]: whether each caption is true of each scene. Both are int arrays
    [N, 3].
    """
    said, shown = np.asarray(captions)[:, None], np.asarray(scenes)[None]
    return ((said == -1) | (said == shown)).all(-1)


def contrastive_loss(
    model: Any, pixels: torch.Tensor, ids: torch.Tensor, true: torch.Tensor, words: float = 0.0
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy with targets shared over all true pairs. `true` is a float
    tensor [captions, pictures].

    `words` weighs a second loss: each hidden state must still tell its own word. Contrast alone
    forgets words without a meaning, and then a U-Net cannot tell a prompt with an identifier from
    one without.
    """
    out = model(input_ids=ids, pixel_values=pixels)
    logits = out.logits_per_text.float()
    by_text = -(true / true.sum(1, keepdim=True) * F.log_softmax(logits, 1)).sum(1).mean()
    by_image = -(true / true.sum(0, keepdim=True) * F.log_softmax(logits, 0)).sum(0).mean()
    contrast = (by_text + by_image) / 2
    if not words:
        return contrast
    real = ids != model.config.text_config.pad_token_id
    hidden = out.text_model_output.last_hidden_state[real].float()
    return contrast + words * F.cross_entropy(
        hidden @ model.text_model.get_input_embeddings().weight.float().T, ids[real]
    )


def read(
    model: Any, tokenizer: CLIPTokenizer, pictures: np.ndarray, batch: int = 128
) -> np.ndarray:
    """Class, colour and place that a CLIP reads from uint8 [N, size, size, 3], as an int array [N,
    3], by plain zero-shot prompts.
    """
    prompts = [
        [f"a {k}" for k in CLASSES],
        [f"a {c} thing" for c in COLORS],
        [f"a thing {p}" for p in PHRASES.values()],
    ]
    with torch.no_grad():
        texts = [
            model.get_text_features(**tokenizer(p, padding="max_length", return_tensors="pt"))
            for p in prompts
        ]
        texts = [F.normalize(getattr(t, "pooler_output", t), dim=-1) for t in texts]
        answers = []
        for start in range(0, len(pictures), batch):
            x = (
                torch.as_tensor(pictures[start : start + batch])
                .permute(0, 3, 1, 2)
                .float()
                .div(127.5)
                .sub(1)
            )
            seen = model.get_image_features(pixel_values=x)
            seen = F.normalize(getattr(seen, "pooler_output", seen), dim=-1)
            answers.append(torch.stack([(seen @ t.T).argmax(1) for t in texts], 1))
    return torch.cat(answers).numpy()


def captions_for(
    scenes: Sequence[Scene], rng: np.random.Generator, drop: float
) -> tuple[list[str], list[Meaning]]:
    """A fresh caption for each scene and what it claims."""
    texts = [caption(s, rng, drop) for s in scenes]
    return texts, [claims(t) for t in texts]


def load(folder: str | Path) -> tuple[Any, CLIPTokenizer]:
    """A CLIP of the pocket world and its tokenizer from a folder, in fp32, ready to read with."""
    return AutoModel.from_pretrained(
        folder, dtype=torch.float32
    ).eval(), CLIPTokenizer.from_pretrained(folder)
