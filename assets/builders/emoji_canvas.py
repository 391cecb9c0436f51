"""Build the EmojiCanvas data set from npm's icon packages.

    pip install resvg-py==0.5.0 pillow==13.0.0
    python -m vision_sae.assets.builders.emoji_canvas --out assets/emoji-canvas

Needs npm and its registry. Versions are pinned, splits are hashes of names and archives carry no
clock, so a second build writes the same bytes (with the same Pillow, whose libwebp encodes).
"""

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE = 64
SHARD_ROWS = 1024
WEBP_QUALITY = 85
ICONIFY = "@iconify-json/"
VENDORS = {  # style: (npm package, version)
    "noto": ("noto", "1.2.9"),
    "noto-v1": ("noto-v1", "1.2.5"),
    "twemoji": ("twemoji", "1.2.5"),
    "emojione": ("emojione", "1.2.3"),
    "fluent": ("fluent-emoji", "1.2.7"),
    "fluent-flat": ("fluent-emoji-flat", "1.2.6"),
    "fluent-high-contrast": ("fluent-emoji-high-contrast", "1.2.6"),
}
EVERYWHERE = ["noto", "twemoji", "fluent", "fluent-flat", "fluent-high-contrast"]
STYLE_WORDS = {"fluent-high-contrast": "high contrast", "noto-v1": "noto blob"}
FACTS = ("emojibase-data", "17.0.0")
TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]
TONED_SUBCATEGORIES = {
    "hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed",
    "hands", "hand-prop", "body-parts", "person",
}  # fmt: skip
COLOURS = [
    "red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink",
]  # fmt: skip
HOURS = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
]  # fmt: skip


@dataclass(frozen=True)
class Icons:
    """One vendor's SVG drawings, by name."""

    data: dict[str, Any]

    def __contains__(self, name: str) -> bool:
        return name in self.data["icons"] or name in self.data.get("aliases", {})

    def svg(self, name: str) -> str:
        while name in self.data.get("aliases", {}):
            name = self.data["aliases"][name]["parent"]
        icon = self.data["icons"][name]
        width = icon.get("width", self.data.get("width", 16))
        height = icon.get("height", self.data.get("height", 16))
        body = icon["body"].replace("currentColor", "#000")
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'


