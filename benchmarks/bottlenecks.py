"""Concept bottlenecks beside linear probes and other baselines, on the embedded tasks.

python benchmarks/bottlenecks.py --quick                        # one seed, small tasks
python benchmarks/bottlenecks.py --out results/bottleneck       # all tasks, five seeds
python benchmarks/bottlenecks.py --out results/bottleneck --validation   # to choose settings by

SAEs of each seed read emoji-clip on EmojiCanvas' training pictures: all tokens of block 4, pooled
to an image's, or the projected embedding (--read); digits have a timm model of each seed, trained
on half of them. Every choice is made on validation; test is read by the final table alone. A
stopped run goes on when the same command is given again.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from bottleneck_digits import digits_parts

from vision_sae import (
    SAE,
    MemoryStore,
    SAEConfig,
    Store,
    TrainConfig,
    load,
    load_adapter,
    open_data,
)
from vision_sae import save as save_sae
from vision_sae import train as train_sae
from vision_sae.errors import StoreError
from vision_sae.files import write_json
from vision_sae.jobs import extract_to
from vision_sae.naming import embed_words, name_latents
from vision_sae.recipes.bottleneck import Bottleneck
from vision_sae.recipes.bottleneck.compare import (
    METHODS,
    OURS,
    Seen,
    Texts,
    bottleneck_row,
    compare,
    measured,
)
from vision_sae.recipes.bottleneck.concepts import Pool, pooled
from vision_sae.recipes.bottleneck.names import like
from vision_sae.recipes.bottleneck.tasks import PARTS, Task, open_task
from vision_sae.recipes.bottleneck.tasks.spurious import style_words

SITE, BLOCK = "visual", "visual.transformer.resblocks.4"


class Trained(NamedTuple):
    """An SAE of a site, and how its codes are pooled."""

    site: str = SITE
    pool: Pool = "max"
    s: int = 384
    k: int = 64
    steps: int = 500
    batch_size: int = 512
    inputs: Literal["scale", "whiten"] = "scale"

    @property
    def folder(self) -> str:
        wide = f"{self.s}-{self.k}-{self.steps}-{self.inputs}"
        return f"{self.site.split('.')[-1]}-{wide}"


INNER = Trained(BLOCK, s=2048, k=16, steps=400, batch_size=4096)
READS = {
    SITE: Trained(),
    "whitened": Trained(s=256, inputs="whiten"),
    "dense": Trained(s=256, k=96),
    "wide": Trained(s=1024),
    "block4:max": INNER,
    "block4:mean": INNER._replace(pool="mean"),
    "block4:cls": INNER._replace(pool="cls"),
}
SITES = [SITE, BLOCK]
CANVAS = {
    "train": "emoji-canvas:train+augmented",
    "validation": "emoji-canvas:validation+augmented",
    "test": "emoji-canvas:test+augmented?views=2",
}
GROUND = "canvas-spurious-ground"
TASKS = ("canvas-category", "canvas-style", "canvas-skin-tone", "canvas-concept", GROUND,
         "canvas-spurious-style", "digits")  # fmt: skip
READ = (SITE,)
QUICK = ("canvas-skin-tone", GROUND)
BASELINES = tuple(method for method in METHODS if method != OURS)
Cell = dict[str, Any]


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, help="folder of the results; else a temporary one")
    made.add_argument("--acts", type=Path, help="folder of the stores; default: OUT/acts")
    made.add_argument("--quick", action="store_true")
    made.add_argument("--tasks", nargs="*", default=(), choices=TASKS)
    made.add_argument("--seeds", nargs="*", type=int, default=(0, 1, 2, 3, 4))
    made.add_argument("--validation", action="store_true", help="measure on validation, not test")
    made.add_argument("--read", nargs="+", default=READ, choices=READS, help="side by side")
    made.add_argument("--like", type=float, default=0.15, help="cosine of removal by query")
    made.add_argument("--set", nargs="*", default=(), help="of the bottleneck: l1_ratio=0.5 ...")
    made.add_argument("--baselines", nargs="*", default=BASELINES, choices=BASELINES)
    return made.parse_args()


class Bench:
    """Stores, SAEs, texts and finished cells, each made once and kept in a folder."""

    def __init__(self, out: Path, acts: Path, args: argparse.Namespace) -> None:
        self.out, self.acts, self.args = out, acts, args
        self.adapter: Any = load_adapter("emoji-clip")
        self.settings: dict[str, Any] = {
            "choice": "per-decision",
            "scale": ("deviation", "none"),
            "l1_ratio": (0.95, 0.5, 0.1),
            "strengths": 14,
            "smallest": 2e-3,
            "tolerance": 1e-2,
        }
        self.settings |= dict(_setting(text) for text in args.set)
        self._rows: dict[str, tuple[dict[str, int], torch.Tensor]] = {}
        self._tasks: dict[str, Task] = {}
        self._words: Any = None

    def tell(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def store(self, data: str, site: str) -> Store:
        folder = self.acts / "".join("_" if c in ":?+=/&," else c for c in data)
        try:
            return Store.of_site(folder, site)
        except StoreError:
            self.tell(f"extract {data}")
            extract_to(self.adapter, open_data(data), SITES, folder, dtype="float16")
            return Store.of_site(folder, site)

    def rows(self, data: str) -> tuple[dict[str, int], torch.Tensor]:
        """Each key's number, and the embeddings [n d] before they are scaled to 1."""
        if data not in self._rows:
            store = self.store(data, SITE)
            rows = torch.cat([acts[:, 0] for acts in store.in_order(2048)]).float()
            self._rows[data] = ({key: i for i, key in enumerate(store.keys)}, rows)
        return self._rows[data]

    def codes(self, data: str, seed: int) -> Any:
        """Pooled codes [n s] of all images of some data, the SAEs side by side."""
        from scipy.sparse import csr_array, hstack

        return csr_array(hstack([self._codes(data, seed, READS[r]) for r in self.args.read]))

    def _codes(self, data: str, seed: int, read: Trained) -> Any:
        """Of one SAE; kept, as encoding all tokens takes a minute."""
        from scipy.sparse import csr_array, load_npz, save_npz, vstack

        name = "".join("_" if c in ":?+=/&," else c for c in data)
        path = self.out / "codes" / f"{read.folder}-{seed}" / f"{read.pool}-{name}.npz"
        if not path.exists():
            self.tell(f"encode {path.stem}, seed {seed}")
            path.parent.mkdir(parents=True, exist_ok=True)
            sae = self.sae(seed, read)
            with torch.no_grad():
                found = [pooled(sae.encode(acts.float().flatten(0, 1)), acts.shape[1], read.pool)
                         for acts in self.store(data, read.site).in_order(128)]  # fmt: skip
            save_npz(path, csr_array(vstack(found)))
        return csr_array(load_npz(path))

    def task(self, name: str) -> Task:
        if name not in self._tasks:
            self._tasks[name] = open_task(name)
        return self._tasks[name]

    def seen(self, name: str, seed: int) -> dict[str, Seen]:
        task, found = self.task(name), {}
        for part in PARTS:
            here = task.part(part)
            data = f"task:{name}/{part}" if name.startswith(GROUND) else CANVAS[part]
            number, rows = self.rows(data)
            mine = [number[key] for key in here.keys]
            kinds = [str(item.about.get("held_out", "")) for item in here.items()]
            found[part] = Seen(self.codes(data, seed)[mine], rows[mine],
                               F.normalize(rows[mine], dim=1), here.labels, here.groups,
                               kinds)  # fmt: skip
        if self.args.validation:
            found["test"] = found["validation"]
        return found

    def sae(self, seed: int, read: Trained) -> SAE:
        """Trained on all training pictures, those on grounds too."""
        folder = self.out / "saes" / f"{read.folder}-{seed}"
        if not (folder / "config.json").exists():
            self.tell(f"train SAE {folder.name}")
            rows = torch.cat([acts.float().flatten(0, 1)
                              for data in (CANVAS["train"], f"task:{GROUND}/train")
                              for acts in self.store(data, read.site).in_order(512)])  # fmt: skip
            config = TrainConfig.of(
                steps=read.steps, batch_size=read.batch_size, inputs=read.inputs, seed=seed
            )
            made = SAE(SAEConfig.of(rows.shape[1], read.s, "topk", k=read.k), seed=seed)
            save_sae(train_sae(made, MemoryStore(rows), config), folder)
        return load(folder)

    def directions(self, seed: int) -> torch.Tensor:
        """Each latent in the space of texts [s e]: the decoder's direction where it is that space,
        else the centred embedding of the training pictures on which it is largest (20)."""
        found = []
        for read in self.args.read:
            if READS[read].site == SITE:
                found.append(F.normalize(self.sae(seed, READS[read]).W_dec.detach(), dim=1))
            else:
                images = F.normalize(self.rows(CANVAS["train"])[1], dim=1)
                codes = self._codes(CANVAS["train"], seed, READS[read])
                found.append(seen_directions(codes, images))
        return torch.cat(found)

    @property
    def words(self) -> tuple[list[str], torch.Tensor]:
        """The vocabulary and its embeddings."""
        if self._words is None:
            words = vocabulary()
            self._words = (words, embed_words(self.adapter, words))
        return self._words

    def texts(self, task: Task) -> Texts:
        return Texts(task.classes, embed_words(self.adapter, task.prompts), *self.words)

    def cell(self, name: str, make: Any) -> Cell:
        args = self.args  # cells of other settings are others
        split = "validation" if args.validation else "test"
        settings = "-".join([*args.read, split, f"like={args.like}", *args.set])
        path = self.out / "cells" / settings / f"{name}.json"
        if not path.exists():
            self.tell(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            write_json(path, {**make(), "seconds": time.perf_counter() - started})
        found: Cell = json.loads(path.read_text())
        return found


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value) if value[:1] in "0123456789tf" else value


