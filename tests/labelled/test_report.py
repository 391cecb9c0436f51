"""The whole report on a store, and the suite's rows on a case, with a planted SAE."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import vision_sae as vs
from vision_sae.cli import app as commands
from vision_sae.errors import DataError, UnknownName
from vision_sae.measures.case import Case, Sample
from vision_sae.measures.labelled import cases, visaebench
from vision_sae.measures.suite import MEASURES, measured
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Row, StoreIndex, StoreWriter

D, N = 16, 600
FROM = Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d")


def known() -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    kind, style = torch.randint(4, (N,), generator=g), torch.randint(3, (N,), generator=g)
    both = zip(kind.tolist(), style.tolist(), strict=True)
    return [{"kind": "abcd"[k], "style": "xyz"[s], "category": "uv"[k // 2]} for k, s in both]


def activations() -> Tensor:
    """Orthogonal directions of the kind and the style, and a little noise."""
    base, about = torch.eye(D), known()
    x = torch.stack(
        [base["abcd".index(a["kind"])] + base[4 + "xyz".index(a["style"])] for a in about]
    )
    return x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def planted() -> SAE:
    """Its first seven latents are the seven directions."""
    sae = SAE(SAEConfig.of(D, 24, "topk", 2), seed=3)
    with torch.no_grad():
        sae.W_enc[:7] = sae.W_dec[:7] = torch.eye(D)[:7]
        sae.W_enc[7:] = 0
    sae.provenance = FROM
    return sae.eval()


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "acts"
    index = StoreIndex(
        provenance=FROM, dtype="float32", width=D, tokens_per_image=1, prefix_tokens=0, grid=None
    )
    writer = StoreWriter(folder, index, shard_bytes=2**16)
    writer.add(activations()[:, None], [Row(i, f"k{i}", a) for i, a in enumerate(known())])
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def case() -> Case:
    x, about = activations(), known()
    fit, test = (
        Sample(x[part], keys=[f"k{i}" for i in range(N)][part], about=about[part])
        for part in (slice(0, 450), slice(450, N))
    )
    return Case("planted", planted(), fit, test, label="kind")


@pytest.mark.slow
def test_the_planted_sae_lies_between_the_floor_and_the_ceiling(acts: Path) -> None:
    found = vs.factor_report(planted(), acts, factors=["kind", "style"])
    sae, floor, top = (found.scores[c] for c in ("SAE", "random SAE", "ceiling"))
    for name in ("coverage", "probe_5", "control_1"):
        assert floor[name].value < sae[name].value <= top[name].value + 0.02, name
    assert sae["sufficiency"].value > 0.97
    assert found.coverage_by_factor["SAE"]["kind"] == pytest.approx(1.0, abs=0.01)
    assert found.scores["supervised"]["control_1"].value > 0.95
    assert json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.slow
def test_the_command_prints_and_writes_it(acts: Path, tmp_path: Path) -> None:
    vs.save(planted(), tmp_path / "sae")
    args = ["factors", str(tmp_path / "sae"), "--acts", str(acts), "--factors", "kind,style"]
    done = CliRunner().invoke(commands.app, [*args, "--out", str(tmp_path / "f.json")])
    assert done.exit_code == 0, done.output
    assert "coverage by factor" in done.output and "random SAE" in done.output
    written = json.loads((tmp_path / "f.json").read_text())
    assert set(written["scores"]) == {"sae", "random SAE", "neurons", "supervised", "ceiling"}


def test_what_cannot_be_reported_on_is_refused(acts: Path) -> None:
    with pytest.raises(UnknownName, match="no factor 'colour'"):
        vs.factor_report(planted(), acts, factors=["colour"])
    transcoder = SAE(SAEConfig.of(D, 8, "topk", 2, d_out=4))
    with pytest.raises(DataError, match="SAE is a transcoder"):
        vs.factor_report(transcoder, acts)
    with pytest.raises(DataError, match="name an SAE"):
        vs.factor_report({}, acts)


@pytest.mark.slow
def test_every_row_of_the_suite_that_needs_labels_gives_its_scores(case: Case) -> None:
    rows = [m for m in MEASURES if m.run.__module__ in (cases.__name__, visaebench.__name__)]
    assert len(rows) == 13
    scores = {name: s for m in rows for name, s in measured(case, m).items()}
    assert scores["coverage"].value > 0.9
    assert scores["probe_1"].value > 0.9
    assert scores["visaebench.probe_ratio"].value == pytest.approx(1, abs=0.02)
    assert scores["visaebench.transfer"].value > 0.8
    assert scores["tpp_2"].value > 0.3
    assert "no image has the label 'hour'" in str(scores["ring_x"].reason)
    assert "hierarchy" in str(scores["visaebench.absorption"].reason)
    assert all(s.reason for s in scores.values() if math.isnan(s.value))


def test_without_labels_every_row_says_so() -> None:
    x = activations()
    bare = Case("bare", planted(), Sample(x[:450]), Sample(x[450:]))
    for measure in MEASURES:
        if measure.run.__module__ in (cases.__name__, visaebench.__name__) and measure.needs:
            assert all(s.reason for s in measured(bare, measure).values())


def test_with_one_factor_there_is_none_to_leave_alone(case: Case) -> None:
    fit, test = (
        replace(s, about=[{"kind": a["kind"]} for a in s.about]) for s in (case.fit, case.test)
    )
    found = cases.supervised_axes(Case("one", planted(), fit, test, label="kind"))
    assert found["control_1"].value > 0.5
    assert "no other factor" in str(found["control_kept"].reason)


def test_siblings_are_concepts_of_one_subcategory() -> None:
    about = [{"concept": f"c{i % 5}", "subcategory": "s" if i % 5 < 3 else "t"} for i in range(30)]
    groups = visaebench.sibling_groups(about)
    assert set(groups) == {"s"}  # t has two
    assert groups["s"]["c0"] == [0, 5, 10, 15, 20, 25]


def test_a_sibling_without_a_latent_of_its_own_is_absorbed() -> None:
    """Four concepts; two have a latent each, two share one latent with all."""
    n = 200
    about = [{"concept": f"c{i % 4}", "subcategory": "s", "kind": "ab"[i % 2]} for i in range(n)]
    x = torch.zeros(n, D)
    x[:, 0] = 1
    for i in range(n):
        if i % 4 < 2:
            x[i, 1 + i % 4] = 1
    sae = SAE(SAEConfig.of(D, D, "relu", coefficient=0.1))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D))
        sae.W_dec.copy_(torch.eye(D))
    sample = Sample(x, about=about)
    found = visaebench.absorption(Case("s", sae.eval(), sample, sample, label="kind"))
    assert found["visaebench.absorption"].n == 4
    assert 0 < found["visaebench.absorption"].value <= 1
