"""The stages of training the pocket base, in order: VAE, text tower, U-Net, decoder; then the
judge's CLIP, and what was measured.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from lib.files.json_file import read_json, write_json
from lib.models.devices import device_name
from lib.models.families import Family

from . import clip as clip_
from . import decoder as decoder_
from . import unet as unet_
from . import vae as vae_
from .detail import best_device
from .measure import GUIDANCE, STEPS, grid, held_out_scenes, weights_hash
from .pictures import picture, pool
from .stage import Stage, constant, power
from .world import Scene, prompt, render, training_scenes

SCENES = 40_000
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "pocket"


def cached(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array from `file`, or made and kept there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        print(f"drawing {file.name} ...", flush=True)
        np.save(file, make())
    return np.load(file, mmap_mode="r")


def vae(work: Path, out: Path, steps: int, batch: int = 16) -> None:
    """Train the VAE on pictures of every kind, then scale its latents per channel, inside its own
    quantisation layers.
    """
    pictures = cached(work / "pictures.npy", lambda: pool(picture, range(24_000)))
    torch.manual_seed(0)
    model, peak = first_vae()
    model.to(best_device(), memory_format=torch.channels_last)

    def loss(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        chosen = torch.randint(len(pictures), (batch,)).sort().values.numpy()
        x = vae_.augment(vae_.to_tensor(np.array(pictures[chosen]), model.device))
        return vae_.loss(model, x.contiguous(memory_format=torch.channels_last))

    stage = Stage("vae", model, loss, steps, peak, work, averages=(constant(0.99),), every=20)
    record(out, "vae", stage.run())
    vae_.whiten(model.cpu(), pictures[:1536:3])
    model.half().save_pretrained(out / "pocket" / "vae")
    forget_origin(out / "pocket")


def record(out: Path, stage: str, result: dict[str, Any]) -> None:
    """Keep what a stage took (steps, seconds, last loss, processor) among what was measured."""
    file = out / "pocket" / "measured.json"
    found = read_json(file) if file.is_file() else {}
    result |= {"device": device_name(torch.device("cpu")), "torch": torch.__version__}
    write_json(file, found | {"training": found.get("training", {}) | {stage: result}})


def scenes_for(work: Path, salt: str, hold_out: bool = True) -> tuple[list[Scene], np.ndarray]:
    """The scenes that base or judge learn from, and their pictures as uint8 [N, 64, 64, 3], drawn
    once.
    """
    scenes = training_scenes(SCENES, salt, hold_out)
    return scenes, cached(work / f"scenes_{salt}.npy", lambda: pool(render, scenes))


def _train_clip(
    name: str,
    salt: str,
    hold_out: bool,
    work: Path,
    steps: int,
    batch: int,
    seed: int,
    average: float,
    padding: str,
    words: float = 0.0,
    **sizes: Any,
) -> tuple[Any, CLIPTokenizer, dict[str, float]]:
    """Train a CLIP on the scenes of `salt`; returns it with its tokenizer and what was measured."""
    scenes, pictures = scenes_for(work, salt, hold_out)
    meanings = np.array([clip_.meaning(s) for s in scenes])
    tokenizer = clip_.make_tokenizer()
    torch.manual_seed(seed)
    model = clip_.make_clip(tokenizer, **sizes)

    def loss(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        chosen = torch.randint(len(scenes), (batch,)).numpy()
        rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
        texts, said = clip_.captions_for([scenes[i] for i in chosen], rng, drop=0.35)
        true = torch.as_tensor(clip_.matches(said, meanings[chosen])).float()
        x = vae_.to_tensor(pictures[np.sort(chosen)][np.argsort(np.argsort(chosen))])
        ids = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt").input_ids
        return clip_.contrastive_loss(model, x, ids, true, words), {}

    result = Stage(
        name, model, loss, steps, 1.5e-3, work, averages=(constant(average),), every=20
    ).run()
    return model, tokenizer, result


def text(work: Path, out: Path, steps: int) -> None:
    """The base's text tower: trained contrastively beside a small image tower that is then thrown
    away, and frozen.
    """
    model, tokenizer, result = _train_clip(
        "text", "base", True, work, steps, 192, 1, 0.98, "max_length", 0.2, widths=(32, 64, 128)
    )
    model.text_model.half().save_pretrained(out / "pocket" / "text_encoder")
    tokenizer.save_pretrained(out / "pocket" / "tokenizer")
    record(out, "text", result)


def unet(work: Path, out: Path, steps: int, batch: int = 128, first: int = 6000) -> None:
    """Train the U-Net, the shipped one if there is one (`first_unet`), on a growing pool of fresh
    scenes' latents and write the whole pipeline; on the GPU where there is one.

    Every 500 steps sixteen samples of the averaged weights are drawn into the work folder, to be
    looked at.
    """
    folder = out / "pocket"
    device = best_device()
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae")
    tower: Any = CLIPTextModel.from_pretrained(folder / "text_encoder")
    vae, tower = vae.float().to(device), tower.float().to(device)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(2)
    model, peak = first_unet(tower.config.hidden_size)
    model = model.to(device, memory_format=torch.channels_last)
    work.mkdir(parents=True, exist_ok=True)
    side, channels = model.config.sample_size, model.config.in_channels
    kept = work / f"latents_{weights_hash(vae.encoder, vae.quant_conv)}.bin"
    ahead = (
        56 if device.type == "cpu" else 2048
    )  # a GPU waits for many drawings at once, on all cores
    growing = unet_.Growing(kept, vae, (channels, side, side), first, ahead=ahead)
    draw = unet_.make_rows(
        unet_.make_scheduler(), tower, tokenizer, growing, batch, lambda: stage.step
    )
    if device.type == "cpu":  # on so few places a third of a step goes into the fused backward pass
        model.set_attn_processor(AttnProcessor())
    stage = Stage(
        "unet",
        model,
        unet_.loss,
        steps,
        peak,
        work,
        averages=(power(0.1), power(0.05)),
        every=20,
        save=100,
        draw=draw,
    )

    def watch(step: int) -> None:
        if step % 500 == 0:
            weights = averaged(model, stage.means[0])
            look(unet_.make_pipeline(vae, tower, tokenizer, weights), work / f"samples_{step}.png")

    record(out, "unet", stage.run(watch))
    pipe = unet_.make_pipeline(vae, tower, tokenizer, model)
    pipe.to("cpu", dtype=torch.float16).save_pretrained(folder)
    forget_origin(folder)


def decoder(work: Path, out: Path, steps: int, files: int = 56) -> None:
    """Train the VAE's decoder on, on `files` files of latents as the U-Net leaves them, and write
    the VAE again; its encoder stays as it is.
    """
    folder = out / "pocket"
    kind: Any = StableDiffusionPipeline
    pipe = kind.from_pretrained(folder, dtype=torch.float32)
    vae = pipe.vae.to(memory_format=torch.channels_last)
    kept = work / f"decoder_{weights_hash(vae.encoder, vae.quant_conv, pipe.unet)}"
    training = decoder_.DecoderTraining(
        vae, decoder_.pairs(pipe, kept, files), steps, kept / "decoder.pt"
    )
    record(out, "decoder", training.run())
    vae.half().save_pretrained(folder / "vae")
    forget_origin(folder)


def forget_origin(folder: Path) -> None:
    """Take the folder of this machine that a part was loaded from out of the configuration files in
    `folder`, where diffusers writes it.
    """
    for file in folder.rglob("config.json"):
        found = read_json(file)
        if found.pop("_name_or_path", None):
            write_json(file, found)


def first_vae() -> tuple[Any, float]:
    """The VAE that `vae` starts from and its peak rate, as `first_unet` has them."""
    if (SHIPPED / "vae").is_dir():
        return AutoencoderKL.from_pretrained(SHIPPED / "vae").float(), 2e-3
    return vae_.make_vae(), 4e-3


def first_unet(text_width: int) -> tuple[Any, float]:
    """The U-Net that `unet` starts from and its peak rate: the shipped one, which a new training
    carries on at half the rate, else one that has seen nothing.
    """
    if (SHIPPED / "unet").is_dir():
        return UNet2DConditionModel.from_pretrained(SHIPPED / "unet").float(), 1e-3
    return unet_.make_unet(text_width), 2e-3


def averaged(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """A copy of `model` with `weights` in it, for drawing while the training goes on."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights)
    return twin.eval()


