"""The command line as people use it: the whole job, its errors in one line, and interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vision_sae import checkpoint
from vision_sae.adapters import toy
from vision_sae.cli.app import app
from vision_sae.store import Store
from vision_sae.store.index import checksum

COMMANDS = ["extract", "sites", "train", "sweep", "suite", "families", "convert"]
COMMANDS += ["eval", "name", "report", "demo"]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
SITE = "blocks.1"
Fine = Callable[..., Result]
Refused = Callable[..., str]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def paint(folder: Path, images: int = 24) -> Path:
    """Pictures of one colour each, a little different in brightness."""
    for i in range(images):
        name, colour = list(COLOURS.items())[i % 4]
        path = folder / name / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), tuple(c * (60 - i) // 60 for c in colour)).save(path)
    return folder


def extract(
    data: Path, out: Path, *more: object, model: str = "toy", site: str = SITE
) -> list[Any]:
    return ["extract", "--model", model, "--site", site, "--data", data, "--out", out, *more]


def train(acts: Path, out: Path, *more: object) -> list[Any]:
    sizes = ["--steps", 30, "--batch-size", 64, "--expansion", 2, "--k", 4]
    return ["train", "--acts", acts, "--out", out, *sizes, *more]


@pytest.fixture(scope="module")
def made(fine: Fine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, acts/, sae/ and words.txt, made by the commands; tests must not write into them."""
    folder = tmp_path_factory.mktemp("made")
    fine(*extract(paint(folder / "images"), folder / "acts", "--tokens", "patches"))
    fine(*train(folder / "acts", folder / "sae"))
    (folder / "words.txt").write_text("\n".join([*COLOURS, "grey"]))
    return folder


# ---- the job, command by command


def test_extract_says_what_it_wrote(fine: Fine, tmp_path: Path) -> None:
    result = fine(*extract(paint(tmp_path / "images", 4), tmp_path / "acts"))
    assert f"6.53 kB to write to {tmp_path / 'acts'}, " in result.stderr
    assert f"68 vectors of 24 from 4 images (6.53 kB) in {tmp_path / 'acts'}" in result.stderr
    assert result.stdout == ""


def test_extract_names_skipped_images(fine: Fine, tmp_path: Path) -> None:
    images = paint(tmp_path / "images", 8)
    (images / "red" / "00.png").write_text("not a picture [/red]")
    result = fine(*extract(images, tmp_path / "acts"))
    assert "warning: 1 unreadable images were skipped" in result.stderr
    assert "red/00: " in result.stderr and "from 7 images" in result.stderr


def test_sites_lists_what_can_be_read(fine: Fine, made: Path) -> None:
    about = ("sites", "--model", "toy", "--data", made / "images")
    tree = fine(*about).stdout
    assert re.search(r"── blocks\n│   ├── 0  tokens 17 x 24, 1 class token, 4 x 4 patches\n", tree)
    assert "└── head  vector 1 x 12" in tree
    found = json.loads(fine(*about, "--json").stdout)
    assert found["blocks.1"]["width"] == 24 and found["blocks.1"]["grid"] == [4, 4]


def test_several_sites_in_one_pass(fine: Fine, refused: Refused, tmp_path: Path) -> None:
    arguments = extract(paint(tmp_path / "images", 4), tmp_path / "acts")
    fine(*arguments, "--site", "blocks.0:update")
    folders = json.loads((tmp_path / "acts" / "sites.json").read_text())["sites"]
    assert list(folders) == [SITE, "blocks.0:update"]
    for site, folder in folders.items():
        assert Store(tmp_path / "acts" / folder).index.provenance.site == site
    message = refused(*train(tmp_path / "acts", tmp_path / "sae"))
    assert "holds the stores of several sites; choose one of" in message
    assert f"each once; got {SITE}, {SITE}" in refused(*arguments, "--site", SITE)


def test_training_on_a_model_that_runs(fine: Fine, refused: Refused, tmp_path: Path) -> None:
    images = paint(tmp_path / "images", 8)
    live = ["--model", "toy", "--site", "blocks.0", "--data", images]
    more = ["--out", tmp_path / "sae", "--steps", 4, "--batch-size", 16, "--k", 2]
    fine("train", *live, *more)
    record = checkpoint.read_config(tmp_path / "sae").training
    assert record["stream"].startswith("stream of toy:0 at blocks.0 (all) on ")
    assert "does not say which acts" in refused("eval", tmp_path / "sae")
    assert "got --model, --site" in refused("train", *live[:4], *more)
    assert "got none of them" in refused("train", *more)
    both = refused("train", "--acts", tmp_path, *live, *more)
    assert "got --acts, --model, --site, --data" in both