def vocabulary() -> list[str]:
    """Names of EmojiCanvas' validation pictures, colours and styles as captions call them."""
    from vision_sae.assets.canvas import GROUNDS, STYLES, emoji_canvas

    names = {row["name"] for row in emoji_canvas("validation").about}
    return sorted(names | set(GROUNDS) | set(map(style_words, STYLES)))


def seen_directions(codes: Any, images: torch.Tensor, top: int = 20) -> torch.Tensor:
    """Centred means [s e] of embeddings, weighted by each latent's largest codes of [n s]."""
    columns, found = codes.tocsc(), []
    for j in range(codes.shape[1]):
        start, end = columns.indptr[j : j + 2]
        values, rows = columns.data[start:end], columns.indices[start:end]
        best = (-values).argsort()[:top]
        weights = torch.from_numpy(values[best]).float()
        mean = (weights[:, None] * images[torch.from_numpy(rows[best]).long()]).sum(0)
        found.append(mean / weights.sum() if len(best) else torch.full_like(mean, 0))
    made = torch.stack(found)
    return F.normalize(torch.where(made.any(1, keepdim=True), made - images.mean(0), made), dim=1)


def bottleneck_cell(bench: Bench, name: str, seed: int) -> Cell:
    """Ours; where there is a spurious correlation, again without concepts by name."""
    parts = bench.seen(name, seed)
    cbm, row = bottleneck_row(OURS, parts, {p: parts[p].concepts for p in PARTS}, bench.settings)
    path = [point.as_dict() for point in cbm.path_]  # on validation
    cell: Cell = {"task": name, "seed": seed, "rows": [row.as_dict()], "path": path}
    if parts["test"].groups:
        cell |= corrected(bench, bench.task(name), seed, cbm, parts, cell["rows"])
    return cell


