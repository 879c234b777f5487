"""Figures: what a reader who sees no picture, or no colour, gets from them, and that what is drawn
is what was given.
"""

import base64
import io
import json
import math

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from matplotlib.text import Text
from PIL import Image

from lib.dataset.photo_tiles import contact_sheet, framed
from lib.files.errors import BadInput
from lib.plots import charts
from lib.plots.figure import LARGEST, Paragraphs, as_table
from lib.plots.image_grid import grid
from lib.plots.looks import LOOKS, OTHER_LOOKS, PLAIN, looks, own_look
from lib.training.samples import sample_progress


def picture(color, size=(64, 64)):
    return Image.new("RGB", size, color)


@pytest.fixture
def noise():
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(32)
    ]


def seen(figure):
    """The figure's HTML as a front end gets it, parsed."""
    return BeautifulSoup(figure._repr_html_(), "html.parser")


FIGURES = {
    "grid": lambda: grid(
        [picture("red"), picture("blue")],
        columns=["red", "blue"],
    ).with_table(as_table([[1, 2]], ["a", "b"])),
    "curves": lambda: charts.curves({"LoRA": [3.0, 2.0, 1.25], "DreamBooth": [4.0, 2.0, 1.0]}),
    "losses": lambda: charts.losses({"LoRA": [3.0, 2.0, 1.25]}),
    "learning rates": lambda: charts.learning_rate_curve(
        {"lora": {1e-3: 0.5, 2e-3: [0.6, 0.8]}}, {"lora": 1e-3}
    ),
    "bars": lambda: charts.bars({"LoRA": 0.125, "DreamBooth": 0.25}, unit="s"),
    "points": lambda: charts.points(
        {"LoRA": [("rank 1", 0.5, 0.25, (0.4, 0.6), (0.2, 0.3))], "base": [("", 0.6, 0.125)]},
        "CLIP-T",
        "DINO",
    ),
    "intervals": lambda: charts.intervals(
        {"DINO": (0.03, 0.01, 0.05), "PRES": (0.5, None, None)}, "cosine", around=0, margin=0.02
    ),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_every_figure_has_alternative_text_numbers_and_a_useful_text_form(make):
    figure = make()
    page = seen(figure)
    assert len(page.img["alt"]) > 20
    assert page.find("th", scope="col") and page.find("th", scope="row") and page.find("td")
    bundle, metadata = figure._repr_mimebundle_()
    assert metadata[figure.encoded[0]]["alt"] == figure.alt
    assert figure.alt in bundle["text/plain"] and figure.table.text() in bundle["text/plain"]
    assert "object at 0x" not in bundle["text/plain"]


def test_an_executed_notebook_exports_picture_and_table_to_html():
    from nbconvert import HTMLExporter

    figure = FIGURES["curves"]()
    data, metadata = figure._repr_mimebundle_()
    cell = nbformat.v4.new_code_cell(
        "figure", outputs=[nbformat.v4.new_output("execute_result", data=data, metadata=metadata)]
    )
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    output = BeautifulSoup(page, "html.parser").find(class_="jp-OutputArea-output")
    assert output.img["alt"] == figure.alt and output.img["src"].startswith(
        "data:image/png;base64,"
    )
    assert output.table.find_all("th", scope="col")[1].text == "LoRA"


def test_markup_in_words_stays_words():
    page = seen(
        grid(
            [picture("red")],
            columns=["<b>x</b>"],
            caption='a < b & "c"',
            alt='"<script>"',
        ).with_table(as_table([["<i>", 1]], ["<u>", "n"], "<s>"))
    )
    assert not page.find(["b", "script", "i", "u", "s"]) and page.img["alt"].startswith(
        '"<script>"'
    )


def test_the_numbers_beside_a_curve_are_those_drawn():
    figure = charts.curves({"LoRA": [4.0, 2.0, 6.0, 0.0]}, smooth=2)
    assert figure.table.rows == [[1, 4.0], [2, 3.0], [3, 4.0], [4, 3.0]]
    assert list(figure.chart.axes[0].lines[1].get_ydata()) == [4.0, 3.0, 4.0, 3.0]
    assert "lowest 3 at 2" in figure.alt and "highest 4 at 1" in figure.alt


def test_curves_of_different_lengths_and_places_share_a_table():
    figure = charts.curves({"a": ([1, 2], [5.0, 6.0]), "b": ([2, 3], [7.0, 8.0])})
    assert figure.table.rows == [[1, 5.0, None], [2, 6.0, 7.0], [3, None, 8.0]]


def test_long_series_keep_a_short_table_with_both_ends():
    figure = charts.curves({"LoRA": list(map(float, range(1000)))})
    assert len(figure.table.rows) <= 9 and [row[0] for row in figure.table.rows][
        :: len(figure.table.rows) - 1
    ] == [1, 1000]


def test_curves_read_without_colour():
    figure = charts.curves({name: [1.0, k + 2.0] for k, name in enumerate("abcd")})
    lines = figure.chart.axes[0].lines
    # get_linestyle calls all dashes of one's own "--".
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 4
    assert len({line.get_marker() for line in lines}) == 4
    assert {text.get_text().strip() for text in figure.chart.axes[0].texts} == set(
        "abcd"
    )  # named on the spot, not in a legend


def test_names_at_the_ends_of_lines_do_not_lie_on_each_other():
    figure = charts.curves({name: [1.0, 2.0] for name in ("LoRA", "DreamBooth", "base")})
    figure.chart.draw_without_rendering()
    boxes = sorted(
        (t.get_window_extent().y0, t.get_window_extent().y1) for t in figure.chart.axes[0].texts
    )
    assert all(upper[0] >= lower[1] - 2 for lower, upper in zip(boxes, boxes[1:]))


def test_bars_read_without_colour_and_carry_their_numbers():
    figure = charts.bars(
        {"speed": {"LoRA": 0.125, "DreamBooth": 0.25}, "size": {"LoRA": 3, "DreamBooth": None}},
        unit="s",
    )
    bars = figure.chart.axes[0].patches
    assert len({bar.get_hatch() for bar in bars}) == 2 and len(bars) == 3
    assert {t.get_text() for t in figure.chart.axes[0].texts} == {
        "0.125 LoRA",
        "0.25 DreamBooth",
        "3 LoRA",
    }
    assert figure.table.rows == [["speed", 0.125, 0.25], ["size", 3, None]]


def test_bars_of_nothing_and_below_nothing_are_drawn():
    assert charts.bars({"base": 0.0}).chart.axes[0].get_xlim()[1] > 0
    chart = charts.bars({"prior kept": -0.25, "prior lost": 0.5}).chart
    assert chart.axes[0].get_xlim()[0] < -0.25 and [
        b.get_width() for b in chart.axes[0].patches
    ] == [-0.25, 0.5]


def test_grey_prints_of_two_lines_and_two_bars_still_differ():
    figure = charts.curves({"LoRA": ([0, 1], [1.0, 1.0]), "DreamBooth": ([0, 1], [2.0, 2.0])})
    grey = np.asarray(figure.image.convert("L"))
    ink = [(row < 200).sum() for row in grey]
    transform, height = figure.chart.axes[0].transData.transform, figure.image.height
    solid, dashed = (ink[round(height - transform((0, y))[1])] for y in (1.0, 2.0))
    assert solid > 1.1 * dashed > 0


def test_learning_rates_ring_the_chosen_and_say_them():
    figure = charts.learning_rate_curve(
        {
            "lora": [
                {"learning_rate": r, "dino": d} for r, d in ((1e-3, 0.5), (2e-3, 0.7), (4e-3, 0.6))
            ],
            "dreambooth": {1e-4: [0.2, 0.4], 2e-4: 0.25},
        },
        {"lora": 1e-3, "dreambooth": 1e-4, "full": 1.0},  # the gentlest of those not told apart
    )
    rings = [line for line in figure.chart.axes[0].lines if line.get_markersize() > 10]
    assert sorted((float(r.get_xdata()[0]), float(r.get_ydata()[0])) for r in rings) == [
        (1e-4, pytest.approx(0.3)),
        (1e-3, 0.5),
    ]
    assert "LoRA 0.001" in figure.caption and "DreamBooth 0.0001" in figure.caption
    assert figure.chart.axes[0].get_xscale() == "log"


def test_points_have_their_labels_and_intervals_and_differ_without_colour():
    lora = [("rank 1", 0.5, 0.25, (0.4, 0.6), (0.2, 0.3)), ("rank 4", 0.6, 0.5)]
    figure = charts.points(
        {"LoRA": lora, "full": [("", 0.7, 0.6)]}, "t", "d", mark={"LoRA": "rank 4"}
    )
    assert figure.table.rows == [
        ["LoRA, rank 1", 0.5, "0.4 to 0.6", 0.25, "0.2 to 0.3"],
        ["LoRA, rank 4", 0.6, None, 0.5, None],
        ["full", 0.7, None, 0.6, None],
    ]
    axes = figure.chart.axes[0]
    series = {line.get_label(): line for line in axes.lines if line.get_label() in ("LoRA", "full")}
    assert (
        list(series["LoRA"].get_xdata()) == [0.5, 0.6]
        and series["LoRA"].get_marker() != series["full"].get_marker()
    )
    (ring,) = (line for line in axes.lines if line.get_markersize() > 10)
    assert ring.get_xdata()[0] == 0.6 and {"rank 1", "rank 4"} <= {t.get_text() for t in axes.texts}
    assert "rank 4 at 0.6, 0.5" in figure.alt
    assert charts.points({"a": [("1", 1, 2.0)]}, charts.Axis("rank", log=True), "d").table.rows == [
        ["a", 1, 2.0]
    ], "a label that is x is said once"


def test_intervals_lie_where_they_are_beside_the_band_that_counts_as_none():
    figure = charts.intervals(
        {"DINO": (0.03, 0.01, 0.05), "PRES": (0.5, None, None)}, "cosine", around=0, margin=0.02
    )
    zero, drawn, *dots = figure.chart.axes[0].lines
    assert list(drawn.get_xdata()) == [0.01, 0.05] and [
        float(np.ravel(d.get_xdata())[0]) for d in dots
    ] == [0.03, 0.5]
    assert list(zero.get_xdata()) == [0, 0] and figure.chart.axes[0].patches[0].get_x() == -0.02
    assert (
        figure.table.rows == [["DINO", 0.03, "0.01 to 0.05"], ["PRES", 0.5, None]]
        and "PRES: 0.5 (no interval)" in figure.alt
    )
    ratio = charts.intervals(
        {"file": (9.0, 8.0, 10.0)}, "times", around=1, margin=0.05, log=True
    ).chart.axes[0]
    assert ratio.get_xscale() == "log" and ratio.patches[0].get_x() == pytest.approx(1 / 1.05)


def test_a_table_as_markdown_keeps_its_columns():
    lines = (
        as_table([["LoRA", 0.5, "a"], ["full", None, "b"]], ["", "DINO", "said"])
        .markdown()
        .splitlines()
    )
    assert lines == [
        "|  | DINO | said |",
        "| --- | ---: | --- |",
        "| LoRA | 0.5 | a |",
        "| full | - | b |",
    ]


def test_losses_are_read_from_run_folders(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps({"step": k, "loss": 1 / k, "prior_loss": 2.0}) + "\n" for k in (1, 2))
    )
    assert charts.losses({"LoRA": tmp_path}, smooth=1).table.rows == [[1, 1.0], [2, 0.5]]
    assert charts.losses({"LoRA": tmp_path}, part="prior_loss").table.rows[1][1] == 2.0
    with pytest.raises(BadInput, match="log.jsonl"):
        charts.losses({"LoRA": tmp_path / "nowhere"})


