"""The pocket world, what trains its base, and the base itself as it ships."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from lib.models.devices import held_threads
from pocket import clip, decoder, detail, measure, stages, unet, vae
from pocket.measure import held_out_triples, obedience, open_square, readme
from pocket.muon import orthogonal
from pocket.objects import ACCESSORIES, CLASSES, HEAD
from pocket.pictures import picture, pool
from pocket.places import PHRASES
from pocket.stage import Stage, constant, power, rate
from pocket.unet import make_scheduler
from pocket.world import (
    COLORS,
    GENERIC_NOUNS,
    RARE_WORDS,
    TEMPLATES,
    caption,
    held_out,
    render,
    sample_scene,
    training_scenes,
)

POCKET = ROOT / "data" / "pocket"


def test_a_scene_follows_from_its_seed_and_salt():
    one, again, other = sample_scene(7), sample_scene(7), sample_scene(7, salt="judge")
    assert one == again and np.array_equal(render(one), render(again))
    assert one.identity != other.identity, "base and judge must not share identities at a seed"


def test_every_class_place_and_accessory_draws_something_of_its_own():
    pictures = {
        kind: np.asarray(render(sample_scene(3, kind=kind, color="red", place="snow")), int)
        for kind in CLASSES
    }
    names = list(pictures)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert np.abs(pictures[a] - pictures[b]).mean() > 2, f"{a} and {b} look alike"
    grounds = {
        place: np.asarray(render(sample_scene(3, kind="cat", color="red", place=place)), int)
        for place in PHRASES
    }
    assert (
        min(np.abs(a - b).mean() for k, a in grounds.items() for j, b in grounds.items() if k != j)
        > 8
    )
    assert set(HEAD) == set(CLASSES) and len(ACCESSORIES) >= 3


def test_the_held_out_triples_touch_every_class_colour_and_place_evenly():
    triples = held_out_triples()
    every = len(CLASSES) * len(COLORS) * len(PHRASES)
    assert len(triples) == every // 8
    for axis, names in enumerate((CLASSES, COLORS, PHRASES)):
        counts = [sum(t[axis] == n for t in triples) for n in names]
        assert max(counts) == min(counts) > 0
    assert not any(held_out(s) for s in training_scenes(500))


def test_captions_are_true_and_partial():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(i) for i in range(300)]
    said = np.array([clip.claims(caption(s, rng, drop=0.3)) for s in scenes])
    meant = np.array([clip.meaning(s) for s in scenes])
    assert ((said == -1) | (said == meant)).all()
    left_out = (said == -1).mean(0)
    assert 0.01 < left_out[0] < 0.1 and 0.2 < left_out[1] < 0.4 and 0.2 < left_out[2] < 0.4


def test_a_caption_matches_just_the_scenes_it_is_true_of():
    scenes = [
        clip.meaning(sample_scene(0, kind=k, color=c, place=p))
        for k, c, p in (("cat", "red", "snow"), ("cat", "blue", "snow"), ("car", "red", "night"))
    ]
    said = [
        clip.claims(t)
        for t in ("a cat", "a red thing", "a cat in the snow", "a blue cat at night", "a toy")
    ]
    assert clip.matches(said, scenes).astype(int).tolist() == [
        [1, 1, 0],
        [1, 0, 1],
        [1, 1, 0],
        [0, 0, 0],
        [1, 1, 1],
    ]


def test_the_contrastive_loss_knows_several_true_pairs():
    class Two(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, input_ids, pixel_values):
            return type("Out", (), {"logits_per_text": self.logits})()

    true = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    good = clip.contrastive_loss(Two(torch.tensor([[9.0, 9.0], [-9.0, 9.0]])), None, None, true)
    bad = clip.contrastive_loss(Two(torch.tensor([[9.0, -9.0], [-9.0, 9.0]])), None, None, true)
    assert good < bad, "a true pair off the diagonal must be wanted, not pushed away"


def test_whitening_scales_the_latents_and_leaves_the_picture():
    torch.manual_seed(0)
    model = vae.make_vae((8, 16, 16), latents=6).eval()
    x = vae.to_tensor(pool(picture, range(12)))
    with torch.no_grad():
        before = model.decode(model.encode(x).latent_dist.mode()).sample
        spread = model.encode(x).latent_dist.std
        vae.whiten(model, pool(picture, range(12)), power=1.0)
        after = model.encode(x).latent_dist
        assert torch.allclose(model.decode(after.mode()).sample, before, atol=1e-3), (
            "an eighth of a grey level of 255 is rounding"
        )
        assert torch.allclose(
            after.mean.mean((0, 2, 3)), torch.zeros(6), atol=1e-4
        ) and torch.allclose(after.mean.std((0, 2, 3)), torch.ones(6), atol=1e-2)
        assert (after.std / spread).std((0, 2, 3)).max() < 1e-3, (
            "the posterior's deviation scales with its channel"
        )


def test_what_half_as_many_places_cannot_hold_is_fine():
    torch.manual_seed(0)
    noise = torch.randn(8, 4, 16, 16)
    smooth = torch.nn.functional.interpolate(noise[..., :4, :4], size=(16, 16), mode="bilinear")
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    assert vae.fineness(smooth) < 0.05 < 0.6 < vae.fineness(noise) < 1
    assert vae.fineness(checks.expand(8, 4, 16, 16) * noise[..., :1, :1]) > 0.95
    moved = vae.fineness(noise + 7).item()
    assert moved == pytest.approx(vae.fineness(noise).item(), rel=1e-4), "not its mean"


def test_the_vae_learns_from_smaller_latents_too_and_no_loudness_outshouts_the_noise():
    model = vae.make_vae((8, 16, 16), size=64)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.manual_seed(0)
    total, numbers = vae.loss(model, x)
    total.backward()
    assert set(numbers) == {"psnr", "small", "fine", "kl"} and total.isfinite()
    assert all(p.grad is not None for p in model.parameters())

    class Loud(torch.nn.Module):
        """Latents as loud as it is told; its decoder makes them quiet again."""

        def __init__(self, loudness):
            super().__init__()
            self.loudness = loudness

        def encode(self, x):
            z = self.loudness * torch.nn.functional.avg_pool2d(x, 4)
            tiny = torch.full_like(z, -30.0)
            return type(
                "E", (), {"latent_dist": DiagonalGaussianDistribution(torch.cat([z, tiny], 1))}
            )()

        def decode(self, z):
            back = torch.nn.functional.interpolate(z / self.loudness, scale_factor=4)
            return type("D", (), {"sample": back})()

    found = []
    for loudness in (1.0, 10.0):
        torch.manual_seed(1)
        found.append(vae.loss(Loud(loudness), x)[1]["psnr"].item())
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_a_stage_goes_on_where_it_was_killed(tmp_path):
    def train(folder, die_at=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        stage = None

        def loss(model):
            if stage.step == die_at:
                raise KeyboardInterrupt
            x = torch.randn(16, 4)
            return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

        stage = Stage(
            "toy",
            model,
            loss,
            40,
            1e-2,
            folder,
            averages=(constant(0.9), power(0.1)),
            every=1000,
            save=5,
        )
        stage.run()
        return model.state_dict()

    whole = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", die_at=22)
    resumed = train(tmp_path / "b")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.parametrize("rows", [16, 7])
def test_rows_on_several_threads_give_the_gradients_of_one(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("pocket.stage.fast_arithmetic", lambda device: "fp32")

    def gradients(threads):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

        def draw():
            x = torch.randn(rows, 4)
            return x, x.sum(1, keepdim=True)

        def loss(model, x, y):
            return (model(x) - y).square().mean(), {}

        stage = Stage("toy", model, loss, 1, 1e-2, tmp_path, draw=draw)
        with held_threads(threads):
            found, _ = stage._add_gradients()
        return found, [p.grad for p in model.parameters()]

    (one, alone), (two, shared) = gradients(1), gradients(2)
    assert one == pytest.approx(two.item(), rel=1e-6)
    for a, b in zip(alone, shared):
        assert torch.allclose(a, b, rtol=1e-5) and a.abs().sum() > 0


def test_an_update_of_muon_is_nearly_orthogonal_whichever_side_is_longer():
    torch.manual_seed(0)
    for shape in ((16, 144), (144, 16), (32, 32)):
        matrix = torch.randn(shape)
        update = orthogonal(matrix)
        assert update.shape == matrix.shape
        if (
            32 not in shape
        ):  # a square random matrix has singular values near zero, which five steps cannot lift
            values = torch.linalg.svdvals(update)
            assert 0.6 < values.min() and values.max() < 1.25
        assert (update * matrix).sum() > 0, "it still goes downhill"


def test_the_average_of_power_form_spreads_over_a_share_of_the_training():
    decay, steps = power(0.1), 4000
    weight = torch.zeros(steps)
    for step in range(1, steps + 1):
        weight *= decay(step)
        weight[step - 1] = 1 - decay(step)
    t = torch.arange(1, steps + 1) / steps
    mean = (weight * t).sum()
    assert weight.sum() == pytest.approx(1, abs=1e-4)
    assert ((weight * (t - mean) ** 2).sum() ** 0.5).item() == pytest.approx(0.1, rel=0.03)


def test_the_rate_rises_stays_and_falls():
    rates = [rate(step, 1000, 1.0) for step in (0, 100, 500, 699, 850, 999)]
    assert (
        rates[0] < 0.05
        and rates[1] == rates[2] == rates[3] == 1.0
        and 0.4 < rates[4] < 0.6
        and rates[5] < 0.01
    )


def test_reconstruction_is_scored_in_decibels():
    class Off(torch.nn.Module):
        """Returns the picture with every value off by 10 of 255."""

        def encode(self, x):
            return type("E", (), {"latent_dist": type("D", (), {"mode": lambda _: x})()})()

        def decode(self, z):
            return type("D", (), {"sample": z - 20 / 255})()

    pictures = np.full((3, 64, 64, 3), 128, np.uint8)
    assert vae.psnr(Off(), pictures) == pytest.approx(10 * np.log10(255**2 / 100), abs=0.01)


# --- whether samples pass for drawings ------------------------------------------------------------


def test_the_distances_are_naught_for_the_same_and_grow_with_a_shift():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 600, 8)), rng.normal(size=(600, 8))
    assert abs(detail.kid(a[0], a[1])) < 0.01 and detail.frechet(a[0], a[0]) == pytest.approx(
        0, abs=1e-6
    )
    near, far = (detail.frechet(a[0], b + shift) for shift in (0.5, 1.0))
    assert near == pytest.approx(8 * 0.25, rel=0.25) and far == pytest.approx(8, rel=0.15), (
        "the squared distance of the means"
    )
    assert 0.01 < detail.kid(a[0], b + 0.5) < detail.kid(a[0], b + 1.0)


def test_the_auc_counts_pairs_in_the_right_order():
    assert (
        detail.auc([3, 2, 1, 0], [1, 1, 0, 0]) == 1
        and detail.auc([1, 1, 1, 1], [1, 0, 1, 0]) == 0.5
    )
    assert detail.auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(0.75)


@pytest.fixture(scope="module")
def drawn():
    scenes = [sample_scene(i, kind=("cat", "house")[i % 2]) for i in range(240)]
    return scenes, pool(render, scenes)


def test_a_discriminator_tells_noise_and_cannot_tell_one_half_from_the_other(drawn):
    _, pictures = drawn
    half, other = pictures[::2], pictures[1::2]
    noise = np.random.default_rng(0).integers(-25, 26, half.shape)
    noisy = np.clip(half + noise, 0, 255).astype(np.uint8)
    told = detail.discriminate(half, noisy, width=8, batch=8, epochs=8, patience=8)
    assert told["auc"] > 0.95 and told["pictures"] == 120
    first, second = np.concatenate([half[:60], other[:60]]), np.concatenate([half[60:], other[60:]])
    assert np.mean(detail.discriminate(first, second, width=8, batch=16, epochs=2)["epochs"]) < 0.7


def test_the_reader_learns_parts_and_is_less_sure_of_a_smear(drawn):
    scenes, pictures = drawn
    reader = detail.train_reader(pictures, scenes, steps=60, batch=24, width=8)
    found = detail.read_parts(reader, pictures, scenes)
    assert found["class"]["right"] > 0.7 and set(found) == set(detail.PARTS)
    seen = detail.features(reader, pictures)
    assert seen.shape == (240, reader.trunk.features)
    smeared = pictures.astype(int)
    smeared = (
        (smeared + np.roll(smeared, 2, 1) + np.roll(smeared, 2, 2) + np.roll(smeared, -2, 1)) // 4
    ).astype(np.uint8)
    half = detail.frechet(seen[::2], seen[1::2])
    assert detail.frechet(seen[::2], detail.features(reader, smeared)[1::2]) > 1.4 * half
    assert sum(detail.shares(reader, pictures)["pattern"]) == pytest.approx(1, abs=1e-3)


def test_parts_that_cannot_be_seen_are_not_asked_for():
    assert (
        detail.parts_of(sample_scene(0, kind="house"))[1] == -1
        and detail.parts_of(sample_scene(0, kind="cat"))[1] >= 0
    )
    assert (
        set(detail.SEEING) < set(CLASSES)
        and len(detail.numbers_of(sample_scene(0))) == detail.NUMBERS
    )


def test_a_shuffled_grid_keeps_its_key(drawn):
    _, pictures = drawn
    mixed, key = detail.shuffled(pictures[:5], 255 - pictures[:5])
    back = [m if drawing else 255 - m for m, drawing in zip(mixed, key)]
    assert sum(key) == 5 and all(any(np.array_equal(b, p) for p in pictures[:5]) for b in back)


def test_the_whole_measuring_runs_and_goes_on_where_it_was(tiny_folder, tmp_path):
    found = measure.detail(
        tiny_folder, tmp_path, count=70, guidance=1.0, reader=detail.Reader(8).eval(), steps=2
    )
    assert found["discriminator"]["auc"] > 0.9, "random weights draw no scenes"
    assert set(found["frechet"]) == set(found["kid"]) == {"floor", "samples"}
    assert (tmp_path / "shuffled.png").is_file() and len(
        json.loads((tmp_path / "shuffled_key.json").read_text())["drawing"]
    ) == 128
    folder = next(tmp_path.glob("samples_*"))
    made = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert len(made) == 2
    reader = detail.Reader(8).eval()
    measure.detail(tiny_folder, tmp_path, count=70, guidance=1.0, reader=reader, steps=2)
    assert made == {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}, (
        "samples that are there are not drawn again"
    )


def test_the_pool_of_scenes_grows_with_the_step_and_draws_none_twice(tmp_path):
    torch.manual_seed(0)
    model = vae.make_vae((8, 16, 16), latents=6).eval()
    grown = unet.Growing(tmp_path / "latents.bin", model, (6, 16, 16), first=10, each=2, ahead=8)
    assert (grown.at(0), grown.at(3)) == (10, 16) and len(grown.latents) >= 16
    assert not any(held_out(s) for s in grown.scenes)
    kept = np.array(grown.latents)
    with (tmp_path / "latents.bin").open("ab") as out:
        out.write(b"torn")
    again = unet.Growing(tmp_path / "latents.bin", model, (6, 16, 16), first=10, each=2, ahead=8)
    assert np.array_equal(again.latents, kept) and again.scenes == grown.scenes
    assert again.at(10) == 30 and np.array_equal(again.latents[: len(kept)], kept)
    fresh = unet.encode_pictures(model, pool(render, training_scenes(30)))
    assert np.allclose(again.latents[:30], fresh, atol=2e-3), (
        "the n-th latents are the n-th scene's"
    )


def test_the_stages_make_a_pipeline_and_go_on(tiny_folder, tmp_path, monkeypatch):
    """The whole chain at a size of seconds: a VAE, a U-Net from nothing, and one carried on."""
    work, out, shipped = tmp_path / "work", tmp_path / "out", tmp_path / "shipped"
    monkeypatch.setattr(stages, "SHIPPED", shipped)
    monkeypatch.setattr(vae.make_vae, "__defaults__", ((8, 16, 16), *vae.make_vae.__defaults__[1:]))
    monkeypatch.setattr(
        unet.make_unet, "__defaults__", (32, (16, 32, 32), *unet.make_unet.__defaults__[2:])
    )
    work.mkdir()
    np.save(work / "pictures.npy", pool(picture, range(24)))
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(f"{tiny_folder}/{part}", out / "pocket" / part)
    stages.vae(work, out, steps=3, batch=4)
    stages.unet(work, out, steps=2, batch=4, first=8)
    drawn = StableDiffusionPipeline.from_pretrained(out / "pocket", safety_checker=None)
    stages.unet(work, out, steps=4, batch=4, first=8)
    again = StableDiffusionPipeline.from_pretrained(out / "pocket", safety_checker=None)
    assert not torch.equal(again.unet.conv_in.weight, drawn.unet.conv_in.weight)
    training = json.loads((out / "pocket" / "measured.json").read_text())["training"]
    assert training["unet"]["steps"] == 4 and set(training) == {"vae", "unet"}
    stages.look(again.to(torch.float32), work / "look.png", count=2)

    monkeypatch.setattr(decoder.make_pairs, "__defaults__", (3,))
    stages.decoder(work, out, steps=2, files=5)
    sharper = AutoencoderKL.from_pretrained(out / "pocket" / "vae")
    made = {f: f.stat().st_mtime_ns for f in work.rglob("*.npz")}
    assert len(made) == 5
    assert not torch.equal(sharper.decoder.conv_in.weight, again.vae.decoder.conv_in.weight)
    stages.decoder(work, out, steps=3, files=5)
    assert made == {f: f.stat().st_mtime_ns for f in work.rglob("*.npz")}, "pairs are made once"
    assert torch.equal(
        AutoencoderKL.from_pretrained(out / "pocket" / "vae").encoder.conv_in.weight,
        sharper.encoder.conv_in.weight,
    ), "the encoder stays: latents, and with them trainings, are what they were"
    assert (
        json.loads((out / "pocket" / "measured.json").read_text())["training"]["decoder"]["steps"]
        == 3
    )
    assert (work / "look.png").is_file()

    shutil.copytree(out / "pocket" / "unet", shipped / "unet")
    carried, peak = stages.first_unet(32)
    assert torch.equal(carried.conv_in.weight, again.unet.conv_in.weight.float()) and peak == 1e-3


def worn_by(pipe, threads, *asked):
    """What `decoder.wear` makes where torch has so many threads."""
    with held_threads(threads):
        return decoder.wear(pipe, *asked, torch.Generator().manual_seed(0))


def test_latents_are_worn_more_the_further_they_go_back(tiny_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    shape = (1, pipe.unet.config.in_channels, 16, 16)
    one, other = torch.zeros(shape), torch.full(shape, 3.0)

    def worn(latents: torch.Tensor, back: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return decoder.wear(pipe, latents, back, ["a red car"], 1.5, generator)

    apart = [float((worn(one, n) - worn(other, n)).abs().mean()) for n in (1, 6)]
    assert apart[0] > apart[1] > 0, "the drawing is told less and less"
    everything = decoder.SAMPLER_STEPS
    assert torch.equal(worn(one, everything), worn(other, everything)), "a sample from noise alone"
    three = torch.randn(3, *shape[1:]), 4, ["a red car"] * 3, 1.5
    alone, shared = (worn_by(pipe, threads, *three) for threads in (1, 2))
    assert torch.allclose(alone, shared, atol=1e-4), "whichever thread takes a row"
    believed = decoder.trust(torch.tensor([0.0, 4.0, 8.0]))
    assert torch.allclose(believed, torch.tensor([1.0, 0.5, 0.2]))


def test_the_critic_learns_to_tell_and_the_decoder_is_held_to_the_drawings(drawn):
    """A critic alone, on drawings and on smeared ones, soon tells them; the loss of worn latents
    is none where the decoder gives the drawing itself.
    """
    _, pictures = drawn
    real = vae.to_tensor(pictures[:32])
    smeared = torch.nn.functional.avg_pool2d(real, 3, 1, 1)
    torch.manual_seed(0)
    critic = decoder.Critic(16)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.95))
    for _ in range(25):
        loss = decoder.hinge(critic(real), critic(smeared))
        decoder.update(optimizer, loss)
    assert all(r.mean() > m.mean() + 0.2 for r, m in zip(critic(real), critic(smeared)))
    worn = decoder.Pairs(real, real, real, torch.full((len(real),), 4.0))
    assert decoder.worn_loss(real, worn) == 0 < decoder.worn_loss(smeared, worn)


def test_timesteps_are_fewest_at_the_ends():
    torch.manual_seed(0)
    t = torch.cat([unet.bell(48) for _ in range(200)])
    counts = torch.histc(t, 5, 0, 1)
    assert 0 < t.min() and t.max() < 1 and counts[2] > counts[1] > counts[0] > 0


# --- as it ships ----------------------------------------------------------------------------------


def test_the_base_loads_with_plain_diffusers_and_is_small():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(POCKET)
    assert [
        type(getattr(pipe, part)).__name__ for part in ("vae", "text_encoder", "tokenizer", "unet")
    ] == [
        "AutoencoderKL",
        "CLIPTextModel",
        "CLIPTokenizer",
        "UNet2DConditionModel",
    ]
    assert pipe.scheduler.config.prediction_type == make_scheduler().config.prediction_type
    weights = list(POCKET.rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in weights) <= 40 * 2**20
    assert not [
        f for f in (ROOT / "data").rglob("*") if f.suffix in (".bin", ".ckpt", ".pt", ".pkl")
    ], "safetensors only"


def test_the_base_still_does_what_was_measured():
    from lib.models.base import load_base

    measured = json.loads((POCKET / "measured.json").read_text())["right"]
    model, tokenizer = clip.load(ROOT / "data" / "judge" / "clip")
    now, _ = obedience(load_base(), model, tokenizer, count=32)
    for name, share in now.items():
        assert share >= measured[name] - 0.15, (
            f"{name}: {share} of 32 prompts right, {measured[name]} were measured"
        )


def test_the_vae_still_reconstructs_the_example_subjects():
    from lib.models.base import load_base

    measured = json.loads((POCKET / "measured.json").read_text())["psnr_db"]
    pictures = np.stack(
        [open_square(f) for f in sorted((ROOT / "data" / "subjects").glob("*/*.png"))[::4]]
    )
    assert vae.psnr(load_base().pipe.vae, pictures) > max(27, measured["example subjects"][0] - 1.5)


def test_what_ships_names_no_folder_of_the_machine_that_made_it(tmp_path):
    for file in (ROOT / "data").rglob("config.json"):
        assert "_name_or_path" not in json.loads(file.read_text()), file
    part = unet.UNet2DConditionModel.from_pretrained(POCKET / "unet")
    part.save_pretrained(tmp_path)
    assert str(POCKET) in (tmp_path / "config.json").read_text(), "diffusers writes it"
    stages.forget_origin(tmp_path)
    assert str(POCKET) not in (tmp_path / "config.json").read_text()


def test_the_readme_of_the_base_says_what_was_measured():
    assert (POCKET / "README.md").read_text() == readme(
        json.loads((POCKET / "measured.json").read_text())
    )


def test_the_world_in_words_is_the_world_that_is_drawn():
    world = json.loads((POCKET.parent / "prompts" / "world.json").read_text())
    assert (world["classes"], world["places"]) == (list(CLASSES), list(PHRASES.values()))
    phrases = [*CLASSES, *PHRASES.values(), *COLORS, *GENERIC_NOUNS, *RARE_WORDS, "an", *TEMPLATES]
    said = {word.strip(",") for phrase in phrases for word in phrase.split() if "{" not in word}
    assert world["words"] == sorted(said), "every word of a caption that the base learnt from"