def corrected(
    bench: Bench, task: Task, seed: int, cbm: Bottleneck, parts: dict[str, Seen], rows: list[Any]
) -> Cell:
    """Without the concepts that speak of the task's spurious words: by their names, which have one
    of the words, and by query, as their direction is like a word's embedding."""
    words, embedded = bench.words
    fires = [i for i, n in enumerate((parts["train"].concepts != 0).sum(0).tolist()) if n]
    directions = bench.directions(seed)
    names = name_latents(fires, directions[fires], words, embedded)
    named = {name.latent: name.name for name in names}
    queries = embed_words(bench.adapter, task.spurious) - embedded.mean(0)
    near = [
        one.concept
        for query in queries
        for one in like(query, directions, named, least=bench.args.like, top=len(directions))
    ]
    removed = {
        "by name": [i for i, name in named.items() if any(w in name for w in task.spurious)],
        "by query": sorted(set(near) & set(fires)),
    }  # fmt: skip
    for how, gone in removed.items():
        rows += _without(f"without, {how}", cbm, gone, parts)
    used = set(cbm.head_.used)
    told = {how: {str(i): named[i] for i in gone if i in used} for how, gone in removed.items()}
    return {"removed of those in use": told, "removed": {h: len(g) for h, g in removed.items()}}


