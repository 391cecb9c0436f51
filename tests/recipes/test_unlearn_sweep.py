"""A sweep over sites and windows: every cell once, in order, and a page that tells the numbers."""

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.errors import ConfigError, UnknownName
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit
from vision_sae.recipes.unlearn.sweep import (
    Table,
    Window,
    heatmap,
    in_window,
    where_removable,
    windows,
)

SITES, WINDOWS = ["mid", "up.0"], [(0, 999), (500, 999), (0, 499)]


def plan_of(site: str, window: Window) -> Plan:
    table = torch.zeros(1, 1)
    edit = SiteEdit(
        site, "sae", torch.tensor([3]), torch.tensor([500]), table, table, table, table, table,
        torch.zeros(1), window=window,
    )  # fmt: skip
    return Plan("object:cat", (edit,), "tiny", torch.zeros(1), {})


def measure(plan: Plan) -> dict[str, float]:
    low, high = plan.edits[0].window
    return {"UA": (high - low) / 999, "IRA": 1.0 if plan.sites[0] == "mid" else 0.5}


def swept(**other: Any) -> Table:
    return where_removable(plan_of, measure, SITES, WINDOWS, **other)


def test_every_cell_is_measured_once_in_order() -> None:
    told: list[tuple[str, Window]] = []
    table = swept(tell=lambda site, window, found: told.append((site, window)))
    assert told == [(s, w) for s in SITES for w in WINDOWS] == list(table.cells)
    assert table.grid("UA") == [[1.0, 499 / 999, 499 / 999]] * 2
    assert table.measures == ("UA", "IRA") and len(table.rows()) == 6
    assert table.rows()[4] == {"site": "up.0", "from": 500, "to": 999, "UA": 499 / 999, "IRA": 0.5}


def test_the_best_place_is_the_first_of_the_greatest() -> None:
    assert swept().best("UA") == ("mid", (0, 999))
    assert swept().best("IRA", least=True) == ("up.0", (0, 999))
    cells = {("a", (0, 1)): {"UA": math.nan}, ("a", (1, 2)): {"UA": 0.1}}
    assert Table(("a",), ((0, 1), (1, 2)), cells).best("UA") == ("a", (1, 2))


def test_the_page_and_its_numbers(tmp_path: Path) -> None:
    page = swept().write(tmp_path / "new" / "where.html", title="<b>cat</b>")
    html = page.read_text()
    assert html.count("<svg") == 2 and "<b>" not in html
    assert not re.search(r"https?://|<script", html)
    assert len(json.loads(page.with_suffix(".json").read_text())) == 6
    assert swept().write(tmp_path / "folder").name == "index.html"


def test_the_heatmap_is_whole_and_its_colours_run_from_least_to_greatest() -> None:
    root = ElementTree.fromstring(heatmap(swept(), "UA"))
    fills = [rect.get("fill") for rect in root.iter("rect")]
    assert len(fills) == 6 and fills[0] == "rgb(23, 78, 166)" and fills[1] == "rgb(236, 240, 247)"
    assert "0.499" in "".join(root.itertext())


def test_odd_values_and_names_are_drawn(tmp_path: Path) -> None:
    cells = {('<"&', (0, 1)): {"<UA>": math.nan}}
    table = Table(('<"&',), ((0, 1),), cells)
    root = ElementTree.fromstring(heatmap(table, "<UA>"))
    assert "–" in "".join(root.itertext())
    page = table.write(tmp_path / "a.html")
    assert json.loads(page.with_suffix(".json").read_text())[0]["<UA>"] is None
    with pytest.raises(ConfigError, match="NaN everywhere"):
        table.best("<UA>")


def test_markdown() -> None:
    first = swept().markdown("UA").splitlines()
    assert first[0] == "| site | 0–999 | 500–999 | 0–499 |" and first[2].startswith("| mid | 1 |")


@given(st.integers(1, 40), st.integers(39, 1200))
def test_windows_share_out_all_timesteps(count: int, last: int) -> None:
    parts = windows(count, last, whole=False)
    assert sorted(t for low, high in parts for t in range(low, high + 1)) == list(range(last + 1))
    assert parts == sorted(parts, reverse=True)


def test_windows_begin_with_the_whole() -> None:
    assert windows(2) == [(0, 999), (500, 999), (0, 499)]
    assert windows(1) == [(0, 999)]
    with pytest.raises(ConfigError, match="count must be 1 to 1000, .*; got 0"):
        windows(0)


def test_a_plan_in_a_window_acts_there_only() -> None:
    plan = in_window(plan_of("mid", (0, 999)), (100, 200))
    assert plan.edits[0].window == (100, 200) and plan.concept == "object:cat"


@pytest.mark.parametrize(
    ("sites", "some", "words"),
    [
        ([], WINDOWS, "one or more sites, each once; got none"),
        (["mid", "mid"], WINDOWS, "one or more sites, each once; got mid, mid"),
        (SITES, [], "one or more windows, each once; got none"),
        (SITES, [(9, 3)], r"from <= to; got \(9, 3\)"),
    ],
)
def test_bad_places_are_named(sites: list[str], some: list[Window], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        where_removable(plan_of, measure, sites, some)


def test_measures_must_be_the_same_everywhere() -> None:
    def odd(plan: Plan) -> dict[str, float]:
        return {"UA": 1.0} if plan.sites[0] == "mid" else {"RA": 1.0}

    with pytest.raises(ConfigError, match=r"gave RA at up.0 in 0–999; .*same names .*\(UA\)"):
        where_removable(plan_of, odd, SITES, WINDOWS)
    with pytest.raises(ConfigError, match="gave nothing at mid"):
        where_removable(plan_of, lambda plan: {}, SITES, WINDOWS)
    with pytest.raises(UnknownName, match="no measure 'CRA'"):
        swept().grid("CRA")
