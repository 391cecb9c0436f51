"""The report: a folder that opens from disk and shows what the facts say."""

import base64
import json
import math
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_sae.errors import DataError
from vision_sae.naming import UNNAMED, Name
from vision_sae.report import payload, summaries
from vision_sae.report.facts import Detection, ImageFacts, LatentFacts, Picture, ReportFacts
from vision_sae.report.files import to_json
from vision_sae.report.page import show, write_page
from vision_sae.report.sprites import Sprites, write_sprites

COLOURS = [(230, 40, 40), (40, 200, 60), (50, 60, 220), (240, 220, 30), (10, 10, 10)]
HOSTILE = """</script><img src=x onerror="alert('&')">"""


def latent(number: int, **other: Any) -> LatentFacts:
    facts = LatentFacts(
        id=number,
        name=Name(number, f"name {number}", 0.31, "second", 0.1, f"name {number}"),
        frequency=0.01,
        image_share=0.2,
        mean=1.0,
        maximum=2.0,
        histogram=[5, 2, 1],
        top=[Picture(number % 5, 2.0, [[0.0, 1.0], [2.0, 0.5]])],
        quantiles={"50 to 75%": [Picture(1, 1.0)]},
        neighbours=[(0, 0.5)],
        detection=Detection(number, "style", "flat", 0.5, 0.9, 0.8, 0.85, 0.95),
        xy=(0.25, 0.75),
    )
    return replace(facts, **other)


def report(latents: list[LatentFacts], **other: Any) -> ReportFacts:
    facts = ReportFacts(
        title="A dictionary",
        provenance={"model": "toy"},
        numbers={"fvu": 0.12, "l0": 32.0},
        frequencies=[0.01, 0.0, 0.1],
        image_fvu=[0.1, 0.2, 0.3],
        training=[{"step": 1, "loss": 2.0, "l0": 30.0}, {"step": 2, "loss": 1.0}],
        latents=latents,
        images=[
            ImageFacts(f"k{i}", f"caption {i}", solid(colour)) for i, colour in enumerate(COLOURS)
        ],
    )
    return replace(facts, **other)


def solid(colour: tuple[int, int, int], side: int = 64) -> Any:
    return Image.new("RGB", (side, side), colour)


