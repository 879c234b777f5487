"""What the shipping bench's rows say about claims 7, 8 and 16, and no more."""

import pytest
import torch
from adapters import tuned_run
from PIL import Image

from benchmarks import sections, shipping_bench, shipping_runs
from benchmarks.analysis.results_page import shipping_section
from benchmarks.analysis.shipping import claim_rows, extraction, summary_rows
from benchmarks.csv_rows import read_table
from lib.evaluation.results import RESULTS
from lib.files.csv_table import write_table
from lib.models.base import load_base
from lib.models.base_weights import open_base_weights

SWITCH = {
    "study": "switch",
    "subject": "s0",
    "seed": 0,
    "choose_seconds": 0.004,
    "load_seconds": 0.1,
    "checkpoint_seconds": 0.04,
    "concepts_per_gb_lora": 410.0,
    "concepts_per_gb_dreambooth": 45.0,
    "concepts_per_gb_memory_lora": 205.0,
    "concepts_per_gb_memory_dreambooth": 22.0,
    "pictures_per_second_adapter": 5.0,
    "pictures_per_second_fused": 7.0,
    "pictures_per_second_checkpoint": 7.1,
}


def composed(subject, how, weight, shares, alone=None):
    """A row as the bench writes it; a concept without a share stands alone 0.01 above the base,
    others 0.5 or as `alone` says.
    """
    known = [share for share in shares.values() if share is not None]
    row = {
        "study": "compose",
        "subject": subject,
        "seed": 0,
        "how": how,
        "concepts": 3,
        "weight": weight,
        "survives": sum(known) / len(known),
    }
    for kind, share in shares.items():
        above = 0.01 if share is None else (alone or {}).get(kind, 0.5)
        row |= {f"survives_{kind}": share, f"floor_{kind}": 0.2, f"alone_{kind}": 0.2 + above}
    return row


def table(tmp_path, subjects, gap=0.3, switch=SWITCH):
    rows = [switch]
    for k in range(subjects):
        ways = [
            ("adapters", 1.0, 0.2),
            ("adapters", 0.7, 0.5 + gap),
            ("mix svd", 1.0, 0.1),
            ("checkpoints averaged", 1.0, 0.5),
            ("checkpoints added", 1.0, 0.1),
            ("trained on all, LoRA", 1.0, 0.9),
        ]
        for how, weight, share in ways:
            share += 0.01 * (k % 3)
            rows.append(
                composed(
                    f"s{k}", how, weight, {"character": share, "clothing": share, "lighting": None}
                )
            )
    path = tmp_path / "shipping.csv"
    write_table(path, rows)
    return path


def test_each_side_is_judged_by_its_best_way_and_a_verdict_takes_six_subjects(tmp_path):
    effect, verdict = claim_rows(table(tmp_path, 6))[7]
    assert (
        "adapters at 0.7" in effect
        and "checkpoints averaged" in effect
        and "+0.30" in effect
        and "6 characters" in effect
    )
    assert verdict == "holds"
    assert claim_rows(table(tmp_path, 6, gap=-0.3))[7][1] == "does not hold"
    assert claim_rows(table(tmp_path, 6, gap=0.0))[7][1] == "no difference found"
    effect, verdict = claim_rows(table(tmp_path, 2))[7]
    assert "no interval" in effect and verdict.startswith("not enough subjects (2")


def test_the_way_is_chosen_on_other_subjects(tmp_path):
    """Six ways of the adapters, each lucky with one subject: better than the checkpoints by
    hindsight alone.
    """
    rows = [SWITCH]
    for k in range(6):
        ways = [(f"mix {w}", 0.49 + 0.3 * (w == k)) for w in range(6)] + [
            ("checkpoints averaged", 0.5)
        ]
        rows += [composed(f"s{k}", how, 1.0, {"character": share}) for how, share in ways]
    write_table(tmp_path / "shipping.csv", rows)
    effect, verdict = claim_rows(tmp_path / "shipping.csv")[7]
    assert verdict == "does not hold" and "adapters minus checkpoints -0.01" in effect