def test_train_says_how_many_latents(fine: Fine, made: Path, tmp_path: Path) -> None:
    result = fine(*train(made / "acts", tmp_path / "sae", "--family", "batchtopk"))
    assert f"48 latents in {tmp_path / 'sae'}" in result.stderr
    sae = checkpoint.load(tmp_path / "sae")
    assert sae.config.sparsity.kind == "batchtopk" and sae.config.sparsity.k == 4
    assert not list((tmp_path / "sae").glob("training.*"))


def test_eval_as_a_table(fine: Fine, made: Path) -> None:
    result = fine("eval", made / "sae")
    for name in ("fvu", "cosine", "l0", "dead", "never"):
        assert re.search(rf"\b{name}\b", result.stdout, re.IGNORECASE), name


def test_eval_as_json(fine: Fine, made: Path) -> None:
    arguments = ["--model", "toy", "--label", "label", "--json"]
    numbers = json.loads(fine("eval", made / "sae", *arguments).stdout, parse_constant=no_constant)
    assert len(numbers.pop("frequencies")) == 48
    assert 0 <= numbers["zero-shot accuracy"] <= 1 and "recovered" in numbers
    assert all(value is None or isinstance(value, float | int) for value in numbers.values())


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_name_as_json_and_for_the_report(fine: Fine, made: Path, tmp_path: Path) -> None:
    folder = copy_of(made / "sae", tmp_path / "sae")
    words = ["--vocabulary", made / "words.txt"]
    found = json.loads(fine("name", folder, *words, "--json").stdout, parse_constant=no_constant)
    assert found["summary"]["live latents"] == len(found["names"]) > 0
    assert {row["name"] for row in found["names"]} <= {*COLOURS, "grey", "unnamed"}
    assert {row["word"] for row in found["names"] if row["word"]} <= {*COLOURS, "grey"}
    assert {row["factor"] for row in found["detections"]} <= {"label"}
    saved = json.loads((folder / "names.json").read_text())
    assert saved == {"names": found["names"], "how": found["how"]}


def test_name_as_a_table_with_the_images_names(fine: Fine, made: Path, tmp_path: Path) -> None:
    folder = copy_of(made / "sae", tmp_path / "sae")
    assert "live latents" in fine("name", folder).stdout


def test_words_that_look_like_markup_are_printed_as_they_are(
    fine: Fine, made: Path, tmp_path: Path
) -> None:
    folder = copy_of(made / "sae", tmp_path / "[red]sae[b]")
    (tmp_path / "words.txt").write_text("[/bold]\n:smile:\n")
    result = fine("name", folder, "--vocabulary", tmp_path / "words.txt", "--threshold", "-1")
    assert "[/bold]" in result.stdout or ":smile:" in result.stdout


@pytest.mark.slow
def test_report_writes_a_page(fine: Fine, made: Path, tmp_path: Path) -> None:
    folder = copy_of(made / "sae", tmp_path / "sae")
    fine("name", folder, "--vocabulary", made / "words.txt")
    result = fine("report", folder, "--out", tmp_path / "report")
    page = tmp_path / "report" / "index.html"
    assert page.stat().st_size > 1000 and str(page) in result.stderr


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(fine: Fine, command: str) -> None:
    assert "Example" in fine(command, "--help").stdout


def test_without_a_command_there_is_help() -> None:
    assert all(name in run().output for name in COMMANDS)


def test_running_again_does_nothing_twice(fine: Fine, made: Path) -> None:
    before = {p.name: p.read_bytes() for p in (made / "acts").iterdir()}
    fine(*extract(made / "images", made / "acts", "--tokens", "patches"))
    assert {p.name: p.read_bytes() for p in (made / "acts").iterdir()} == before


# ---- errors: one line each