def test_a_grid_shows_each_picture_in_its_place():
    pictures = [[picture("red"), picture("lime")], [picture("blue"), None]]
    figure = grid(pictures, rows=["first", "second"], columns=["left", "right"], scale=2)
    image = figure.image
    spots = [
        image.getpixel((image.width - 70 - 134 * (1 - x), image.height - 70 - 134 * (1 - y)))
        for y in (0, 1)
        for x in (0, 1)
    ]
    assert spots == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    for word in ("first", "second", "left", "right", "3 pictures"):
        assert word in figure.alt


@pytest.mark.parametrize(
    ("given", "layout"),
    [
        ({"columns": 4}, (2, 4)),
        ({"columns": ["a", "b"]}, (4, 2)),
        ({"rows": ["a", "b"]}, (2, 4)),
        ({}, (1, 8)),
    ],
)
def test_a_flat_list_is_laid_out(given, layout):
    assert (
        "8 pictures in {} rows and {} columns".format(*layout)
        in grid([picture("red")] * 8, **given).alt
    )


def test_enlarged_pictures_are_smoothed():
    board = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8))
    assert len(np.unique(np.asarray(grid([board], scale=8).image))) > 2


def test_figures_stay_small_and_fit_a_page(noise):
    figure = grid([noise[:16], noise[16:]], scale=3)
    _, data = figure.encoded
    assert len(data) <= LARGEST and figure.image.width <= 1800
    Image.open(io.BytesIO(data)).load()
    data = base64.b64decode(seen(figure).img["src"].partition(";base64,")[2])
    assert len(data) <= LARGEST and Image.open(io.BytesIO(data)).size == (16 * 67, 2 * 67)


