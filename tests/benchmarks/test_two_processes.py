"""What two processes send a step: the table is of the rows that are kept, and they agree with the
arithmetic.
"""

import pytest

from benchmarks import two_processes
from benchmarks.sections import OWN_README, section
from lib.files.json_file import read_json


def test_the_table_is_of_the_rows_and_they_agree_with_the_arithmetic():
    found = read_json(two_processes.RESULTS)
    assert section(OWN_README, "two processes") == two_processes.figures(found)
    for row in found["rows"]:
        assert row["bytes"] == pytest.approx(row["arithmetic_bytes"], rel=1e-3), row["method"]
        assert (row["efficiency"] is None) == (found["load"] > two_processes.QUIET)
