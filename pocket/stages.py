"""The stages of training the pocket base, in order: VAE, text tower, U-Net; then the judge's CLIP,
and what was measured.
"""

import copy
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from lib.files.json_file import read_json, write_json
from lib.models.devices import device_name

from . import clip as clip_
from . import unet as unet_
from . import vae as vae_
from .detail import best_device
from .measure import grid, held_out_scenes
from .pictures import picture, pool
from .stage import Stage, constant, power
from .world import prompt, render, training_scenes

SCENES = 40_000
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "pocket"


def cached(file, make):
    """An array from `file`, or made and kept there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        print(f"drawing {file.name} ...", flush=True)
        np.save(file, make())
    return np.load(file, mmap_mode="r")


def shallow(work, steps=2500, batch=16):
    """A VAE that halves twice, for `vae` to be grafted on: the shipped one if it is such, else one
    trained from nothing on pictures of every kind and kept in `work`.
    """
    shipped = SHIPPED / "vae"
    if shipped.is_dir():
        earlier = AutoencoderKL.from_pretrained(shipped).float().eval()
        if len(earlier.config.block_out_channels) == len(vae_.CHANNELS):
            return earlier
    pictures = the_pictures(work)
    torch.manual_seed(0)
    model = vae_.make_vae().to(best_device(), memory_format=torch.channels_last)

    def loss(model):
        x = vae_.augment(a_batch(pictures, batch, model.device))
        value, psnr, kl = vae_.loss(model, x)
        return value, {"psnr": psnr, "kl": kl}

    Stage("shallow", model, loss, steps, 4e-3, work, averages=(constant(0.99),)).run()
    return model.cpu()


def the_pictures(work):
    """What VAEs learn from: uint8 [24000, 64, 64, 3], drawn once."""
    return cached(work / "pictures.npy", lambda: pool(picture, range(24_000)))


def a_batch(pictures, batch, device):
    """A random batch of uint8 pictures [N, H, W, 3] as float [batch, 3, H, W] on `device`."""
    chosen = torch.randint(len(pictures), (batch,)).sort().values.numpy()
    x = vae_.to_tensor(np.array(pictures[chosen]), device)
    return x.contiguous(memory_format=torch.channels_last)


def vae(work, out, steps, batch=32, count=10_000):
    """The VAE's inner half, between the outer blocks of a shallower VAE (`shallow`), and the turn
    and scale of its latents (`by_importance`).

    It learns the shallower VAE's own features, a quarter of the pictures' side, at a seventh of the
    arithmetic of whole pictures. Every third step decodes latents of half the side into the
    features of pictures of half the side: latents that scale as pictures do are easier to model
    (EQ-VAE, Kouzelis et al. 2025, arXiv 2502.09509). `decoder` then trains the outer half with it.
    """
    pictures, device = the_pictures(work), best_device()
    earlier = shallow(work)
    seen = [
        cached(work / f"features_{n}.npy", lambda n=n: vae_.splice(earlier, pictures[:count], n))
        for n in ("enter", "leave", "half")
    ]
    torch.manual_seed(0)
    model = vae_.make_vae(**vae_.DEEPER)
    vae_.graft(model, earlier)
    model = model.to(device, memory_format=torch.channels_last)
    vae_.train_only(model, vae_.inner_parts(model))
    order = torch.randperm(count)
    mean, scale = (t.to(device) for t in vae_.spread(seen[1][::20]))

    def loss(model):
        chosen = order[(torch.arange(batch) + stage.step * batch) % count].numpy()
        halved = stage.step % 3 == 2
        h, wanted = (
            torch.as_tensor(np.array(s[chosen]), device=device).float()
            for s in (seen[0], seen[2 if halved else 1])
        )
        h = h.contiguous(memory_format=torch.channels_last)
        return vae_.inner_loss(model, h, (wanted - mean) / scale, mean, scale, halved)

    stage = Stage("vae", model, loss, steps, 4e-3, work)
    record(out, "vae", stage.run())
    model = vae_.by_importance(model.cpu(), np.array(pictures[:384]), vae_.KEPT)
    model.half().save_pretrained(out / "pocket" / "vae")


def decoder(work, out, steps, batch=12):
    """Train the VAE's decoder end to end and leave the encoder as it is, so that a U-Net can train
    on its latents meanwhile.

    The latents carry a little noise, more of it on some: a U-Net's small errors shall not show (as
    in RAE, arXiv 2510.11690). Every 100 steps the averaged decoder goes to `out`.
    """
    pictures = the_pictures(work)
    torch.manual_seed(4)
    model = AutoencoderKL.from_pretrained(out / "pocket" / "vae").float()
    model = model.to(best_device(), memory_format=torch.channels_last)
    vae_.train_only(model, [model.post_quant_conv, model.decoder])

    def loss(model):
        return vae_.decoder_loss(model, vae_.augment(a_batch(pictures, batch, model.device)))

    def watch(step):
        if step % 100 == 0:
            write(averaged(model, stage.means[0]))

    def write(twin):
        twin.half().cpu().save_pretrained(work / "vae.part")
        for file in (work / "vae.part").iterdir():
            os.replace(file, out / "pocket" / "vae" / file.name)

    stage = Stage(
        "decoder", model, loss, steps, 1e-3, work, averages=(power(0.1),), every=20, save=100
    )
    record(out, "decoder", stage.run(watch))
    write(model)


def record(out, stage, result):
    """Keep what a stage took (steps, seconds, last loss, processor) among what was measured."""
    file = out / "pocket" / "measured.json"
    found = read_json(file) if file.is_file() else {}
    result |= {"device": device_name(torch.device("cpu")), "torch": torch.__version__}
    write_json(file, found | {"training": found.get("training", {}) | {stage: result}})


def scenes_for(work, salt, hold_out=True):
    """The scenes that base or judge learn from, and their pictures as uint8 [N, 64, 64, 3], drawn
    once.
    """
    scenes = training_scenes(SCENES, salt, hold_out)
    return scenes, cached(work / f"scenes_{salt}.npy", lambda: pool(render, scenes))


def _train_clip(
    name, salt, hold_out, work, steps, batch, seed, average, padding, words=0.0, **sizes
):
    """Train a CLIP on the scenes of `salt`; returns it with its tokenizer and what was measured."""
    scenes, pictures = scenes_for(work, salt, hold_out)
    meanings = np.array([clip_.meaning(s) for s in scenes])
    tokenizer = clip_.make_tokenizer()
    torch.manual_seed(seed)
    model = clip_.make_clip(tokenizer, **sizes)

    def loss(model):
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


def text(work, out, steps):
    """The base's text tower: trained contrastively beside a small image tower that is then thrown
    away, and frozen.
    """
    model, tokenizer, result = _train_clip(
        "text", "base", True, work, steps, 192, 1, 0.98, "max_length", 0.2, widths=(32, 64, 128)
    )
    model.text_model.half().save_pretrained(out / "pocket" / "text_encoder")
    tokenizer.save_pretrained(out / "pocket" / "tokenizer")
    record(out, "text", result)


def unet(work, out, steps, batch=64, first=6000):
    """Train the U-Net on a growing pool of fresh scenes' latents and write the whole pipeline; on
    the GPU where there is one.

    Every 500 steps sixteen samples of the averaged weights are drawn into the work folder, to be
    looked at.
    """
    folder = out / "pocket"
    device = best_device()
    vae = AutoencoderKL.from_pretrained(folder / "vae").float().to(device)
    tower = CLIPTextModel.from_pretrained(folder / "text_encoder").float().to(device)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(2)
    model = unet_.make_unet(**unet_.WIDER).to(device, memory_format=torch.channels_last)
    work.mkdir(parents=True, exist_ok=True)
    side, channels = model.config.sample_size, model.config.in_channels
    kept = work / f"latents_{encoder_hash(vae)}.bin"
    ahead = (
        56 if device.type == "cpu" else 2048
    )  # a GPU waits for many drawings at once, on all cores
    growing = unet_.Growing(kept, vae, (channels, side, side), first, ahead=ahead)
    loss = unet_.make_loss(
        unet_.make_scheduler(), tower, tokenizer, growing, batch, lambda: stage.step
    )
    stage = Stage(
        "unet",
        model,
        loss,
        steps,
        2e-3,
        work,
        averages=(power(0.1), power(0.05)),
        every=20,
        save=100,
    )

    def watch(step):
        if step % 500 == 0:
            weights = averaged(model, stage.means[0])
            pipe = unet_.make_pipeline(newest(), tower, tokenizer, weights)
            look(pipe, work / f"samples_{step}.png")

    def newest():
        """The VAE as it is now: its decoder may be in training beside."""
        return AutoencoderKL.from_pretrained(folder / "vae").float().to(device)

    record(out, "unet", stage.run(watch))
    pipe = unet_.make_pipeline(newest(), tower, tokenizer, model)
    pipe.to("cpu", dtype=torch.float16).save_pretrained(folder)


def averaged(model, weights):
    """A copy of `model` with `weights` in it, for drawing while the training goes on."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights)
    return twin.eval()


