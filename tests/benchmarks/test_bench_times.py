"""Seconds that were taken alone replace those of a machine that did other work too."""

import pytest

from benchmarks.bench_times import with_times

FOUND = {
    ("00-robot", "lora"): {"seconds_per_step": 0.2, "train_seconds": 30.0},
    ("00-robot", "dreambooth"): {"seconds_per_step": 0.3, "train_seconds": 45.0},
}
ROW = {"subject": "00-robot", "method": "lora", "dino": 0.9, "peak_bytes": 5}
BUSY = {"seconds_per_step": 0.6, "train_seconds": 90.0, "seconds_to_half": 30.0}


def test_a_row_takes_its_subjects_own_times_and_its_way_goes_with_them():
    row = with_times(ROW | BUSY | {"seconds_to_best": None}, FOUND)
    assert row == ROW | FOUND["00-robot", "lora"] | {
        "seconds_to_half": pytest.approx(10.0),
        "seconds_to_best": None,
    }


def test_a_cut_has_the_times_of_what_it_is_cut_from():
    row = with_times(ROW | BUSY | {"method": "extracted"}, FOUND)
    assert row["train_seconds"] == 45.0 and row["seconds_per_step"] == 0.3


def test_a_row_that_was_not_timed_has_no_seconds():
    row = with_times(ROW | BUSY | {"subject": "01-cat"}, FOUND)
    assert row["dino"] == 0.9 and row["train_seconds"] is row["seconds_per_step"] is None
    assert row["seconds_to_half"] is row["seconds_to_best"] is None
