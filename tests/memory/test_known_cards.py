"""Cards by name: the row that a driver's name picks, the driver's own figure of memory, and what is
said of one that does not train here.
"""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from lib.__main__ import main
from lib.files.errors import BadInput
from lib.memory import cards, known_cards
from lib.memory.known_cards import KNOWN_CARDS, card_at_hand, card_named, unused_card
from lib.training import recipe_choice


@pytest.mark.parametrize(
    "name, row, gib, fast",
    [
        ("Tesla T4", "T4", 14.7, "fp16"),
        ("NVIDIA GeForce RTX 2060", "RTX 2060", 5.79, "fp16"),
        ("Tesla P100-PCIE-16GB", "P100", 15.9, "fp32"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060", 11.75, "bf16"),
        ("rtx 3060 12gb", "RTX 3060", 11.75, "bf16"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090", 23.69, "bf16"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 23.64, "bf16"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090", 31.36, "bf16"),
        ("NVIDIA L4", "L4", 22.0, "bf16"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB", 39.4, "bf16"),
        ("NVIDIA A100 80GB PCIe", "A100", 79.1, "bf16"),
        ("NVIDIA H200", "H200", 139.0, "bf16"),
    ],
)
def test_the_name_that_the_driver_says_picks_the_row(name, row, gib, fast):
    assert card_named(name) == (row, gib, fast)


@pytest.mark.parametrize(
    "name",
    ["RTX 3060 Ti", "NVIDIA L40S", "NVIDIA H100", "T400", "Radeon", "", "many"],
)
def test_another_card_is_not_taken_for_a_known_one(name):
    assert card_named(name) is None


def test_no_card_has_more_than_it_is_sold_with():
    sold = dict(zip((c.name for c in KNOWN_CARDS), (6, 16, 16, 12, 24, 24, 32, 24, 40, 80, 141)))
    assert all(0.9 * sold[card.name] < card.gib < sold[card.name] for card in KNOWN_CARDS)


@pytest.mark.parametrize("name", ["Apple M2 Pro", "m3", "Apple"])
def test_apples_says_what_runs_instead(name):
    with pytest.raises(
        BadInput, match="shares the machine's memory and is not used here.*on the pr"
    ):
        card_named(name)


def smi(monkeypatch, said):
    """Let nvidia-smi say that; None: there is none."""

    def run(command, **_):
        if said is None:
            raise FileNotFoundError(command[0])
        return SimpleNamespace(stdout=said)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(known_cards.shutil, "which", lambda _: said and "/usr/bin/nvidia-smi")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_drivers_own_figure_wins(monkeypatch):
    smi(monkeypatch, "Tesla T4, 15360, 450\n")
    assert card_at_hand() == ("Tesla T4", 14910 / 1024, "fp16")
    smi(monkeypatch, "NVIDIA GeForce RTX 3060, 8192, [N/A]\n")  # there is one of 8 GB as well
    assert card_at_hand() == ("NVIDIA GeForce RTX 3060", 8.0, "bf16")
    for nothing in (None, "", "No devices were found\n"):
        smi(monkeypatch, nothing)
        assert card_at_hand() is None
    about = SimpleNamespace(name="Tesla T4", total_memory=int(14.56 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(known_cards, "fast_arithmetic", lambda _: "fp16")
    name, gib, fast = card_at_hand()
    assert (name, round(gib, 2), fast) == ("Tesla T4", 14.56, "fp16")


def test_a_card_that_is_not_used_is_told_when_a_training_begins(monkeypatch, capsys):
    smi(monkeypatch, "Tesla T4, 15360, 450\n")
    monkeypatch.setattr(recipe_choice, "is_small", lambda *_: True)
    recipe_choice.choose_recipe(None, SimpleNamespace(device=torch.device("cpu")))
    assert "cannot use this machine's card (Tesla T4), and the processor" in capsys.readouterr().out
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert unused_card() == known_cards.APPLE
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert unused_card() == ""


@pytest.mark.parametrize(
    "card, fast, said",
    [
        ("T4", "fp16", "of the 12.9 GiB to be had on T4"),
        ("P100", "fp32", "of the 14.0 GiB to be had on P100"),
        ("16", "bf16", "of the 14.1 GiB to be had on a card of 16 GB"),
    ],
)
def test_the_forecast_is_for_what_the_card_is_fast_in(card, fast, said, monkeypatch, capsys):
    asked = []

    def forecast(settings, device, fast):
        asked.append(fast)
        return {"bytes": 2**30, "caching_bytes": 2**29, "by_category": {"weights": 2**30}}

    monkeypatch.setattr(cards, "forecast_recipe", forecast)
    assert main(["forecast", "--base", "sd15", "--card", card]) == 0
    printed = capsys.readouterr().out
    assert set(asked) == {fast} and said in printed
    assert ("\nP100 " in printed) == (fast == "fp32"), "another arithmetic is another row"
    assert ("slow in bf16" in printed) == (fast != "bf16")


def test_an_unknown_card_is_one_sentence(capsys):
    assert main(["forecast", "--card", "RTX 3060 Ti"]) == 1
    said = capsys.readouterr().err
    assert "'RTX 3060 Ti' is neither the card's memory in GB, such as 8, nor one of RTX" in said