def test_a_page_shows_a_grids_labels_as_text_and_its_pictures_without_them():
    figure = grid(
        [[picture("red"), picture("lime")], [picture("blue"), None]],
        rows=["first <row>", "second"],
        columns=["left", "right"],
    )
    page = seen(figure)
    assert [span.text for span in page.find_all("span")] == [
        "",
        "left",
        "right",
        "first <row>",
        "second",
    ]
    data = base64.b64decode(page.img["src"].partition(";base64,")[2])
    sheet = Image.open(io.BytesIO(data)).convert("RGBA")
    spots = [sheet.getpixel((34 + 67 * x, 34 + 67 * y)) for y in (0, 1) for x in (0, 1)]
    for spot, color in zip(spots, ((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        assert all(abs(a - b) < 12 for a, b in zip(spot, (*color, 255)))
    assert spots[3][3] == 0, "nothing is drawn where there is no picture"


def test_only_charts_may_be_inverted_on_a_dark_page():
    assert seen(charts.bars({"LoRA": 1.0})).figure["class"] == ["chart"]
    assert not seen(grid([picture("red")])).figure.get("class")


def test_in_jupyterlabs_dark_theme_a_chart_is_turned_and_photos_are_not():
    turned = 'body[data-jp-theme-light="false"] .chart img'
    assert turned in charts.bars({"LoRA": 1.0}, unit="s")._repr_html_()
    assert turned not in grid([picture("red")])._repr_html_()


def test_sentences_are_paragraphs_and_markup_in_them_stays_words():
    text = Paragraphs("Take <b>LoRA</b>.", "It costs less.")
    assert repr(text) == "Take <b>LoRA</b>.\n\nIt costs less."
    found = BeautifulSoup(text._repr_html_(), "html.parser").find_all("p")
    assert [each.get_text() for each in found] == ["Take <b>LoRA</b>.", "It costs less."]
    assert not found[0].b


@pytest.mark.parametrize("make", [make for name, make in FIGURES.items() if name != "grid"])
def test_letters_of_a_chart_have_eleven_pixels_on_a_phone(make):
    """On a page of 390 pixels with 16 at each side."""
    figure = make()
    figure.chart.draw_without_rendering()
    texts = [t for t in figure.chart.findobj(Text) if t.get_text() and t.get_visible()]
    smallest = min(text.get_fontsize() for text in texts) * figure.chart.dpi / 72
    assert smallest * 358 / figure.image.width >= 11


def test_wrong_labels_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="1 row labels and 2 rows"):
        grid([[picture("red")], [picture("red")]], rows=["only one"])
    with pytest.raises(ValueError, match="at least one"):
        grid([])
    with pytest.raises(ValueError, match="3 columns"):
        as_table([[1, 2]], ["a", "b", "c"])
    with pytest.raises(ValueError, match="'LoRA' has 2 x and 1 y"):
        charts.curves({"LoRA": ([1, 2], [1.0])})


def test_progress_reads_the_samples_of_a_run_in_the_order_of_their_steps(tmp_path):
    (tmp_path / "samples").mkdir()
    for step in (50, 100, 1000, 10000):
        for k in (0, 1):
            picture("red").save(tmp_path / "samples" / f"step_{step:04d}_{k}.png")
    figure = sample_progress(tmp_path, ["a robot", "in space"], most=3)
    assert "step 50, step 1000, step 10000" in figure.alt and "a robot, in space" in figure.alt
    with pytest.raises(ValueError, match="sample_every"):
        sample_progress([])


def test_tables_align_and_name_what_is_missing():
    text = as_table(
        [
            {"what": "LoRA", "s": 0.12345, "bytes": 3_400_000},
            {"what": "base", "s": None, "bytes": 5},
        ]
    ).text()
    assert text.splitlines() == [
        "what       s      bytes",
        "LoRA  0.1235  3,400,000",
        "base       -          5",
    ]


def test_the_sheet_of_photos_tells_uses_apart_and_survives_a_broken_one(tmp_path):
    picture("gray", (300, 200)).save(tmp_path / "a.png")
    entry = {
        "file": "a.png",
        "use": "train",
        "crop": [50, 0, 250, 200],
        "width": 300,
        "height": 200,
        "caption": "a toy",
    }
    entry["findings"] = ["is soft"]
    broken = entry | {
        "file": "b.png",
        "use": "out",
        "crop": [0, 0, 0, 0],
        "width": 0,
        "height": 0,
        "findings": ["is empty"],
    }
    figure = contact_sheet(
        [entry, entry | {"use": "test"}, entry | {"use": "out"}, broken], tmp_path
    )
    assert [row[2] for row in figure.table.rows] == ["train", "held out", "left out", "left out"]
    assert figure.table.rows[0][4] == "is soft" and figure.table.rows[3][4] == "is empty"
    photo = picture("gray", (300, 200))
    train, test, out = (
        np.asarray(framed(photo, entry | {"use": use}, 150).convert("L")) == 0
        for use in ("train", "test", "out")
    )
    assert train.sum() > test.sum() > 0 and out[75].any() and not train[75, 60:90].any()


def test_labels_of_points_do_not_hide_each_other_and_far_points_stand_in_the_numbers_alone():
    near = [(f"{k}/4", 0.525 + 0.0004 * k, 0.86 + 0.012 * k) for k in range(1, 5)]
    figure = charts.points(
        {"LoRA": [("0/4", 0.54, 0.2), *near], "far": [("", 9.0, 9.0)]},
        "t",
        "d",
        aside=("0/4", "far"),
    )
    axes = figure.chart.axes[0]
    assert (
        axes.get_xlim()[1] < 0.53
        and ["LoRA, 0/4", 0.54, 0.2] in figure.table.rows
        and ["far", 9.0, 9.0] in figure.table.rows
    )
    assert "0/4 at 0.54, 0.2" in figure.alt
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert sorted(boxes) == ["1/4", "2/4", "3/4", "4/4"]
    for name, box in boxes.items():
        assert not any(box.overlaps(other) for key, other in boxes.items() if key != name), (
            "labels lie on each other"
        )
        middle, dots = (
            (box.p0 + box.p1) / 2,
            {label: axes.transData.transform((x, y)) for label, x, y in near},
        )
        assert min(dots, key=lambda label: math.dist(middle, dots[label])) == name, (
            "a label stands nearer to another point than to its own"
        )


def test_a_contestant_looks_the_same_in_every_chart():
    alone, together = looks(["DreamBooth"]), looks(["half", "LoRA", "DreamBooth", "quarter"])
    assert alone["DreamBooth"] == together["DreamBooth"] == own_look("DreamBooth")
    assert own_look("base") == own_look("base model (floor)") != own_look("half") == PLAIN
    for k in range(4):  # colour, line, marker and hatch: by any of them four series are told apart
        assert len({look[k] for look in together.values()}) == 4
        assert len({look[k] for look in (*LOOKS, *OTHER_LOOKS)}) == len(LOOKS) + len(OTHER_LOOKS)
    cut = "DreamBooth cut to a LoRA"
    drawn = charts.bars({"LoRA": 1, cut: 2, "weights": 3}).chart.axes[0].patches
    assert [bar.get_hatch() or "" for bar in drawn] == [
        own_look("LoRA").hatch,
        own_look(cut).hatch,
        PLAIN.hatch,
    ]


def test_the_best_step_is_ringed_on_the_measure_that_it_is_best_by():
    points = [{"step": k, "dino": 0.1 * k, "drift": 0.2 * k} for k in range(3)]
    track = {"LoRA": {"points": points, "best_step": 2}}
    dino, drift = (charts.along(track, measure) for measure in ("dino", "drift"))
    assert [len(figure.chart.axes[0].lines) - 1 for figure in (dino, drift)] == [1, 0]
    assert dino.caption == "DINO along the training, the best step ringed"
    assert drift.caption == "Drift of the class along the training"
    assert charts.along(track, "obedience") is None


def test_a_share_is_drawn_from_0_to_1():
    points = [{"step": k, "obedience": 1 - k / 9} for k in range(2)]
    chart = charts.along({"LoRA": {"points": points, "best_step": 0}}, "obedience").chart
    assert chart.axes[0].get_ylim() == (0, 1.05)


def test_what_is_counted_in_whole_numbers_has_no_tick_between_them():
    chart = charts.curves({"LoRA": [4.0, 3.0, 2.0, 1.0]}, "quarter of the schedule").chart
    assert all(float(tick).is_integer() for tick in chart.axes[0].get_xticks())
    halves = charts.curves({"LoRA": ([0.5, 1.0, 1.5], [1, 2, 3])}).chart.axes[0].get_xticks()
    assert not all(float(tick).is_integer() for tick in halves)


def test_a_long_name_in_a_table_may_be_broken_and_a_number_is_not():
    rows = [["up_blocks.0.attentions.1.proj", "data/a.png", "1.5 and 2.x", "e.g. this. That"]]
    shown = as_table(rows, ["a", "b", "c", "d"])._repr_html_()
    assert "up_blocks.0.<wbr>attentions.1.<wbr>proj" in shown and "data/<wbr>a.<wbr>png" in shown
    assert "1.5 and" in shown and "this. That" in shown
