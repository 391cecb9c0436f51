"""Two processes share the images of an extraction; what a dead one left out is done later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vision_sae.store import Store

pytestmark = pytest.mark.slow
IMAGES = 23
SMALL = """
import sys
from functools import partial
from vision_sae.jobs import extraction
from vision_sae.cli import main
extraction.extract_sites = partial(extraction.extract_sites, shard_bytes=3 * 17 * 24 * 4)
main()
"""  # three images to a shard


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(IMAGES):
        Image.new("RGB", (16, 16), (10 * i, 255 - 10 * i, 7 * i)).save(folder / f"{i:02}.png")
    (folder / "04.png").write_text("not a picture")
    return folder


def extract(images: Path, out: Path, processes: int) -> None:
    script = out.parent / "small.py"
    script.write_text(SMALL)
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    sites = ["--site", "blocks.0", "--site", "blocks.1"]
    command = ["extract", "--model", "toy", *sites, "--data", images, "--out", out]
    done = subprocess.run(
        [sys.executable, *(run if processes > 1 else []), script, *command, "--batch-size", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_processes_write_what_one_does(images: Path, tmp_path: Path) -> None:
    extract(images, tmp_path / "one", 1)
    extract(images, tmp_path / "two", 2)
    whole = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == whole
    store = Store(tmp_path / "two" / "blocks.0")
    assert store.positions == [i for i in range(IMAGES) if i != 4]
    assert [line.split(":")[0] for line in store.index.skipped] == ["04"]
    assert len(store.index.shards) == 8

    lost = tmp_path / "two" / "blocks.1"  # a process died before it wrote these
    for number in (2, 5, 6):
        (lost / f"{number:05}.json").unlink()
        (lost / f"{number:05}.safetensors").unlink()
    index = json.loads((lost / "index.json").read_text())
    (lost / "index.json").write_text(json.dumps(index | {"complete": False, "shards": []}))
    assert Store(lost, allow_partial=True).images == IMAGES - 1 - 9
    extract(images, tmp_path / "two", 2)
    assert contents(tmp_path / "two") == whole
    assert torch.equal(Store(lost).acts([3]), Store(tmp_path / "one" / "blocks.1").acts([3]))