def fetch(package: str, version: str, cache: Path) -> Path:
    """Download and unpack one pinned npm package; returns its folder."""
    folder = cache / f"{package.replace('/', '-').lstrip('@')}-{version}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        packed = ["npm", "pack", "--silent", f"{package}@{version}"]
        name = subprocess.run(packed, cwd=cache, check=True, capture_output=True, text=True)
        with tarfile.open(cache / name.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def facts_by_name(base: Path, noto: Path) -> dict[str, dict[str, Any]]:
    """Category, subcategory, keywords and character of every icon name, from emojibase."""
    meta = read_json(base / "meta/groups.json")
    entries = {
        e["hexcode"].lower().replace("-fe0f", ""): e for e in read_json(base / "en/data.json")
    }
    facts = {}
    for code, name in read_json(noto / "chars.json").items():
        entry = entries.get(code.replace("-fe0f", ""))
        if entry and "group" in entry:
            facts[name] = {
                "name": re.sub(r"[’']", "", entry["label"]).replace(":", ""),
                "emoji": entry["emoji"],
                "category": meta["groups"][str(entry["group"])],
                "subcategory": meta["subgroups"][str(entry["subgroup"])],
                "keywords": entry.get("tags", []),
            }
    return facts


def bucket(*parts: str) -> int:
    """A number in 0..99 that depends on nothing but the words."""
    return int(hashlib.sha256("/".join(parts).encode()).hexdigest(), 16) % 100


def split_of(concept: str, style: str) -> tuple[str, str | None]:
    """(split, what is held out): 2% + 4% of concepts, then 5% + 5% of (concept, style) pairs."""
    by_concept = bucket("concept", concept)
    if by_concept < 6:
        return ("validation" if by_concept < 2 else "test"), "concept"
    by_pair = bucket("pair", concept, style)
    if by_pair < 10:
        return ("validation" if by_pair < 5 else "test"), "pair"
    return "train", None


def visual_factors(concept: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Gender, clock time, colour and shape, read from the name where it states them."""
    words = concept.split("-")
    factors: dict[str, Any] = {}
    if facts["category"] == "people-body" and words[0] in ("man", "woman", "person"):
        factors["gender"] = words[0]
    if words[0] in HOURS and words[-1] in ("oclock", "thirty") and len(words) == 2:
        factors["hour"] = HOURS.index(words[0]) + 1 + (0.5 if words[-1] == "thirty" else 0.0)
    shape = next((s for s in ("heart", "circle", "square", "diamond") if s in words), None)
    if shape and facts["subcategory"] in ("heart", "geometric"):
        factors["shape"] = shape
        factors["colour"] = next((c for c in COLOURS if c in words), None)
    return {key: value for key, value in factors.items() if value is not None}


def caption(name: str, tone: str | None, style: str) -> str:
    toned = f"{name} with {tone.replace('-', ' ')} skin tone" if tone else name
    return f"{toned} in {STYLE_WORDS.get(style, style.replace('-', ' '))} style"


def drawings(
    icons: dict[str, Icons], facts: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, str, str | None, str]]:
    """Every (concept, style, skin tone, icon name) that the set holds, in a fixed order."""
    names = [n for n in sorted(facts) if all(n in icons[style] for style in EVERYWHERE)]
    for concept in (n for n in names if not n.endswith("skin-tone")):
        toned = facts[concept]["subcategory"] in TONED_SUBCATEGORIES
        for style, drawn in icons.items():
            for tone in [None, *(TONES if toned else [])]:
                suffix = "" if tone is None else f"-{tone}"
                if tone and "fluent" not in style:
                    suffix += "-skin-tone"
                if concept + suffix in drawn:
                    yield concept, style, tone, concept + suffix


def webp(svg: str) -> bytes:
    import resvg_py
    from PIL import Image

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (SIZE, SIZE))
    square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    out = io.BytesIO()
    square.save(out, "webp", quality=WEBP_QUALITY, alpha_quality=80, method=6)
    return out.getvalue()


def samples(cache: Path) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """(split, metadata, image bytes) of every drawing."""
    icons = {
        style: Icons(read_json(fetch(ICONIFY + package, version, cache) / "icons.json"))
        for style, (package, version) in VENDORS.items()
    }
    noto = fetch(ICONIFY + "noto", VENDORS["noto"][1], cache)
    facts = facts_by_name(fetch(*FACTS, cache), noto)
    for concept, style, tone, icon in drawings(icons, facts):
        split, held_out = split_of(concept, style)
        about = {"key": f"{icon}__{style}", "concept": concept, "style": style, **facts[concept]}
        about["caption"] = caption(about["name"], tone, style)
        about |= visual_factors(concept, facts[concept]) | ({"skin_tone": tone} if tone else {})
        about |= {"held_out": held_out} if held_out else {}
        yield split, about, webp(icons[style].svg(icon))


def add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def write_shard(path: Path, rows: list[tuple[dict[str, Any], bytes]]) -> None:
    """One gzipped tar without time stamps, so that equal contents are equal bytes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for about, image in rows:
            add_file(archive, f"{about['key']}.webp", image)
            text = json.dumps(about, ensure_ascii=False, sort_keys=True)
            add_file(archive, f"{about['key']}.json", text.encode())
    path.write_bytes(gzip.compress(plain.getvalue(), 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/emoji-canvas").expanduser())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    by_split: dict[str, list[tuple[dict[str, Any], bytes]]] = {}
    for split, about, image in samples(args.cache):
        by_split.setdefault(split, []).append((about, image))
    for split, rows in by_split.items():
        # shuffled by hash: a reader of the first shard sees every category
        rows.sort(key=lambda row: hashlib.sha256(row[0]["key"].encode()).digest())
        for start in range(0, len(rows), SHARD_ROWS):
            path = args.out / f"{split}-{start // SHARD_ROWS:03d}.tar.gz"
            write_shard(path, rows[start : start + SHARD_ROWS])
        styles = Counter(about["style"] for about, _ in rows)
        print(split, len(rows), dict(styles))


if __name__ == "__main__":
    main()
