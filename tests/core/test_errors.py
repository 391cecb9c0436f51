"""Messages that say what to do next, and output folders that are never taken by mistake."""

import sys
from pathlib import Path

import pytest

from vision_sae.errors import (
    ConfigError,
    MissingExtra,
    OutputExists,
    UnknownName,
    VisionSAEError,
    claim_folder,
    require,
)


@pytest.mark.parametrize(
    ("name", "allowed", "message"),
    [
        ("blocks.O", ["head", "blocks.0", "blocks.1"], "did you mean blocks.1 or blocks.0?"),
        ("zzz", ["b", "a"], "there are: a, b"),
        ("zzz", [], "there are: none"),
        ("zzz", [f"n{i:02}" for i in range(14)], "n10, n11 and 2 more"),
    ],
)
def test_an_unknown_name_lists_near_ones_or_all(
    name: str, allowed: list[str], message: str
) -> None:
    error = UnknownName("site", name, allowed)
    assert str(error).startswith(f"no site {name!r}; ") and str(error).endswith(message)
    assert isinstance(error, LookupError) and isinstance(error, VisionSAEError)


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"needs timm, .* pip install 'vision-sae\[timm\]'"):
        require("timm", "timm")


def test_a_library_that_misses_another_names_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outer_library.py").write_text("import inner_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match="needs inner_library_that_is_not_there"):
        require("outer_library", "clip")


@pytest.mark.parametrize("held", [[], ["index.json"], ["index.json", "x"], ["index.json.partial"]])
def test_a_folder_of_our_own_kind_is_accepted(tmp_path: Path, held: list[str]) -> None:
    for name in held:
        (tmp_path / name).touch()
    assert claim_folder(tmp_path, "index.json") == tmp_path
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(held)


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    assert claim_folder(tmp_path / "a" / "b", "index.json").is_dir()


def test_a_folder_with_something_else_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExists, match="thesis.tex.*another folder or pass --overwrite"):
        claim_folder(tmp_path, "index.json")
    assert claim_folder(tmp_path, "index.json", overwrite=True) == tmp_path
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputExists, match="is a file"):
        claim_folder(tmp_path / "file", "index.json", overwrite=True)
    with pytest.raises(ConfigError, match="cannot be made"):
        claim_folder(tmp_path / "file" / "below", "index.json")