def test_a_concept_that_one_side_hardly_learned_is_left_out_of_both(tmp_path):
    """The adapters' light alone is 0.03 above the base, so that 0.3 for all three is ten times what
    it was: as a mean, a clear victory.
    """
    rows, faint = [SWITCH], {"lighting": 0.03}
    for k in range(6):
        rows += [
            composed(
                f"s{k}",
                "adapters",
                1.0,
                {"character": 0.2, "clothing": 0.2, "lighting": 10.0},
                faint if k < 5 else None,
            ),
            composed(
                f"s{k}",
                "checkpoints averaged",
                1.0,
                {"character": 0.5, "clothing": 0.5, "lighting": 0.1},
            ),
        ]
    rows[-2] |= {"survives_lighting": 0.2}
    write_table(tmp_path / "shipping.csv", rows)
    effect, verdict = claim_rows(tmp_path / "shipping.csv")[7]
    assert (
        verdict == "does not hold" and "adapters minus checkpoints -0.28" in effect
    )  # five of -0.3, one of -1/6
    assert "5 of 18 concepts left out" in effect
    lines, _, note = summary_rows(tmp_path / "shipping.csv")
    assert {line[0]: line[-1] for line in lines} == pytest.approx(
        {"adapters": 0.2, "checkpoints averaged": 0.1}
    )
    assert (
        lines[0][:2] == ["checkpoints averaged", pytest.approx((5 * 0.5 + 1.1 / 3) / 6)]
        and "5 of 18 concepts left out" in note
    )


def test_a_subject_of_which_nothing_was_learned_is_no_subject(tmp_path):
    rows = [
        SWITCH,
        *(
            composed(f"s{k}", how, 1.0, {"character": 0.5}, {"character": 0.02 if k else 0.5})
            for k in range(2)
            for how in ("adapters", "checkpoints averaged")
        ),
    ]
    write_table(tmp_path / "shipping.csv", rows)
    effect, _ = claim_rows(tmp_path / "shipping.csv")[7]
    assert "1 characters" in effect and "1 of 2 concepts left out" in effect


def test_switching_says_which_way_it_came_out(tmp_path):
    effect, verdict = claim_rows(table(tmp_path, 1))[8]
    assert (
        "0.004 s among loaded" in effect
        and "410 against 45 concepts a GB of files, 205 against 22 of memory" in effect
    )
    assert (
        verdict
        == "depends on the measure: holds for choosing among loaded adapters, concepts a GB,"
        " pictures a second, fused; does not hold for loading from disk, pictures a second,"
        " beside (pocket base, one machine)"
    )
    better = SWITCH | {"load_seconds": 0.01, "pictures_per_second_adapter": 7.0}
    assert claim_rows(table(tmp_path, 1, switch=better))[8][1].startswith("holds for choosing")


def test_the_table_is_sorted_and_says_how_many_subjects_it_rests_on(tmp_path):
    rows, headings, note = summary_rows(table(tmp_path, 2))
    assert [r[0] for r in rows][:2] == ["trained on all, LoRA", "adapters at 0.7"]
    assert headings[0] == "way" and len(rows[0]) == len(headings)
    assert (
        rows[0][1] == pytest.approx(0.905)
        and rows[0][-1] is None
        and "2 subjects" in note
        and "a verdict takes 6" in note
    )


def test_nothing_is_said_without_a_bench(tmp_path):
    assert claim_rows(tmp_path / "none.csv") == {} and summary_rows(tmp_path / "none.csv")[0] == []
    assert "python -m benchmarks.shipping_bench" in summary_rows(tmp_path / "none.csv")[2]


def extracted(subjects=6):
    rows = []
    for k in range(subjects):
        about = {"study": "extract", "subject": f"s{k}", "seed": 0}
        rows += [
            about
            | {
                "rank": r,
                "method": "extracted",
                "dino": d + k / 100,
                "kept_of_layers": r / 64,
                "file_bytes": r * 2**20,
            }
            for r, d in ((1, 0.3), (16, 0.6), (64, 0.8))
        ]
        rows += [
            about | {"method": m, "dino": d + k / 100}
            for m, d in (("dreambooth", 0.82), ("lora", 0.7), ("base", 0.1))
        ]
    return rows


