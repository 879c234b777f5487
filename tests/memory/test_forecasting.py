"""The forecast is what is measured, the ladder chooses by it, and what ships is what a fresh
forecast says.
"""

import json
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from benchmarks.forecast import wanted
from lib.__main__ import main
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.memory import cards
from lib.memory.fake_tensors import WORKSPACE, fake_device
from lib.memory.forecasting import (
    CACHED_PICTURES,
    KNOWN_BASES,
    caching_bytes,
    fake_base,
    forecast,
    known_shape,
    plan,
)
from lib.memory.known_cards import KNOWN_CARDS
from lib.memory.ladder import choose_rung, recipes, step_down
from lib.memory.tracker import PeakMemory
from lib.models.base import load_base, pictures_per_pass
from lib.models.devices import fast_arithmetic
from lib.models.families import preset
from lib.models.pipeline import silence_libraries
from lib.step.training_step import Step

FAST = fast_arithmetic(torch.device("cpu"))
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


def settings(method, base="pocket", **changes):
    return plan(method, base, **changes)


def measured(recipe):
    """`PeakMemory` of the second real step of a recipe on the pocket base and the CPU."""
    base, sources = load_base("pocket", "cpu"), 1 + (recipe.prior_weight > 0)
    cached = [
        (
            torch.randn(n, 12, 16, 16),
            torch.rand(n, 12, 16, 16),
            {"encoder_hidden_states": torch.randn(n, 32, 128)},
        )
        for n in CACHED_PICTURES[:sources]
    ]
    step, rows = Step(base, recipe), recipe.batch_size * sources
    told = {"encoder_hidden_states": torch.randn(rows, 32, 128)}
    if recipe.text_encoder_rate > 0:
        told = base.conditions(["a robot"] * rows, encoded=False)
    inputs = (
        torch.randn(rows, 12, 16, 16),
        torch.randn(rows, 12, 16, 16),
        torch.randint(0, 1000, (rows,)),
        told,
    )
    step(*inputs)
    with PeakMemory(step.parts, step.optimizer, cached) as peak:
        step(*inputs)
    return peak


QUICK = [
    ("lora", {"checkpointing": "all", "quantize": "nf4", "rank": 32, "batch_size": 2}),
    (
        "dreambooth",
        {
            "fused_backward": True,
            "optimizer": "adamw8bit",
            "weights": "bf16",
            "checkpointing": "all",
            "batch_size": 1,
        },
    ),
    ("lora", {"checkpointing": "largest"}),
    ("dreambooth", {"accumulate": 4}),
    ("lora", {"precision": "fp16", "batch_size": 1}),
    ("lora", {"text_encoder_rate": 1e-4}),
    ("dreambooth", {"text_encoder_rate": 1e-5}),
]
MORE = [
    ("lora", {}),
    ("lora", {"precision": "fp32", "prior_weight": 0.0}),
    ("lora", {"precision": "bf16", "batch_size": 1, "targets": "attention", "rank": 64}),
    ("lora", {"checkpointing": "all", "batch_size": 8}),
    ("lora", {"optimizer": "adamw8bit", "quantize": "int8"}),
    ("dreambooth", {}),
    ("dreambooth", {"precision": "fp32", "batch_size": 2, "prior_weight": 0.0}),
    ("dreambooth", {"checkpointing": "all"}),
    ("dreambooth", {"checkpointing": "largest", "weights": "bf16"}),
    ("dreambooth", {"optimizer": "adamw8bit", "batch_size": 8}),
    ("dreambooth", {"fused_backward": True}),
    ("dreambooth", {"weights": "bf16"}),
    (
        "lora",
        {"text_encoder_rate": 1e-4, "quantize": "nf4", "checkpointing": "all", "precision": "fp32"},
    ),
    (
        "dreambooth",
        {
            "text_encoder_rate": 1e-5,
            "fused_backward": True,
            "optimizer": "adamw8bit",
            "weights": "bf16",
        },
    ),
]


ALONE = {"prior_weight": 0.0, "checkpointing": "all"}