def _without(how: str, cbm: Bottleneck, gone: list[int], parts: dict[str, Seen]) -> list[Any]:
    """The head as it is without some concepts, and one fitted anew on the others."""
    fixed, test = cbm.without(gone), parts["test"]
    again = fixed.refit(
        parts["train"].concepts, parts["train"].labels,
        validation=(parts["validation"].concepts, parts["validation"].labels),
    )  # fmt: skip
    heads = {how: fixed, f"{how}, refitted": again}
    return [measured(name, head, test.concepts, test).as_dict() for name, head in heads.items()]


def baseline_cell(bench: Bench, name: str) -> Cell:
    task, parts = bench.task(name), bench.seen(name, bench.args.seeds[0])
    rows = compare(parts, bench.texts(task), methods=bench.args.baselines, settings=bench.settings,
                   tell=bench.tell)  # fmt: skip
    return {"task": name, "rows": [row.as_dict() for row in rows]}


def digits_cell(bench: Bench, seed: int) -> Cell:
    parts = digits_parts(bench.out / "digits", seed, validation=bench.args.validation)
    rows = compare(parts, settings=bench.settings)
    return {"task": "digits", "seed": seed, "rows": [row.as_dict() for row in rows]}


def run(bench: Bench, tasks: list[str], seeds: list[int]) -> list[Cell]:
    cells = []
    for name in tasks:
        if name == "digits":
            cells += [bench.cell(f"digits-{s}", lambda s=s: digits_cell(bench, s)) for s in seeds]
            continue
        for seed in seeds:
            cells.append(
                bench.cell(f"{name}-{seed}", lambda s=seed, n=name: bottleneck_cell(bench, n, s))
            )
        if bench.args.baselines:
            cells.append(bench.cell(f"{name}-baselines", lambda n=name: baseline_cell(bench, n)))
    return cells


def table(cells: list[Cell]) -> str:
    """Means over seeds, with the lowest and highest."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        for row in cell["rows"]:
            found.setdefault((cell["task"], row["method"]), []).append(row)
    lines = ["| task | method | accuracy | concepts to 95% | in use | worst group | ECE |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for (task, method), rows in sorted(found.items(), key=lambda one: one[0][0]):
        shown = [_span(rows, "accuracy", 100, "%"), _span(rows, "per_decision", 1, ""),
                 _span(rows, "concepts", 1, ""), _span(rows, "worst_group", 100, "%"),
                 _span(rows, "ECE", 1, "", 3)]  # fmt: skip
        lines.append(f"| {task} | {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _span(rows: list[Cell], name: str, factor: float, unit: str, digits: int = 1) -> str:
    values = [factor * row[name] for row in rows if row[name] is not None]
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.{digits}f}{unit}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    args = options()
    torch.set_num_threads(1)
    out = args.out or Path(tempfile.mkdtemp(prefix="bottleneck-"))
    bench = Bench(out, args.acts or out / "acts", args)
    tasks = list(args.tasks or (QUICK if args.quick else TASKS))
    seeds = [0] if args.quick else list(args.seeds)
    cells = run(bench, tasks, seeds)
    (out / "results.md").write_text(table(cells) + "\n")
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
    write_json(out / "results.json", {"settings": settings, "cells": cells})
    print(table(cells))


if __name__ == "__main__":
    main()
