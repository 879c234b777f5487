"""A training on a processor that others use as well: its threads are recorded and kept, and steps
that turn several times slower are told, with what helps.
"""

import pytest
import torch

from lib.files.json_file import read_json
from lib.models import devices
from lib.training import loop, run_log
from lib.training.run_log import Clock, Pace


@pytest.fixture
def two_threads(monkeypatch):
    """An idle machine of two processors, whatever this one is."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "available_processors", lambda: 2.0)
    monkeypatch.setattr(devices, "idle_processors", lambda: 2.0)
    # Counted alone: on a busy machine a second thread would cost minutes here.
    for name, value in (("most", 0), ("ours", 0), ("held", False)):
        monkeypatch.setattr(devices.Threads, name, value)
    asked = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1])
    monkeypatch.setattr(torch, "set_num_threads", asked.append)


def test_threads_are_recorded_with_a_run_and_kept_on_resume(make, tmp_path, two_threads):
    settings, met = make(steps=3, save_every=1), []
    loop.train(settings, watchers=[lambda state: state.stop()])
    assert read_json(tmp_path / "lora" / "metrics.json")["threads"] == 2
    torch.set_num_threads(1)
    loop.train(settings, watchers=[lambda state: met.append(torch.get_num_threads())])
    assert met == [2, 2] and torch.get_num_threads() == 1
    assert read_json(tmp_path / "lora" / "metrics.json")["threads"] == 2


def clock(*seconds):
    """A `Clock` that has timed steps of so many seconds."""
    made, total = Clock(torch.device("cpu")), 0.0
    for each in seconds:
        total += each
        made.ends.append(total)
    return made


def test_steps_that_turn_several_times_slower_are_noticed():
    for steps, times in (
        ([0.1] * 40, 1),
        ([5, 5] + [0.1] * 40, 1),  # the first two are slow
        ([0.1] * 12 + [0.4] * 10, 1),  # not enough of both yet
        ([0.1] * 20 + [0.4] * 10, 4),
        ([0.1] * 30 + [0.4] * 4, 1),  # four of ten
    ):
        pace = Pace(clock())
        pace.clock = clock(*steps)
        assert pace.slower() == pytest.approx(times), steps
    resumed = clock(*[0.1] * 30)
    pace = Pace(resumed)
    for _ in range(30):  # slow from where it went on: another machine, perhaps
        resumed.ends.append(resumed.ends[-1] + 1.0)
    assert pace.slower() == pytest.approx(1)


@pytest.mark.parametrize("exact", [True, False])
def test_it_is_told_once_and_mended_where_no_resume_has_to_be_exact(
    exact, monkeypatch, capsys, two_threads
):
    monkeypatch.setattr(devices, "idle_processors", lambda: 0.0)
    pace = Pace(clock())
    pace.clock = clock(*[0.1] * 20, *[0.7] * 10)
    for _ in range(2):
        pace.look(exact)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "steps take 7 times as long as the first ones" in said
    if exact:
        assert "it helps to stop those, or to stop this training" in said
        assert "OMP_NUM_THREADS=1" in said and torch.get_num_threads() == 2
    else:
        assert "going on with 1 of 2 threads" in said and torch.get_num_threads() == 1


def test_the_loop_looks(make, monkeypatch):
    looked = []
    monkeypatch.setattr(run_log.Pace, "look", lambda self, exact: looked.append(exact))
    loop.train(make(steps=11, save_every=0))
    assert looked == [False, False]
