"""The README is true: its Python runs, and its commands exist with their options."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

from vision_sae.cli.app import app

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
PYTHON = README.split("```python\n")[1].split("```")[0]


def commands() -> list[list[str]]:
    lines = README.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("vision-sae ")]


def test_the_commands_and_their_options_exist() -> None:
    known: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {words[1] for words in commands()} == {
        "extract", "train", "eval", "name", "report", "sweep", "suite", "convert", "unlearn",
        "bottleneck", "matryoshka", "search", "compare", "factors", "bias",
    }  # fmt: skip
    for words in commands():
        command = known[words[1]]
        if hasattr(command, "commands"):  # a group may have a command of its own for the rest
            own = {"matryoshka": "train", "bias": "run"}.get(words[1], "")
            command = command.commands[words[2] if words[2] in command.commands else own]
        options = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_the_python_is_ten_lines_at_most() -> None:
    assert len([line for line in PYTHON.splitlines() if line.strip()]) <= 10


@pytest.mark.slow
def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, on the toy model and a few coloured pictures in folders named after them."""
    for colour in ("red", "green", "blue"):
        (tmp_path / "images" / colour).mkdir(parents=True)
        for i in range(4):
            picture = Image.new("RGB", (16 + i, 16), colour)
            picture.save(tmp_path / "images" / colour / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    code = PYTHON.replace("emoji-clip", "toy").replace("emoji-canvas", "images")
    exec(re.sub(r"visual\.transformer\.resblocks\.\d", "blocks.1", code), {})
    assert (tmp_path / "report/index.html").exists()
    assert (tmp_path / "sae/names.json").exists()
