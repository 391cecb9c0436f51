"""A bottleneck beside its baselines, on planted data and through the embedded model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from typer.testing import CliRunner

from vision_sae import SAE, SAEConfig, load_adapter, save
from vision_sae.cli.app import app
from vision_sae.errors import UnknownName
from vision_sae.provenance import Provenance
from vision_sae.recipes.bottleneck.compare import METHODS, Row, Seen, Texts, compare, row_of
from vision_sae.recipes.bottleneck.tasks import Task, open_task

WORDS = [f"word {i}" for i in range(12)]
ATOMS = F.normalize(torch.randn(12, 32, generator=torch.Generator().manual_seed(0)), dim=1)


def seen(n: int, seed: int, together: float) -> Seen:
    """Class c is atom c; atom 4 + p, of which there are two, goes together with it."""
    chance = np.random.default_rng(seed)
    y = chance.integers(0, 2, n)
    place = np.where(chance.random(n) < together, y, 1 - y)
    codes = np.zeros((n, 12))
    codes[np.arange(n), y] = 1 + 0.3 * chance.random(n)
    codes[np.arange(n), 4 + place] = 2.0
    codes[np.arange(n), chance.integers(6, 12, n)] = 1.0
    x = torch.tensor(codes).float() @ ATOMS
    labels = [f"class {c}" for c in y]
    groups = [f"class {c} at {p}" for c, p in zip(y, place, strict=True)]
    return Seen(csr_array(codes), x, x, labels, groups, ["pair"] * n)


PARTS = {"train": seen(400, 0, 0.95), "validation": seen(150, 1, 0.95), "test": seen(300, 2, 0.5)}


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    texts = Texts(["class 0", "class 1"], ATOMS[:2], WORDS, ATOMS)
    found = compare(PARTS, texts, settings={"choice": "per-decision", "strengths": 12})
    return {row.method: row for row in found}


def test_every_method_has_a_row_with_its_groups_and_kinds(rows: dict[str, Row]) -> None:
    assert tuple(rows) == METHODS
    for row in rows.values():
        assert set(row.by_group) == {f"class {c} at {p}" for c in (0, 1) for p in (0, 1)}
        assert row.worst_group == min(row.by_group.values())
        assert row.by_kind == {"pair": row.accuracy}


def test_bottlenecks_count_their_concepts_and_probes_do_not(rows: dict[str, Row]) -> None:
    for method, row in rows.items():
        counted = method in ("bottleneck", "concept words (LF-CBM)", "SpLiCE")
        assert (row.per_decision is not None) == counted
        assert row.per_decision is None or row.per_decision <= 25
    assert rows["bottleneck"].concepts in range(2, 13)


def test_planted_classes_are_found_by_all(rows: dict[str, Row]) -> None:
    assert rows["bottleneck"].accuracy > 0.95
    assert rows["linear probe, embedding"].accuracy > 0.9
    assert rows["zero-shot"].accuracy > 0.8


def test_without_texts_and_embeddings_what_is_left_is_compared() -> None:
    bare = {n: Seen(p.concepts, p.read, None, p.labels) for n, p in PARTS.items()}
    found = compare(bare, settings={"strengths": 8})
    assert [row.method for row in found] == list(METHODS[:2])
    assert found[0].worst_group is None
    with pytest.raises(UnknownName, match="did you mean SpLiCE"):
        compare(bare, methods=["SpLICE"])


def test_a_row_counts_what_was_said() -> None:
    test = Seen(None, torch.zeros(4, 1), None, list("aabb"), ["x", "y", "x", "y"], [""] * 4)
    row = row_of("mine", list("aaab"), test, concepts=3)
    assert (row.accuracy, row.by_group, row.worst_group) == (0.75, {"x": 0.5, "y": 1.0}, 0.5)
    assert (row.by_kind, row.concepts, row.validation) == ({}, 3, None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skin tones, of few pictures."""
    full = open_task("canvas-skin-tone")
    parts: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        part = full.part(name)
        some = range(0, len(part), 1 + len(part) // 60)
        parts[name] = type(part)(
            part.name, part.source, [part.positions[i] for i in some],
            [part.labels[i] for i in some], keys=[part.keys[i] for i in some],
        )  # fmt: skip
    monkeypatch.setattr(
        "vision_sae.recipes.bottleneck.tasks.open_task", lambda name: Task(name, **parts)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_command_reads_the_model_s_images_and_texts(tmp_path: Path) -> None:
    from vision_sae.model.adapter import fingerprint

    adapter = load_adapter("emoji-clip")
    sae = SAE(SAEConfig.of(192, 256, "topk", k=8), seed=0).eval()
    sae.provenance = Provenance(
        model=adapter.name, fingerprint=fingerprint(adapter.model), site="visual", tokens="all",
        data="emoji-canvas:train",
    )  # fmt: skip
    save(sae, tmp_path / "sae")
    (tmp_path / "words.txt").write_text("dark\nlight\nhand\nwoman\nman\nface\n")
    asked = ["bottleneck", "compare", "--task", "canvas-skin-tone"]
    asked += ["--sae", str(tmp_path / "sae"), "--vocabulary", str(tmp_path / "words.txt")]
    asked += ["--out", str(tmp_path / "out")]
    run = CliRunner().invoke(app, asked)
    assert run.exit_code == 0, run.output
    assert all(word in run.output for word in ("zero-shot", "SpLiCE", "linear probe"))
    assert (tmp_path / "out/results.json").exists()
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 1
    assert "holds results" in again.output