def test_the_extracted_rank_is_held_against_both_trainings_subject_by_subject(tmp_path):
    path = tmp_path / "shipping.csv"
    write_table(path, extracted())
    figure = extraction(path)
    assert figure.table.rows[1] == [
        "rank 16",
        "0.250",
        "16.00",
        "0.625",
        "-0.220 (-0.220 to -0.220)",
        "-0.100 (-0.100 to -0.100)",
    ]
    assert [row[0] for row in figure.table.rows] == [
        "rank 1",
        "rank 16",
        "rank 64",
        "DreamBooth",
        "LoRA",
        "base",
    ]
    assert figure.table.rows[3][4] == "-" and "6 subjects" in figure.caption
    write_table(path, extracted(2))
    assert "no interval" in extraction(path).table.rows[0][4], "two subjects make no interval"
    write_table(path, [row for row in extracted() if row["method"] != "dreambooth"])
    assert extraction(path) is None and extraction(tmp_path / "none.csv") is None


def test_the_readme_prints_what_shipping_measured():
    figure = extraction()
    assert sections.section(sections.RESULTS_PAGE, "ship") == shipping_section(figure), (
        "run `python -m benchmarks.analysis` again"
    )
    if figure:
        with Image.open(RESULTS / "bench_extraction.png") as picture:
            assert picture.text["Description"] == figure.alt, (
                "run `python -m benchmarks.analysis` again"
            )


def test_rows_of_other_studies_stay_and_those_of_another_recipe_go(tmp_path, monkeypatch):
    monkeypatch.setattr(shipping_bench, "RESULTS", tmp_path / "shipping.csv")
    ground = {"base_hash": "b1a", "judge": "pocket c2", "recipe_hash": "d3e"}
    monkeypatch.setattr(shipping_bench, "stands_on", lambda: ground)
    shipping_bench.write_results(
        [
            {"study": "extract", "subject": "s0", "seed": 0, "rank": 4, "dino": 0.5} | ground,
            {"study": "extract", "subject": "s0", "seed": 0, "rank": 8, "dino": 0.6}
            | ground
            | {"recipe_hash": "old"},
        ]
    )
    shipping_bench.write_results(
        [
            SWITCH | ground,
            {"study": "extract", "subject": "s1", "seed": 0, "rank": 4, "dino": 0.7} | ground,
        ]
    )
    shipping_bench.write_results(
        [{"study": "extract", "subject": "s0", "seed": 0, "rank": 4, "dino": 0.9} | ground]
    )
    rows = [
        (r["study"], r["subject"], r["rank"], r.get("dino"))
        for r in read_table(tmp_path / "shipping.csv")
    ]
    assert rows == [
        ("extract", "s0", 4, 0.9),
        ("extract", "s1", 4, 0.7),
        ("switch", "s0", None, None),
    ]


def test_three_concepts_in_one_model_train_three_times_as_long_and_every_run_is_made_once():
    runs = shipping_runs.runs_needed(["a", "b"], 2, ["compose", "extract"])
    assert len(set(runs)) == len(runs) == 2 * 2 * (2 * 2 + 2) and runs[0][0].startswith("all-")
    assert not any(
        concept.startswith("all-")
        for concept, *_ in shipping_runs.runs_needed(["a"], 1, ["extract"])
    )
    assert (
        shipping_runs.settings_of("all-a", "lora", 0).steps
        == 3 * shipping_runs.settings_of("a", "lora", 0).steps
    )


def test_changes_of_checkpoints_average_and_add(tiny, tmp_path, dataset):
    folder, *_ = tiny("sd1")
    run, target = tuned_run(folder, tmp_path / "run", dataset), open_base_weights(str(folder))
    tuned = open_base_weights(str(folder), run)
    for weights, share in (([0.5, 0.5], 1.0), ([1.0, 1.0], 2.0)):
        base = shipping_bench.add_changes(load_base(str(folder)), [run, run], weights)
        old, new = (
            target.read("unet", "conv_in.weight"),
            tuned.read("unet", "conv_in.weight").float(),
        )
        assert torch.allclose(base.denoiser.conv_in.weight, old + share * (new - old), atol=1e-5)