def read(out: Path, name: str) -> Any:
    """The value that data/<name>.js assigns; anything that is not JSON fails, NaN too."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (out / "data" / f"{name}.js").read_text()
    start = f'vsae["{name}"] = '
    assert text.startswith(start) and text.endswith(";\n")
    return json.loads(text[len(start) : -2], parse_constant=refuse)


def test_every_latent_is_reachable_from_the_list(tmp_path: Path) -> None:
    numbers = list(range(7, 3 * payload.CHUNK, 2))
    write_page(report([latent(n, mean=float(n)) for n in numbers]), tmp_path)
    overview = read(tmp_path, "overview")
    assert [row["id"] for row in overview["latents"]] == numbers
    for place, number in enumerate(numbers):  # as latent.js finds its chunk
        if place % 50 == 0 or place == len(numbers) - 1:
            chunk = read(tmp_path, f"latents-{place // overview['chunk']}")
            assert chunk[place % overview["chunk"]]["mean"] == number


def test_returns_the_index_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    index = write_page(report([latent(0)]), tmp_path / "deep" / "out")
    assert index == tmp_path / "deep" / "out" / "index.html" and index.exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_smaller_report_leaves_nothing_of_a_larger_one(tmp_path: Path) -> None:
    write_page(report([latent(n) for n in range(payload.CHUNK + 1)]), tmp_path)
    (tmp_path / "data" / "mine.txt").write_text("kept")
    write_page(report([], images=[]), tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"index.html", "data/images.js", "data/overview.js", "data/mine.txt"}


def test_user_text_stays_text(tmp_path: Path) -> None:
    found = Detection(0, HOSTILE, HOSTILE, 0.5, 1, 1, 1, 1)
    name = Name(0, HOSTILE, 0.3, HOSTILE, 0.1, HOSTILE, untested=HOSTILE)
    hostile = latent(0, name=name, detection=found)
    images = [ImageFacts(HOSTILE, HOSTILE, solid(COLOURS[0]))] * 2
    facts = report([hostile], title=HOSTILE, images=images)
    write_page(replace(facts, provenance={HOSTILE: HOSTILE}, numbers={HOSTILE: 1.0}), tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in {".html", ".js"}:
            assert "<img" not in path.read_text(), path
    html = (tmp_path / "index.html").read_text()
    assert html.count("</script>") == html.count("<script")
    assert html.count(escape(HOSTILE, quote=False).split("onerror")[0]) == 6
    assert read(tmp_path, "overview")["latents"][0]["name"] == HOSTILE
    assert read(tmp_path, "images")[0] == [HOSTILE, HOSTILE]


def test_scripts_never_parse_text_as_html(tmp_path: Path) -> None:
    html = write_page(report([]), tmp_path).read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in html


def test_nothing_is_loaded_from_the_network(tmp_path: Path) -> None:
    write_page(report([latent(0)]), tmp_path)
    for path in tmp_path.rglob("*"):
        if path.suffix in {".html", ".js"}:
            text = path.read_text().replace('"http://www.w3.org/2000/svg"', "")
            assert not re.search(r"https?://|\bimport\b|fetch\(|url\(\s*[\"']?//", text), path


@pytest.mark.parametrize("count", [1, 5, 30])
def test_a_thumbnail_is_found_where_its_index_says(tmp_path: Path, count: int) -> None:
    write_page(
        report([], images=report([]).images * (count // 5) or report([]).images[:1]), tmp_path
    )
    sprites = Sprites(**read(tmp_path, "overview")["sprites"])
    for index in range(count):
        name, left, top = sprites.place(index)
        sheet = Image.open(tmp_path / "sprites" / name).convert("RGB")
        reach = sprites.size + sprites.gutter  # the gutter repeats the border
        cell = np.asarray(sheet.crop((left - 1, top - 1, left + reach - 1, top + reach - 1)))
        assert np.abs(cell.astype(int) - COLOURS[index % 5]).max() < 40, index  # lossy at edges
        assert np.abs(cell.reshape(-1, 3).mean(0) - COLOURS[index % 5]).max() < 6, index


def test_sheets_hold_a_bounded_number_of_cells(tmp_path: Path) -> None:
    sprites = write_sprites([solid((i % 256, 0, 0), side=4) for i in range(600)], tmp_path)
    assert sprites.files == ["sheet-000.webp", "sheet-001.webp"]
    assert sprites.place(575)[0] == "sheet-000.webp" and sprites.place(576)[1:] == (2, 2)


def test_thumbnails_of_several_sizes_and_modes_share_a_sheet(tmp_path: Path) -> None:
    sprites = write_sprites([Image.new("L", (20, 20), 90), solid(COLOURS[2], 32)], tmp_path)
    assert sprites.size == 32
    sheet = Image.open(tmp_path / sprites.files[0]).convert("RGB")
    assert abs(sheet.getpixel((sprites.place(0)[1] + 16, 16))[0] - 90) < 8


def test_heat_survives_as_bytes_relative_to_the_maximum() -> None:
    heat = np.random.default_rng(0).uniform(0, 3, (7, 5))
    rows, columns, text = payload.quantise(heat.tolist(), 3.0) or []
    levels = np.frombuffer(base64.b64decode(text), np.uint8).reshape(rows, columns)
    assert np.abs(levels / 255 * 3.0 - heat).max() <= 3.0 / 255 / 2 + 1e-9


@pytest.mark.parametrize("maximum", [0.0, -1.0, math.nan, math.inf, 2.0])
def test_odd_heat_is_drawn_as_nothing(maximum: float) -> None:
    assert payload.quantise([[math.nan, -3.0]], maximum) == [1, 2, "AAA="]
    assert payload.quantise([], maximum) is None
    assert payload.quantise([[]], maximum) is None


def test_missing_parts_and_odd_numbers_are_valid_data(tmp_path: Path) -> None:
    bare = latent(
        3, name=None, top=[], quantiles={}, detection=None,
        neighbours=[], histogram=[], mean=math.nan, maximum=math.inf, xy=(math.nan, 0.0),
    )  # fmt: skip
    facts = report([bare], frequencies=[math.nan, 0.5], image_fvu=[math.nan])
    facts = replace(facts, numbers={"bad": math.nan}, training=[{"step": 1, "loss": math.inf}])
    assert "–" in write_page(facts, tmp_path).read_text()
    row = read(tmp_path, "overview")["latents"][0]
    assert (row["name"], row["maximum"], row["xy"], row["strip"]) == (None, None, [None, 0.0], [])
    assert read(tmp_path, "latents-0")[0]["mean"] is None
    assert read(tmp_path, "overview")["training"]["loss"] == [None]
    assert read(tmp_path, "overview")["imageErrors"]["counts"] == []


def test_names_come_with_their_tests_and_the_unnamed_without_a_name(tmp_path: Path) -> None:
    tested = Name(0, "dog", 0.4, "wolf", 0.1, "dog", 0.93, 12, 731, "", 0.75, 0.5, "right")
    unnamed = Name(1, UNNAMED, 0.1, "wolf", 0.0, "dog", untested="it fires on 2 of 731")
    write_page(report([latent(0, name=tested), latent(1, name=unnamed)]), tmp_path)
    rows = read(tmp_path, "overview")["latents"]
    assert [(row["name"], row["auroc"]) for row in rows] == [("dog", 0.93), (None, None)]
    first, second = (row["named"] for row in read(tmp_path, "latents-0"))
    assert (first["positives"], first["images"], first["verdict"]) == (12, 731, "right")
    assert (second["word"], second["untested"]) == ("dog", "it fires on 2 of 731")


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    facts = ReportFacts("Empty", {}, {}, [], [], [], [])
    assert "<h1>Empty</h1>" in write_page(facts, tmp_path).read_text()
    assert read(tmp_path, "overview")["latents"] == []
    assert read(tmp_path, "overview")["training"] == {"step": []}


def test_a_picture_without_an_image_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="latent 4 shows image 9, but the report has 5 images"):
        write_page(report([latent(4, quantiles={"low": [Picture(9, 1.0)]})]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_numpy_numbers_are_written_as_numbers() -> None:
    odd = [np.float32(0.25), np.float64("nan"), np.int64(4), True, "<b>"]
    assert to_json(odd) == '[0.25,null,4,true,"\\u003cb>"]'


def test_firing_histogram_counts_every_live_latent_once() -> None:
    frequencies = [*np.logspace(-5, 0, 97), 0.0, 0.0]
    binned = summaries.firing([float(f) for f in frequencies])
    assert sum(binned["counts"]) == 97 and binned["dead"] == 2 and binned["total"] == 99
    assert len(binned["edges"]) == len(binned["counts"]) + 1
    assert summaries.firing([0.0, 0.0])["counts"] == []
    assert sum(summaries.firing([0.1, 0.1])["counts"]) == 2


def test_image_errors_name_what_lies_beyond() -> None:
    binned = summaries.image_errors([0.1] * 999 + [50.0])
    assert sum(binned["counts"]) == 999 and binned["beyond"] == 1
    assert sum(summaries.image_errors([0.0, 0.0])["counts"]) == 2
    assert sum(summaries.image_errors([0.1, 0.3])["counts"]) == 2


def test_curves_are_thinned_and_keep_both_ends() -> None:
    rows = [{"step": float(i), "loss": 1.0, "lr": 0.1} for i in range(5000)]
    table = summaries.curves(rows)
    assert set(table) == {"step", "loss"} and len(table["step"]) == 400
    assert table["step"][0] == 0 and table["step"][-1] == 4999
    assert summaries.curves([{"loss": 1.0}, {"fvu": 2.0}]) == {
        "step": [0, 1],
        "loss": [1.0, None],
        "fvu": [None, 2.0],
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (32.0, "32"), (1234567.8, "1,234,568"), (math.nan, "–"), (0, "0")],
)
def test_numbers_are_shown_shortly(value: float, text: str) -> None:
    assert show(value) == text