def look(pipe: Any, file: Path, count: int = 16) -> None:
    """Draw held-out scenes (upper rows) and samples for the same prompts and always the same noise
    (lower rows) into `file`, as the course draws them.
    """
    pipe.scheduler = Family.sampling_scheduler(pipe.scheduler.config)
    scenes = held_out_scenes(6 * count)[::6]
    prompts = [prompt(s.identity.kind, s.color, s.place) for s in scenes]
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(i) for i in range(count)]
    images = pipe(
        prompts,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=noise,
        output_type="np",
    ).images
    drawn = np.stack([np.asarray(render(s)) for s in scenes])
    grid(np.concatenate([drawn, (images * 255).round().astype(np.uint8)]), columns=8, scale=3).save(
        file
    )


def judge(work: Path, out: Path, steps: int) -> None:
    """The judge's CLIP, on seeds and identities of its own; it sees every triple, the held-out ones
    too.
    """
    model, tokenizer, result = _train_clip(
        "judge", "judge", False, work, steps, 192, 3, 0.99, "longest"
    )
    model.half().save_pretrained(out / "judge" / "clip")
    tokenizer.save_pretrained(out / "judge" / "clip")
    record(out, "judge", result)


def identity(work: Path, out: Path, steps: int) -> None:
    """The judge's identity encoder and its certificate, in data/judge/identity."""
    from . import identity as identity_

    pool = work / "lookalikes.npy"
    if not pool.is_file():
        identity_.draw_pool(pool)
    identity_.train(pool, steps)
    identity_.certify()


def measure(work: Path, out: Path, _: int | None) -> None:
    """Measure what was trained; foreign pictures lie in work/foreign, photographs in
    ../shared/photos, where there are any.
    """
    from .measure import measure

    print(
        measure(
            out, foreign=work / "foreign", photos=out.resolve().parent.parent / "shared" / "photos"
        )
    )


def detail(work: Path, out: Path, pictures: int) -> None:
    """Measure whether samples pass for drawings, on `pictures` of each, and write it into
    measured.json and the README.
    """
    from . import measure as measure_

    found = read_json(out / "pocket" / "measured.json")
    found["detail"] = measure_.detail(out / "pocket", work, pictures)
    write_json(out / "pocket" / "measured.json", found)
    if "right" in found:
        (out / "pocket" / "README.md").write_text(measure_.readme(found), "utf-8")
    print(found["detail"])
