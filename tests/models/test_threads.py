"""Threads are what the machine gives: affinity, a control group's quota, what others leave."""

import math
import os
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from lib.models import devices
from lib.models.base import load_base
from lib.models.devices import (
    Threads,
    fair_threads,
    held_threads,
    processor_quota,
    use_fair_threads,
)

CFS = {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}


@pytest.fixture
def machine(monkeypatch):
    """machine(busy=[100, 0], ...) is a machine of that kind, where torch has four threads."""
    asked = [1]  # counted alone: on a busy machine more threads would cost minutes here
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1])
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for name, value in (("most", 0), ("ours", 0), ("held", False)):
        monkeypatch.setattr(Threads, name, value)

    def make(busy, quota=math.inf, affinity=None, threads=4, omp=None):
        allowed = set(affinity or range(len(busy)))
        monkeypatch.setattr(psutil, "cpu_percent", lambda *_, **__: list(busy))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
        monkeypatch.setattr(devices, "processor_quota", lambda: quota)
        if omp is None:
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", omp)
        torch.set_num_threads(threads)

    return make


@pytest.mark.parametrize(
    "kind, threads",
    [
        ({"busy": [0, 0, 0, 0]}, 4),
        ({"busy": [10, 0, 15, 5]}, 4),  # what always runs for a moment
        ({"busy": [100, 0, 0, 0]}, 3),
        ({"busy": [100, 0]}, 1),
        ({"busy": [100, 100]}, 1),
        ({"busy": [100, 0], "affinity": [1]}, 1),
        ({"busy": [100, 0, 0, 100], "affinity": [1, 2]}, 2),
        ({"busy": [0] * 8, "quota": 2.5}, 2),
        ({"busy": [0] * 8, "quota": 0.5}, 1),
        ({"busy": [0] * 8, "threads": 2}, 2),
        ({"busy": [100] * 4, "omp": "4"}, 4),  # said by the user
    ],
)
def test_threads_are_what_the_machine_gives(machine, kind, threads):
    machine(**kind)
    assert fair_threads() == threads


@pytest.mark.parametrize(
    "files, groups, quota",
    [
        ({"cpu.max": "max 100000"}, "0::/", math.inf),
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 2.0),
        ({"a/cpu.max": "50000 100000", "a/b/cpu.max": "400000 100000"}, "0::/a/b", 0.5),
        ({"cpu.max": "300000 100000"}, "0::/not/seen/in/the/container", 3.0),
        (
            {"cpu,cpuacct/x/" + k: v for k, v in CFS.items()},
            "12:memory:/x\n4:cpu,cpuacct:/x",
            2.5,
        ),
        (
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/docker/123",
            1.0,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", math.inf),
        ({"cpuset/cpu.max": "100000 100000"}, "3:cpuset:/", math.inf),
    ],
)
def test_the_quota_of_a_control_group_is_read_in_both_versions(tmp_path, files, groups, quota):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "groups").write_text(groups + "\n")
    assert processor_quota(tmp_path / "cgroup", str(tmp_path / "groups")) == quota
    assert processor_quota(tmp_path, str(tmp_path / "none")) == math.inf


def test_threads_come_back_when_the_others_have_ended_and_what_a_user_sets_is_the_most(machine):
    machine([100, 100, 100, 0])
    assert use_fair_threads() == torch.get_num_threads() == 1
    machine([0, 0, 0, 0], threads=1)  # as before, not set by anybody
    assert use_fair_threads() == 4
    torch.set_num_threads(2)
    assert use_fair_threads() == 2


def test_a_training_holds_its_threads(machine, tiny_folder):
    machine([0, 0, 0, 0])
    with held_threads():
        assert torch.get_num_threads() == 4
        machine([100, 100, 100, 100])
        load_base(tiny_folder, "cpu")
        assert torch.get_num_threads() == 4, "a base that a watcher loads changes no sum"
    load_base(tiny_folder, "cpu")
    assert torch.get_num_threads() == 1, "but a base loaded to draw with does"
    with held_threads(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1


def test_the_largest_memory_is_told_where_there_is_no_proc_and_no_getrusage(monkeypatch):
    peak = SimpleNamespace(peak_wset=123)

    def nowhere(*names, **options):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", nowhere)
    monkeypatch.setattr(devices.sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: peak))
    assert devices.resident_bytes() == 123
