"""The files that notebooks read hold what the bench's rows say."""

import json

import pytest

from benchmarks.analysis.__main__ import results
from benchmarks.analysis.effects import BENCH
from benchmarks.analysis.shipping import extraction
from benchmarks.analysis.study_figures import figures
from benchmarks.analysis.study_rows import read_bench
from lib.evaluation.results import RESULTS
from lib.files.json_file import read_json


@pytest.mark.skipif(not BENCH.is_file(), reason="PocketBench has not been run: make pocketbench")
def test_the_results_that_ship_are_those_of_the_rows():
    rows = read_bench()
    made = results(rows, figures(rows), extraction())
    assert list(made) == ["verdicts", "studies", "advice", "ranges", "shipping"]
    for name, found in made.items():
        shipped = read_json(RESULTS / f"{name}.json")
        assert json.loads(json.dumps(found, allow_nan=False)) == shipped, (
            f"{name}.json is old: run `python -m benchmarks.analysis` again"
        )