def look(pipe, file, count=16, steps=25, guidance=2.0):
    """Draw held-out scenes (upper rows) and samples for the same prompts and always the same noise
    (lower rows) into `file`.
    """
    scenes = held_out_scenes(6 * count)[::6]
    prompts = [prompt(s.identity.kind, s.color, s.place) for s in scenes]
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(i) for i in range(count)]
    images = pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=noise,
        output_type="np",
    ).images
    drawn = np.stack([np.asarray(render(s)) for s in scenes])
    grid(np.concatenate([drawn, (images * 255).round().astype(np.uint8)]), columns=8, scale=3).save(
        file
    )


def encoder_hash(vae):
    """Eight digits that change when the encoder does: latents made by another encoder are never
    reused.
    """
    total = hashlib.sha256()
    for part in (vae.encoder, vae.quant_conv):
        for tensor in part.state_dict().values():
            same = (
                tensor.float().cpu().contiguous() + 0.0
            )  # -0 is 0: an average turns one into the other
            total.update(same.numpy().tobytes())
    return total.hexdigest()[:8]


def judge(work, out, steps):
    """The judge's CLIP, on seeds and identities of its own; it sees every triple, the held-out ones
    too.
    """
    model, tokenizer, result = _train_clip(
        "judge", "judge", False, work, steps, 192, 3, 0.99, "longest"
    )
    model.half().save_pretrained(out / "judge" / "clip")
    tokenizer.save_pretrained(out / "judge" / "clip")
    record(out, "judge", result)


def identity(work, out, steps):
    """The judge's identity encoder and its certificate, in data/judge/identity."""
    from . import identity as identity_

    pool = work / "lookalikes.npy"
    if not pool.is_file():
        identity_.draw_pool(pool)
    identity_.train(pool, steps)
    identity_.certify()


def measure(work, out, _):
    """Measure what was trained; foreign pictures lie in work/foreign, photographs in
    ../shared/photos, where there are any.
    """
    from .measure import measure

    print(
        measure(
            out, foreign=work / "foreign", photos=out.resolve().parent.parent / "shared" / "photos"
        )
    )


def detail(work, out, pictures, guidance=4.0):
    """Measure whether samples pass for drawings, on `pictures` of each, and write it into
    measured.json and the README.
    """
    from . import measure as measure_

    found = read_json(out / "pocket" / "measured.json")
    found["detail"] = measure_.detail(out / "pocket", work, pictures, guidance)
    write_json(out / "pocket" / "measured.json", found)
    if "right" in found:
        (out / "pocket" / "README.md").write_text(measure_.readme(found), "utf-8")
    print(found["detail"])