def test_a_text_encoder_that_trains_is_counted_whole():
    """Its weights, fp32 with gradients and two moments under DreamBooth, as much a weight as the
    U-Net's.
    """
    trained, frozen = (
        forecast(plan("dreambooth", "sd15", text_encoder_rate=1e-6, prior_weight=0.0)).by_category,
        cards.forecast_recipe(plan("dreambooth", "sd15", prior_weight=0.0))["by_category"],
    )
    more = PARAMETERS["sd15"]["text_encoder"]
    assert trained["weights"] - frozen["weights"] == pytest.approx(4 * more, rel=1e-5), (
        "and their positions"
    )
    assert trained["optimiser"] - frozen["optimiser"] == pytest.approx(8 * more, rel=0.001)


@pytest.mark.parametrize(
    "base, towers", [("sd15", ["text_encoder"]), ("sdxl", ["text_encoder", "text_encoder_2"])]
)
def test_text_encoders_with_adapters_are_there_in_bf16(base, towers):
    more = sum(PARAMETERS[base][tower] for tower in towers)
    adapter, frozen = (
        forecast(plan("lora", base, text_encoder_rate=1e-6, **ALONE)).bytes,
        cards.forecast_recipe(plan("lora", base, **ALONE))["bytes"],
    )
    assert 2 * more < adapter - frozen < 4 * more, "and what they keep"


