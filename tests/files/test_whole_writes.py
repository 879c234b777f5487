import os

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.csv_rows import read_table
from benchmarks.racetable import mib_cell
from lib.files.csv_table import write_table
from lib.files.errors import BadInput
from lib.files.json_file import read_json
from lib.files.paths import fitting_name
from lib.files.safetensors_file import open_weights
from lib.files.text import gib_cell, listed, rough_size, size_text
from lib.files.whole_writes import (
    MARK,
    may_be_replaced,
    size_of,
    unwritable_refused,
    whole_file,
    whole_folder,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as unfinished:
        unfinished.write_text("one")
        assert unfinished.suffix == ".txt" and not path.exists()
    with pytest.raises(RuntimeError), whole_file(path) as unfinished:
        unfinished.write_text("tw")
        raise RuntimeError
    assert path.read_text() == "one" and names(path.parent) == ["a.txt"]


def test_a_folder_is_there_whole_or_as_it_was_and_a_link_to_it_stays_one(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    with whole_folder(folder) as unfinished:
        (unfinished / "a").write_text("one")
    link.symlink_to(folder, target_is_directory=True)
    with whole_folder(link) as unfinished:
        (unfinished / "b").write_text("two")
    assert link.is_symlink() and names(folder) == ["b"]
    with pytest.raises(RuntimeError), whole_folder(folder) as unfinished:
        raise RuntimeError
    assert names(folder) == ["b"] and names(tmp_path) == ["folder", "link"]


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(tmp_path, monkeypatch):
    folder, replace = tmp_path / "folder", os.replace
    with whole_folder(folder) as unfinished:
        (unfinished / "a").write_text("one")

    def fails(old, new):
        if new == folder and (old / "b").exists():
            raise PermissionError(13, "denied")
        replace(old, new)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(BadInput, match="folder cannot be written .denied.: free some space"):
        with unwritable_refused(folder), whole_folder(folder) as unfinished:
            (unfinished / "b").write_text("two")
    assert names(folder) == ["a"] and names(tmp_path) == ["folder"]


def test_an_interrupt_between_two_renames_leaves_the_folder_before(tmp_path, monkeypatch):
    folder, replace = tmp_path / "folder", os.replace
    with whole_folder(folder) as unfinished:
        (unfinished / "a").write_text("one")

    def interrupted(old, new):
        if new == folder and (old / "b").exists():
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as unfinished:
        (unfinished / "b").write_text("two")
    assert names(folder) == ["a"] and names(tmp_path) == ["folder"]


def test_a_name_is_cut_as_far_as_there_is_one():
    assert fitting_name("a" * 300, ".png") == "a" * 251 + ".png"
    assert fitting_name("photo", "." + "木" * 90) == "." + "木" * 90, "nothing is left to be cut"


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 19280])
def test_a_header_whose_length_looks_like_a_pickle_makes_none(tmp_path, length):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path)
    before = path.read_bytes()
    size = int.from_bytes(before[:8], "little")
    header = before[8 : 8 + size].ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + before[8 + size :])
    with open_weights(path) as file:
        assert torch.equal(file.read("a"), torch.ones(2))
    path.write_bytes(length.to_bytes(8, "little") + b"x" + before[9:])
    with pytest.raises(BadInput, match="is a pickle"):
        open_weights(path)


def test_only_a_folder_that_bears_the_mark_may_be_replaced(tmp_path):
    folder = tmp_path / "made"
    with whole_folder(folder, mark=True) as unfinished:
        (unfinished / "weights").write_bytes(b"1234")
    assert list(read_json(folder / MARK)) == ["made_by"]
    assert may_be_replaced(folder, ["weights"]) and not may_be_replaced(folder, [])
    (folder / MARK).unlink()
    assert not may_be_replaced(folder, ["weights"]) and size_of(folder) == 4
    (folder / "weights").unlink()
    assert may_be_replaced(folder, []) and not may_be_replaced(tmp_path / "none", [])


def test_a_table_that_breaks_off_leaves_the_one_before(tmp_path):
    path = tmp_path / "t.csv"
    write_table(path, [{"a": 1}])
    with pytest.raises(UnicodeEncodeError):
        write_table(path, [{"a": 2}, {"a": "\udcff"}])
    assert read_table(path) == [{"a": 1}] and names(tmp_path) == ["t.csv"]


def test_lists_and_sizes_in_a_sentence():
    assert listed("abcd") == "a, b, c, d" and listed("abcdefg", 2) == "a, b and 5 more"
    assert rough_size(2**30) == "1.0 GiB" and rough_size(2**20 * 8.7) == "9 MiB"
    assert size_text(2**29) == "0.5 GiB" and size_text(2**20 * 20.84) == "20.8 MiB"
    assert (gib_cell(None), gib_cell(0), gib_cell(2**29)) == ("-", "0.00", "0.50")
    assert (mib_cell(None), mib_cell(2**20 * 3)) == ("-", "3")
