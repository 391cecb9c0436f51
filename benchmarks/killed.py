"""Extraction killed at random moments until it is done: is anything lost, or there twice?

python benchmarks/killed.py             # twenty kills, a few minutes
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SMALL = """
from functools import partial
from vision_sae.jobs import extraction
from vision_sae.cli import main
extraction.extract_sites = partial(extraction.extract_sites, shard_bytes=2 * 17 * 24 * 4)
main()
"""  # two images to a shard: thousands of moments at which a file is half written


def command(folder: Path, images: int) -> list[str]:
    script = folder / "small.py"
    script.write_text(SMALL)
    data = folder / "images"
    if not data.exists():
        paint(data, images)
    return [sys.executable, str(script), "extract", "--model", "toy", "--site", "blocks.0",
            "--data", str(data), "--batch-size", "2"]  # fmt: skip


def paint(folder: Path, images: int) -> None:
    from PIL import Image

    folder.mkdir()
    for i in range(images):
        colour = (i % 256, i // 256 % 256, 7 * i % 256)
        Image.new("RGB", (16, 16), colour).save(folder / f"{i:05}.png")


def digests(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if not p.name.endswith(".partial")
    }


def killed_after(arguments: list[str], folder: Path, seconds: float) -> bool:
    """Killed so long after it has written its first shard; whether it was still at work."""
    process, before = subprocess.Popen(arguments, stderr=subprocess.DEVNULL), shards(folder)
    while process.poll() is None and shards(folder) == before:
        time.sleep(0.01)
    time.sleep(seconds)
    at_work = process.poll() is None
    process.kill()
    process.wait()
    return at_work


def shards(folder: Path) -> int:
    return len(list(folder.glob("[0-9]*.json")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, kills = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = command(folder, args.images)
        acts, after = folder / "acts", []
        subprocess.run(
            [*arguments, "--out", str(folder / "whole")], check=True, stderr=subprocess.DEVNULL
        )
        for _ in range(args.kills):
            kills += killed_after([*arguments, "--out", str(acts)], acts, draw.random() * 0.3)
            after.append(shards(acts))
            if after[-1] == args.images // 2:  # done: the next ones are killed in another store
                check(folder, but={"index.json"})
        subprocess.run(
            [*arguments, "--out", str(folder / "acts")], check=True, stderr=subprocess.DEVNULL
        )
        check(folder)
    print(json.dumps({"kills": kills, "shards after each": after, "same bytes": True}))


def check(folder: Path, but: frozenset[str] | set[str] = frozenset()) -> None:
    """The same files with the same bytes as without a kill, then begin again."""
    mine, whole = digests(folder / "acts"), digests(folder / "whole")
    differ = {name for name in mine.keys() | whole.keys() if mine.get(name) != whole.get(name)}
    if differ - but:
        raise SystemExit(f"files differ: {sorted(differ)[:5]}")
    for path in (folder / "acts").iterdir():
        path.unlink()


if __name__ == "__main__":
    main()