@pytest.mark.parametrize(
    "method, changes", [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_the_forecast_is_the_measured_peak(method, changes):
    recipe = settings(method, **changes)
    peak, told = measured(recipe), forecast(recipe, device="cpu", fast=FAST)
    assert told.bytes == pytest.approx(peak.bytes, rel=0.05)
    assert told.bytes == sum(told.by_category.values())
    for kind in ("weights", "optimiser"):
        assert told.by_category[kind] == pytest.approx(peak.by_category[kind], rel=0.001), kind


@pytest.mark.parametrize("base", PARAMETERS)
def test_shapes_have_the_published_numbers_of_parameters(base):
    silence_libraries()
    import diffusers
    import transformers

    for part, number in PARAMETERS[base].items():
        config = json.loads(
            (ROOT / "data" / "shapes" / base / part / "config.json").read_text("utf-8")
        )
        with torch.device("meta"):
            if part.startswith("text"):
                model = getattr(transformers, config["architectures"][0])(
                    transformers.CLIPTextConfig(**config)
                )
            else:
                model = getattr(diffusers, config["_class_name"]).from_config(config)
        assert sum(p.numel() for p in model.parameters()) == number, part
        assert f"{number:,}" in (ROOT / "data" / "shapes" / "README.md").read_text("utf-8")


def test_weights_and_moments_are_what_arithmetic_says():
    """LoRA of rank 8 beside attention: 199,296 fp32 parameters a rank, with two moments; frozen
    weights in bf16.

    Attention makes no square matrix: at 512 pixels one of 4,096 x 4,096 for 8 heads would take 256
    MiB in bf16, and softmax two more.
    """
    told = forecast(plan("lora", "sd15", prior_weight=0.0, checkpointing="all"))
    adapter = 8 * 199_296 * 4
    assert told.by_category["weights"] == 859_520_964 * 2 + adapter
    assert told.by_category["optimiser"] == pytest.approx(2 * adapter, rel=0.001)
    assert told.by_category["activations"] < 300 * 2**20


def test_nothing_of_a_forecast_stays_behind():
    forecast(settings("lora"), device="cuda")
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16 and type(layer.weight) is torch.nn.Parameter
    assert torch.nn.functional.scaled_dot_product_attention.__module__ != "lib.memory.fake_tensors"
    with fake_device("cpu"):
        assert (
            sum(p.numel() for p in fake_base("sdxl").denoiser.parameters())
            == PARAMETERS["sdxl"]["unet"]
        )


def test_caching_takes_more_the_more_pictures_pass_at_once_and_large_ones_pass_alone():
    one, eight = (caching_bytes(settings("lora", "sd15"), pictures_at_once=n) for n in (1, 8))
    whole = 2 * (83_653_863 + 123_060_480) + WORKSPACE["cuda"]
    assert whole < one < eight and eight - whole == pytest.approx(8 * (one - whole), rel=0.05)
    plain = forecast(settings("lora", "sd15", prior_weight=0.0)).bytes
    assert one < caching_bytes(settings("lora", "sd15")) < plain < eight, (
        "two at once stay below a step; eight would not"
    )
    assert [pictures_per_pass(side**2) for side in (64, 256, 512, 768, 1024, 2048)] == [
        8,
        8,
        2,
        1,
        1,
        1,
    ]
    large = (
        2 * (PARAMETERS["sdxl"]["text_encoder"] + PARAMETERS["sdxl"]["text_encoder_2"])
        + WORKSPACE["cuda"]
    )
    assert (
        2 * 2**30
        < caching_bytes(settings("lora", "sdxl")) - large - 4 * PARAMETERS["sdxl"]["vae"]
        < 3 * 2**30
    ), "its VAE runs in fp32"


def test_the_ladder_goes_down_rung_by_rung_and_ends():
    for method in ("lora", "dreambooth"):
        found = list(recipes(settings(method)))
        assert found[0] == (settings(method), ()) and len({s for s, _ in found}) == len(found) > 3
        assert step_down(found[-1][0]) is None
        assert step_down(found[0][0])[0] == found[1][0]
        assert all(sum("checkpointing" in w for w in words) <= 1 for _, words in found), (
            "all takes the place of the largest"
        )
    for s, words in recipes(settings("lora", checkpointing="all")):
        assert s.checkpointing == "all" and not any("checkpointing" in w for w in words), (
            "asked for: not given up"
        )


def test_the_least_slow_recipe_that_fits_is_chosen():
    plain = settings("dreambooth")
    sizes = dict(
        zip(
            [s for s, _ in recipes(plain)],
            [9 << 30, 7 << 30, 5 << 30, 4 << 30, 4 << 30, 3 << 30],
            strict=True,
        )
    )
    assert choose_rung(plain, 10 << 30, sizes.get)[:2] == (plain, 9 << 30)
    chosen, size, sentence = choose_rung(plain, 6 << 30, sizes.get)
    assert (
        chosen.weights == "bf16"
        and chosen.optimizer == "adamw8bit"
        and chosen.checkpointing == "none"
        and size == 5 << 30
    )
    assert (
        "8-bit moments" in sentence
        and "5.0 GiB" in sentence
        and "6.0 GiB" in sentence
        and "7.0 GiB" in sentence
    )
    with pytest.raises(
        BadInput,
        match=r"No recipe .* the smallest takes 3\.0 GiB and there are 2\.0 GiB to be had: lower",
    ):
        choose_rung(plain, 2 << 30, sizes.get)


def test_a_card_offers_less_than_its_name():
    assert [round(cards.usable_bytes(card) / 2**30, 1) for card in (4, 8, 24)] == [3.0, 6.7, 21.5]


def test_what_ships_is_a_fresh_forecast_and_complete():
    found = read_json(cards.RESULTS)
    rows = {json.dumps(row["recipe"], sort_keys=True): row for row in found["rows"]}
    for base in ("pocket", "sd15", "sdxl"):
        for recipe, _ in wanted([base]):
            assert json.dumps(cards.recipe_key(recipe), sort_keys=True) in rows, (
                "run python -m benchmarks.forecast"
            )
    for fresh in (
        settings("lora", checkpointing="all"),
        list(recipes(settings("dreambooth", "pocket")))[-1][0],
    ):
        row, again = rows[json.dumps(cards.recipe_key(fresh), sort_keys=True)], forecast(fresh)
        assert (row["bytes"], row["by_category"], row["caching_bytes"]) == (
            again.bytes,
            again.by_category,
            caching_bytes(fresh),
        )


def test_the_targets_of_the_issue_are_forecast():
    """At batch size 1, without class images; GiB."""
    targets = {
        ("sd15", "lora"): 3.0,
        ("sd15", "dreambooth"): 5.5,
        ("sdxl", "lora"): 7.0,
        ("sdxl", "dreambooth"): 12.0,
    }
    rows = [row for row in read_json(cards.RESULTS)["rows"] if not row["recipe"]["class_images"]]
    for (base, method), target in targets.items():
        mine = [
            row["bytes"]
            for row in rows
            if (row["recipe"].get("base"), row["recipe"]["method"]) == (base, method)
        ]
        assert min(mine) <= target * 2**30, (base, method)
    nf4 = [
        row["bytes"]
        for row in rows
        if row["recipe"].get("base") == "sdxl" and row["recipe"].get("quantize") == "nf4"
    ]
    assert min(nf4) <= 5 * 2**30


def test_a_card_must_hold_what_comes_before_the_step_too():
    """SDXL's LoRA in 4 bits trains in 2.8 GiB, and its text encoders and VAE take 4.3 while
    pictures are encoded.
    """
    found = cards.forecast_ladder(settings("lora", "sdxl", prior_weight=0.0))
    assert (
        found[-1]["bytes"]
        < cards.usable_bytes(4)
        < found[-1]["caching_bytes"]
        == cards.needed_bytes(found[-1])
    )
    assert (
        cards.first_that_fits(found, cards.usable_bytes(4)) is None
        and cards.first_that_fits(found, cards.usable_bytes(6))["settings"].quantize == "nf4"
    )


def test_a_card_without_fast_bf16_holds_fp32_weights(monkeypatch):
    recipe = settings("lora", checkpointing="all")
    plain, old = cards.forecast_recipe(recipe), forecast(recipe, fast="fp32")
    assert old.by_category["weights"] > 1.8 * plain["by_category"]["weights"]
    monkeypatch.setattr(cards, "expects_fast", lambda device: "fp32")
    assert cards.forecast_recipe(recipe) == {
        "bytes": old.bytes,
        "by_category": old.by_category,
        "caching_bytes": caching_bytes(recipe, fast="fp32"),
    }
    own = WORKSPACE["cuda"]
    assert caching_bytes(recipe, fast="fp32") - own > 1.8 * (caching_bytes(recipe) - own)


def test_a_base_of_a_known_shape_is_that_shape(tmp_path, tiny_folder):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        config = read_json(ROOT / "data" / "shapes" / "sd15" / part / "config.json") | {
            "_diffusers_version": "0.6.0"
        }
        (tmp_path / part / "config.json").write_text(
            json.dumps(config | {"sample_size": 32}), "utf-8"
        )
    with pytest.MonkeyPatch.context() as patched:  # a folder without weights
        patched.setattr("lib.memory.forecasting.locate", lambda name: Path(name))
        assert known_shape(str(tmp_path)) == "sd15"
    assert [known_shape(name) for name in KNOWN_BASES] == list(KNOWN_BASES) and known_shape(
        tiny_folder
    ) == tiny_folder


def test_a_training_gets_the_least_slow_recipe_that_the_card_at_hand_has_room_for(monkeypatch):
    plain, memory = settings("lora", "sdxl", prior_weight=0.0), [15 << 30, 24 << 30]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: tuple(memory))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    assert cards.choose_recipe_for(plain, torch.device("cuda"))[0] == plain
    monkeypatch.setattr("lib.step.quantization.device_supports", lambda *_: True)
    memory[0] = 4 << 30  # other programs hold the rest
    recipe, sentence = cards.choose_recipe_for(plain, torch.device("cuda"))
    assert (
        recipe.checkpointing == "all"
        and recipe.quantize == "nf4"
        and recipe.optimizer == "adamw"
        and "on this Card" in sentence
    )
    memory[0] = 2 << 30
    with pytest.raises(
        BadInput, match=r"No recipe for lora on 'sdxl' fits this Card: the smallest takes 4\.4 GiB"
    ):
        cards.choose_recipe_for(plain, torch.device("cuda"))


def test_notebooks_get_a_table_of_cards():
    start = time.perf_counter()
    table = cards.which_fits("sd15")
    assert cards.which_fits("pocket").rows and time.perf_counter() - start < 2, (
        "from the rows that ship"
    )
    named = [card.name for card in KNOWN_CARDS if card.fast != "fp32"]
    assert [row[0] for row in table.rows] == [f"{c} GB" for c in cards.CARDS] + named
    assert "checkpointing" in table.rows[0][2] and table.rows[-1][2] == "plain"
    assert len(cards.published().rows) >= 5 and all(row[2] for row in cards.published().rows)
    assert {("sd15", "lora"), ("sdxl", "dreambooth")} <= set(cards.smallest_recipes())


def test_the_command_prints_and_gives_json(capsys):
    main(["forecast", "--base", "sdxl", "--method", "dreambooth", "--resolution", "1024"])
    printed = capsys.readouterr().out
    assert "DreamBooth on sdxl at 1024 pixels" in printed and "24 GB" in printed
    assert "No recipe for dreambooth on 'sdxl' fits a card of 8 GB: the smallest takes 1" in printed
    assert "the U-Net waits: 4." in printed
    assert cards.card_at_hand() or "one of 8 GB is taken: name yours" in printed
    # Of a recipe that is not stored, near the end of its ladder: each rung takes seconds.
    given = ["text_encoder_rate=1e-5", "checkpointing=all", "quantize=nf4", "optimizer=adamw8bit"]
    main(["forecast", "--base", "pocket", *(word for one in given for word in ("--set", one))])
    assert "LoRA on pocket" in capsys.readouterr().out
    main(["forecast", "--base", "sd15", "--card", "6", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["recipes"][0]["bytes"] == sum(found["recipes"][0]["by_category"].values()) > 10**9
    assert found["sentence"].startswith("Chosen: ") and [
        c["card_gb"] for c in found["cards"][: len(cards.CARDS)]
    ] == list(cards.CARDS)
    main(["forecast", "--base", "sdxl", "--method", "dreambooth", "--card", "80", "--json"])
    assert "Chosen: the plain recipe" in json.loads(capsys.readouterr().out)["sentence"], (
        "larger than any common card"
    )


@pytest.mark.parametrize("prior, drawn", [("images", True), ("teacher", False), ("anchor", False)])
def test_class_images_are_named_where_there_are_any(prior, drawn, capsys, monkeypatch):
    known = {"bytes": 10**9, "caching_bytes": 10**8, "by_category": {"weights": 10**9}}
    monkeypatch.setattr(cards, "forecast_recipe", lambda *_: known)
    main(["forecast", "--base", "pocket", "--json", "--set", f"prior={prior}"])
    assert json.loads(capsys.readouterr().out)["class_images"] == drawn


def test_keeping_steps_asks_for_no_forecast_of_its_own():
    plain, kept = (preset("lora", data="-", output="-", keep=keep) for keep in ("last", "all"))
    assert cards.recipe_key(plain) == cards.recipe_key(kept)


def test_what_fits_no_card_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(
        cards,
        "forecast_recipe",
        lambda *_: {"bytes": 10**12, "caching_bytes": 10**9, "by_category": {}},
    )
    assert main(["forecast", "--set", "batch_size=64", "--resolution", "2048"]) == 1
    assert (
        "No recipe for lora on 'sd15' fits any common card, 48 GB the largest: the smallest takes"
        " 931"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("arguments, said", [
    (["--base", "sd99"], "There is no base model 'sd99'"),
    (["--method", "lore"], "Setting 'method' is 'lore'"),
    (["--resolution", "516"], "or a multiple of 8"),
    (["--set", "rank=many"], "--set rank=many is no setting with its value"),
    (["--set", "rnk=8"], "did you mean 'rank'"),
    (["--card", "-3"], "--card is -3.0"),
    (["--card", "many"], "Invalid value for '--card': 'many' is neither"),
    (["--set", "base=sdxl"], "--set base=sdxl has an option of its own: write --base sdxl"),
    (["--set", "data=nowhere"], "nowhere is no prepared data set"),
    (["--set", "quantize=nf4", "--method", "dreambooth"], "quantize"),
])  # fmt: skip
def test_bad_input_is_one_sentence(arguments, said, capsys):
    assert main(["forecast", *arguments]) == 1
    sentence = capsys.readouterr().err.removesuffix("\n")
    assert said in sentence and "\n" not in sentence
