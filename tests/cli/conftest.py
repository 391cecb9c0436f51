"""The command line, and small stores made by it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from vision_sae.cli.app import app

Fine = Callable[..., Result]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def _fine(*arguments: object) -> Result:
    result = _run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def _refused(*arguments: object) -> str:
    result = _run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr and result.stdout == ""
    return last.removeprefix("error: ")


@pytest.fixture(scope="session")
def fine() -> Fine:
    """A command that must succeed."""
    return _fine


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """The one line that a command's error must be, without its `error: `."""
    return _refused


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, and stores of some sites and of other images; tests must not write into them."""
    folder = tmp_path_factory.mktemp("toy")
    for name, images in (("images", 16), ("others", 12)):
        for i in range(images):
            path = folder / name / f"{i:02}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), (15 * i, 255 - 15 * i, 40 * (i % 4))).save(path)
    for out, site, images, tokens in (
        ("acts", "blocks.0", "images", "patches"),
        ("later", "blocks.1", "images", "patches"),
        ("held_out", "blocks.0", "others", "patches"),
        ("cls", "blocks.0", "images", "cls"),
        ("other_site", "blocks.1", "others", "patches"),
    ):
        where = ["--site", site, "--data", folder / images, "--tokens", tokens]
        _fine("extract", "--model", "toy", *where, "--out", folder / out)
    return folder
