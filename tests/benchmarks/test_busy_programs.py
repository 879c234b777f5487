"""What a step takes beside other programs: the table is of the rows that are kept."""

import os

from benchmarks import shared_processor
from benchmarks.sections import OWN_README, section
from lib.files.json_file import read_json


def test_the_table_is_of_the_rows_and_says_what_was_not_measured():
    found = read_json(shared_processor.RESULTS)
    written = section(OWN_README, "shared processor")
    assert written == shared_processor.figures(found)
    assert all(row["situation"] in written for row in found["rows"])
    told = shared_processor.figures(found | {"unmeasured": ["under a quota (no control group)"]})
    assert "Not measured: under a quota (no control group)." in told


def test_busy_programs_run_within_the_block_and_end_with_it():
    with shared_processor.busy(1):
        [loop] = shared_processor.multiprocessing.active_children()
        os.kill(loop.pid, 0)
    assert not shared_processor.multiprocessing.active_children()