def test_unknown_names(refused: Refused, made: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", made / "images"
    assert "no adapter 'toi'; did you mean toy" in refused(*extract(images, out, model="toi"))
    assert "did you mean blocks.1" in refused(*extract(images, out, site="block.1"))
    assert "'nowhere' is neither a data set" in refused(*extract(Path("nowhere"), out))
    assert "no label 'colour'" in refused(
        "eval", made / "sae", "--model", "toy", "--label", "colour"
    )
    assert not out.exists()


def test_images_that_cannot_be_used(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(*extract(tmp_path / "empty", tmp_path / "acts"))
    assert f"no images in {tmp_path / 'empty'}" in message
    images = paint(tmp_path / "images", 4)
    (images / "green" / "01.png").write_text("not a picture")
    assert refused(*extract(images, tmp_path / "acts", "--strict")).startswith("green/01: ")


def test_activations_that_are_no_numbers(
    refused: Refused, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = copy_of(made / "acts", tmp_path / "acts")
    spoil(acts)
    assert "NaN or infinity in 1 of 384 rows" in refused(*train(acts, tmp_path / "sae"))
    monkeypatch.setattr(toy.ToyBlock, "forward", lambda self, x: x * torch.nan)
    message = refused(*extract(made / "images", tmp_path / "other"))
    assert "NaN or infinity" in message and "first 'blue/02'" in message


def spoil(acts: Path) -> None:
    """A NaN in a shard whose checksum says that all is well."""
    shard = acts / "00000.safetensors"
    tensors = {name: t.clone() for name, t in load_file(shard).items()}
    tensors["activations"][5, 3, 1] = torch.nan
    save_file(tensors, shard)
    index = json.loads((acts / "index.json").read_text())
    index["shards"][0]["checksum"] = checksum(shard)
    (acts / "index.json").write_text(json.dumps(index))


def test_stores_that_cannot_be_used(refused: Refused, made: Path, tmp_path: Path) -> None:
    acts = copy_of(made / "acts", tmp_path / "acts")
    data = bytearray((acts / "00000.safetensors").read_bytes())
    data[-1] ^= 1
    (acts / "00000.safetensors").write_bytes(data)
    message = refused(*train(acts, tmp_path / "sae"))
    assert f"shard {acts / '00000.safetensors'} is corrupt" in message
    assert "is no activation store" in refused(*train(tmp_path, tmp_path / "sae"))


def test_a_store_of_another_model(fine: Fine, refused: Refused, made: Path, tmp_path: Path) -> None:
    fine(*extract(made / "images", tmp_path / "acts", "--tokens", "patches", model="toy:1"))
    message = refused("eval", made / "sae", "--acts", tmp_path / "acts")
    assert "do not belong together: model 'toy:0' against 'toy:1'" in message
    message = refused("eval", made / "sae", "--model", "toy:1")
    assert "the activations are from 'toy:0', not 'toy:1'" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", 49], "k must lie in 1..48 (the number of latents); got 49"),
        (["--k", 0], "k: Input should be greater than or equal to 1; got 0"),
        (["--expansion", 0], "s: Input should be greater than or equal to 1; got 0"),
        (["--steps", 0], "steps: Input should be greater than or equal to 1; got 0"),
        (["--batch-size", 1], "batch_size: Input should be greater than or equal to 2; got 1"),
        (["--lr", -1], "lr: Input should be greater than 0; got -1.0"),
    ],
)
def test_settings_out_of_range(
    refused: Refused, made: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    assert message in refused(*train(made / "acts", tmp_path / "sae", *options))
    assert not (tmp_path / "sae").exists()


def test_a_batch_of_no_images(refused: Refused, made: Path, tmp_path: Path) -> None:
    message = refused(*extract(made / "images", tmp_path / "acts", "--batch-size", 0))
    assert "batch_size must be at least 1; got 0" in message


def test_output_folders_are_not_overwritten_unasked(
    refused: Refused, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    for command in (
        extract(made / "images", tmp_path),
        train(made / "acts", tmp_path),
        ["report", made / "sae", "--out", tmp_path],
    ):
        assert f"{tmp_path} already holds something else (thesis.tex)" in refused(*command)
    assert "holds a finished SAE" in refused(*train(made / "acts", made / "sae"))
    message = refused(*extract(made / "images", made / "acts", "--tokens", "cls"))
    assert "another job (tokens 'patches' against 'cls')" in message
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_trains_anew(fine: Fine, made: Path, tmp_path: Path) -> None:
    sae = copy_of(made / "sae", tmp_path / "sae")
    fine(*train(made / "acts", sae, "--seed", 1, "--overwrite"))
    weights = "sae.safetensors"
    assert (sae / weights).read_bytes() != (made / "sae" / weights).read_bytes()


def test_a_vocabulary_that_is_missing_or_too_small(
    refused: Refused, made: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    message = refused("name", made / "sae", "--vocabulary", words)
    assert f"no vocabulary '{words}': it is words, emoji, or a text file" in message
    words.write_text("one\n")
    assert "naming needs at least 2" in refused("name", made / "sae", "--vocabulary", words)


def test_a_folder_without_an_sae(refused: Refused, tmp_path: Path) -> None:
    for command in ("eval", "name"):
        assert f"{tmp_path} holds no SAE" in refused(command, tmp_path)


def test_activations_that_are_gone(
    fine: Fine, refused: Refused, made: Path, tmp_path: Path
) -> None:
    acts = copy_of(made / "acts", tmp_path / "acts")
    fine(*train(acts, tmp_path / "sae"))
    for path in acts.iterdir():
        path.unlink()
    acts.rmdir()
    assert "are gone; pass --acts" in refused("eval", tmp_path / "sae")


def test_images_that_changed_since(
    fine: Fine, refused: Refused, made: Path, tmp_path: Path
) -> None:
    images = paint(tmp_path / "images")
    fine(*extract(images, tmp_path / "acts"))
    fine(*train(tmp_path / "acts", tmp_path / "sae"))
    (images / "blue" / "02.png").unlink()
    assert f"{images} has changed" in refused("name", tmp_path / "sae")


# ---- interruptions, in a process of their own


def start(*arguments: object, before: str = "") -> subprocess.Popen[str]:
    """Run `vision-sae` single-threaded; Ctrl-C works even where the tests run in the background."""
    code = f"""
import signal
from vision_sae.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
{before}
main()
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *(str(a) for a in arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def log_lines(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


LONG = ["--steps", 600, "--expansion", 8]


@pytest.fixture(scope="module")
def whole(made: Path) -> Path:
    """What an uninterrupted run of LONG gives."""
    process = start(*train(made / "acts", made / "whole", *LONG))
    assert process.communicate()[0] is None and process.returncode == 0
    return made / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_stops_on_a_signal_and_goes_on_exactly(
    made: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = train(made / "acts", tmp_path / "sae", *LONG)
    process = start(*command)
    wait_for(lambda: log_lines(tmp_path / "sae") > 2, process)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert "stopped; what is finished is kept, the same command goes on" in stderr
    assert "Traceback" not in stderr and not (tmp_path / "sae" / "config.json").exists()
    step = int(load_file(tmp_path / "sae" / "training.safetensors")["step"])
    assert 0 < step < 600
    again = start(*command)
    _, stderr = again.communicate()
    assert again.returncode == 0, stderr
    for name in ("sae.safetensors", "metrics.jsonl"):
        assert (tmp_path / "sae" / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list((tmp_path / "sae").glob("training.*"))


@pytest.mark.slow
def test_training_that_was_killed_starts_again(made: Path, whole: Path, tmp_path: Path) -> None:
    command = train(made / "acts", tmp_path / "sae", *LONG)
    process = start(*command)
    wait_for(lambda: log_lines(tmp_path / "sae") > 2, process)
    process.kill()
    process.communicate()
    again = start(*command)
    _, stderr = again.communicate()
    assert again.returncode == 0, stderr
    for name in ("sae.safetensors", "metrics.jsonl"):
        assert (tmp_path / "sae" / name).read_bytes() == (whole / name).read_bytes(), name


SMALL_SHARDS = """
from functools import partial
from importlib import import_module
module = import_module("vision_sae.jobs.extraction")
module.extract_sites = partial(module.extract_sites, shard_bytes=4 * 17 * 24 * 4)
"""


@pytest.mark.slow
def test_extraction_that_was_killed_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    images = paint(tmp_path / "images", 400)
    command = extract(images, tmp_path / "acts", "--batch-size", 1)
    process = start(*command, before=SMALL_SHARDS)
    wait_for(lambda: len(list((tmp_path / "acts").glob("*.safetensors"))) > 3, process)
    process.kill()
    process.communicate()
    assert 0 < len(list((tmp_path / "acts").glob("[0-9]*.json"))) < 100
    for out in ("acts", "whole"):
        fine_process = start(*extract(images, tmp_path / out, "--batch-size", 1))
        assert fine_process.communicate()[0] is None and fine_process.returncode == 0
    acts, whole = Store(tmp_path / "acts"), Store(tmp_path / "whole")
    assert acts.positions == whole.positions == list(range(400))
    assert acts.keys == whole.keys
    assert torch.equal(acts.acts(range(400)), whole.acts(range(400)))
