"""Everything that is read off the bench's rows: data/results/*.json, pictures, docs/results.md.

    python -m benchmarks.analysis

Reads data/results/pocketbench.csv, shipping.csv and forecast.json, and trains nothing. Notebooks
read the JSON through `lib.evaluation.results`.
"""

import sys
from typing import Any

from benchmarks.analysis.advice_facts import advice_facts
from benchmarks.analysis.ranges import ranges
from benchmarks.analysis.results_page import write_page
from benchmarks.analysis.shipping import extraction, shipping_facts
from benchmarks.analysis.study_figures import figures
from benchmarks.analysis.study_rows import read_bench
from benchmarks.analysis.verdicts import read_forecast, verdicts
from lib.evaluation.results import RESULTS
from lib.files.errors import BadInput
from lib.files.json_file import write_json
from lib.plots.figure import Figure


def results(
    rows: list[dict[str, Any]], made: dict[str, Figure], extracted: Figure | None
) -> dict[str, dict[str, Any]]:
    """What each of the files in data/results holds, by its name.

    rows: PocketBench's. made: their figures. extracted: the picture of extracted LoRAs.
    """
    return {
        "verdicts": verdicts(rows, read_forecast()),
        "studies": {name: figure_record(name, figure) for name, figure in made.items()},
        "advice": advice_facts(rows),
        "ranges": ranges(rows),
        "shipping": shipping_facts()
        | {"extraction": extracted and figure_record("extraction", extracted)},
    }


def figure_record(name: str, figure: Figure) -> dict[str, Any]:
    """A figure in words and numbers, beside the file that its picture lies in."""
    table = figure.table
    return {
        "picture": f"bench_{name}.png",
        "caption": figure.caption,
        "alt": figure.alt,
        "table": table
        and {
            "caption": table.caption,
            "columns": [str(column) for column in table.columns],
            "rows": [[_plain(cell) for cell in row] for row in table.rows],
        },
    }


def _plain(value: Any) -> Any:
    """A table's cell as JSON can hold it: numpy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value


def main() -> int:
    """Write all files; the exit status, 1 where the bench has not been run."""
    rows = read_bench()
    if not rows:
        return 1
    made, extracted = figures(rows), extraction()
    for name, found in results(rows, made, extracted).items():
        write_json(RESULTS / f"{name}.json", found)
    pictures = made | ({"extraction": extracted} if extracted else {})
    for name, figure in pictures.items():
        figure.save(RESULTS / f"bench_{name}.png")
    write_page(rows, made, extracted)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BadInput as error:
        sys.exit(str(error))
