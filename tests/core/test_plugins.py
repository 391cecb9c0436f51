"""Plugins come by name from whatever is installed, and only when asked for."""

import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from vision_sae import plugins
from vision_sae.errors import UnknownName, VisionSAEError

FAKES = [
    EntryPoint("mine", "json:loads", plugins.ADAPTERS),
    EntryPoint("both", "json:loads", plugins.ADAPTERS),
    EntryPoint("both", "json:dumps", plugins.ADAPTERS),
    EntryPoint("twin", "json:dumps", plugins.ADAPTERS),
    EntryPoint("twin", "json:dumps", plugins.ADAPTERS),
    EntryPoint("late", "a_module_that_is_not_there:x", plugins.ADAPTERS),
]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(group: str) -> list[Any]:
        return [point for point in FAKES if point.group == group]

    monkeypatch.setattr(plugins, "entry_points", found)


def test_ours_are_installed() -> None:
    assert {"emoji-clip", "open_clip", "timm", "toy"} <= set(plugins.names(plugins.ADAPTERS))
    assert "emoji-canvas" in plugins.names(plugins.DATA)


@pytest.mark.usefixtures("fakes")
def test_listing_imports_nothing() -> None:
    assert plugins.names(plugins.ADAPTERS) == ["both", "late", "mine", "twin"]
    assert "a_module_that_is_not_there" not in sys.modules


@pytest.mark.usefixtures("fakes")
def test_a_plugin_is_what_its_entry_point_names() -> None:
    assert plugins.load(plugins.ADAPTERS, "mine")("[1]") == [1]
    assert plugins.load(plugins.ADAPTERS, "twin")([1]) == "[1]"  # found twice, but one and the same


@pytest.mark.usefixtures("fakes")
def test_a_name_that_two_packages_claim_is_refused() -> None:
    with pytest.raises(
        VisionSAEError, match="'both' is claimed by several.*json:dumps, json:loads"
    ):
        plugins.load(plugins.ADAPTERS, "both")


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("group", "message"),
    [
        (plugins.ADAPTERS, "no adapter 'nobody'; there are: both, late, mine, twin"),
        (plugins.RECIPES, "no recipe 'nobody'; there are: none"),
    ],
)
def test_an_unknown_plugin_lists_what_there_is(group: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        plugins.load(group, "nobody")
