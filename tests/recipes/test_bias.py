"""Bias analysis: a planted direction moves a classifier that leans on it, random ones do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from vision_sae import SAE, SAEConfig, Store, save
from vision_sae.cli.app import app
from vision_sae.errors import ConfigError, DataError, MismatchError, OutputExists, UnknownName
from vision_sae.measures.latents import scan
from vision_sae.naming import Name
from vision_sae.provenance import Provenance
from vision_sae.recipes.bias import Bias, bias, concept_of, turned, write_page
from vision_sae.recipes.bias.analysis import holm
from vision_sae.recipes.bias.classes import classes_of, read_where
from vision_sae.recipes.bias.concept import controls
from vision_sae.recipes.bias.picture import draw_bias
from vision_sae.store import Row, StoreIndex, StoreWriter

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

D, GENDER, N = 40, 0, 120
FROM = Provenance(model="made", fingerprint="up", site="here", tokens="all", data="drawn")


def planted(**options: Any) -> SAE:
    """Its latents are the axes; the first is the gender."""
    sae = SAE(SAEConfig.of(D, D, "relu", **options))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D))
        sae.W_dec.copy_(torch.eye(D))
    sae.provenance = FROM
    return sae.eval()


def world() -> tuple[Tensor, list[dict[str, str]]]:
    """Nurses are mostly women, pilots mostly men, and little else in the vector tells them."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(N, D, generator=draw) * (torch.rand(N, D, generator=draw) < 0.4)
    nurse = torch.arange(N) % 2 == 0
    woman = torch.where(torch.rand(N, generator=draw) < 0.9, nurse, ~nurse)
    x[:, GENDER] = woman * (1 + 0.1 * torch.rand(N, generator=draw))
    about = [
        {"gender": "woman" if w else "man", "kind": "role",
         "job": f"{'woman' if w else 'man'}-{'nurse' if n else 'pilot'}"}
        for w, n in zip(woman.tolist(), nurse.tolist(), strict=True)
    ]  # fmt: skip
    return x, about


def stored(folder: Path, x: Tensor, about: list[dict[str, str]]) -> Store:
    index = StoreIndex(
        provenance=FROM, dtype="float32", width=x.shape[2], tokens_per_image=x.shape[1],
        prefix_tokens=0, grid=None,
    )  # fmt: skip
    writer = StoreWriter(folder, index, shard_bytes=2**20)
    writer.add(x, [Row(i, f"k{i}", a) for i, a in enumerate(about)])
    writer.finish()
    return Store(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    x, about = world()
    return stored(tmp_path_factory.mktemp("bias") / "acts", x[:, None], about)


@pytest.fixture(scope="module")
def found(store: Store) -> Bias:
    return bias(
        planted(), store, label="job", concept="gender:woman", ignore=("man", "woman"), random=25
    )


# ---- editing


@pytest.mark.parametrize("rows", ["none", "constant_norm", "layer_norm"])
def test_turned_sets_a_latent_and_keeps_the_rest(rows: str) -> None:
    sae, x = planted(rows=rows), torch.rand(5, D, generator=torch.Generator().manual_seed(1)) + 1
    before, deviation = sae.encode(x).to_dense(), sae.treated(x)
    moved = turned(sae, x, {3: 2.5, 7: 0.0})
    goal = torch.zeros(5, D)
    goal[:, 3], goal[:, 7] = 2.5 - before[:, 3], -before[:, 7]
    want = x + deviation.undo(deviation.rows + goal) - deviation.undo(deviation.rows)
    torch.testing.assert_close(moved, want)
    if rows == "none":
        now = sae.encode(moved).to_dense()[:, [3, 7]]
        torch.testing.assert_close(now, torch.tensor([[2.5, 0.0]]).expand(5, 2))


def test_rows_that_have_the_value_stay_bit_for_bit() -> None:
    sae, x = planted(rows="layer_norm"), torch.rand(4, D) * 3
    with torch.no_grad():
        value = float(sae.encode(x[:1]).to_dense()[0, 5])
    assert torch.equal(turned(sae, x[:1], {5: value}), x[:1])


def test_edits_that_cannot_be_are_refused() -> None:
    x = torch.rand(2, D)
    with pytest.raises(ConfigError, match=r"latents \[40\] are not among the 40"):
        turned(planted(), x, {40: 1.0})
    with pytest.raises(ConfigError, match="a transcoder writes another site"):
        turned(SAE(SAEConfig.of(D, 8, d_out=D, k=2)), x, {0: 1.0})
    with pytest.raises(DataError, match="width 40"):
        turned(planted(), torch.rand(2, 3), {0: 1.0})


# ---- analysis


def test_a_planted_direction_moves_the_classes_that_lean_on_it(found: Bias) -> None:
    assert list(found.concept.values) == [GENDER] and found.concept.auroc == pytest.approx(1)
    nurse, pilot = found.effects
    assert (nurse.name, pilot.name) == ("nurse", "pilot") and nurse.images == N // 2
    assert nurse.change > 0.3 and pilot.change == pytest.approx(-nurse.change)
    assert nurse.moved and pilot.moved and nurse.control_high < nurse.change
    assert list(nurse.curve) == sorted(nurse.curve) and nurse.curve[2] == nurse.up
    assert found.distance == pytest.approx(nurse.change, abs=0.02)
    assert found.distance_p == pytest.approx(1 / 26) and found.flipped > 0.3
    assert found.accuracy > 0.7 and found.majority == 0.5


def test_a_random_direction_does_not(store: Store) -> None:
    still = bias(planted(), store, label="job", concept="17", ignore=("man", "woman"), random=25)
    assert not any(effect.moved for effect in still.effects) and still.distance_p > 0.05


def test_controls_are_alike_and_others(store: Store) -> None:
    sae = planted()
    seen = scan(sae, store)
    concept = concept_of("gender:woman", seen, store.about, top=2)
    draws = controls(concept, sae, seen, 5)
    assert len(draws) == 5 and all(len(draw) == 2 for draw in draws)
    assert not {i for draw in draws for i in draw} & set(concept.values)
    assert controls(concept, sae, seen, 5) == draws != controls(concept, sae, seen, 5, seed=1)


def test_concepts_by_number_and_by_name(store: Store) -> None:
    seen = scan(planted(), store)
    names = {4: Name(4, "hat", 0.5, "cap", 0.1), 9: Name(9, "hat", 0.4, "cap", 0.1)}
    assert list(concept_of("hat", seen, store.about, names).values) == [4, 9]
    (value,) = concept_of("4", seen, store.about).values.values()
    assert value == pytest.approx(float(seen.codes.of(4)[1].mean()))


def test_words_of_a_label_can_be_ignored() -> None:
    jobs = ["man-cook", "woman cook", "cook", "man", "man-spy"]
    found = classes_of([{"job": job} for job in jobs], "job", ignore=["man", "woman"], least=1)
    assert found.y == ["cook", "cook", "cook", "man", "spy"]
    few = classes_of([{"a": v} for v in "xxyyz"], "a", least=2)
    assert few.images == [0, 1, 2, 3] and few.left_out == {"z": 1}


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# ---- what goes wrong


def test_bad_questions_say_what_is_wrong(store: Store, tmp_path: Path) -> None:
    def ask(sae: SAE | None = None, **options: Any) -> Bias:
        return bias(sae or planted(), store, **{"label": "gender", "concept": "0"} | options)

    with pytest.raises(UnknownName, match="label 'jobs'.*job"):
        ask(label="jobs")
    with pytest.raises(UnknownName, match="gender 'women'.*woman"):
        ask(concept="gender:women")
    with pytest.raises(UnknownName, match="concept 'hat'"):
        ask(concept="hat")
    with pytest.raises(ConfigError, match=r"latents \[99\] fire on none"):
        ask(concept="99")
    with pytest.raises(DataError, match="no image has a gender and kind=x"):
        ask(where={"kind": "x"})
    with pytest.raises(DataError, match="1 of 1 values of kind have 10 images or more"):
        ask(label="kind")
    with pytest.raises(ConfigError, match="at least 1 random latent and 5 images per class"):
        ask(random=0)
    with pytest.raises(ConfigError, match="needs predict_proba"):
        ask(classifier=object())
    with pytest.raises(ConfigError, match="--where takes KEY=VALUE"):
        read_where(["kind"])
    with pytest.raises(DataError, match="0 other latents are live"):
        seen = scan(planted(), store)
        controls(concept_of("gender:woman", seen, store.about, top=40), planted(), seen, 5)
    with pytest.raises(DataError, match="several values per image"):
        classes_of([{"tags": ["a", "b"]}], "tags", least=1)
    other = planted()
    other.provenance = FROM.model_copy(update={"site": "there"})
    with pytest.raises(MismatchError):
        ask(other)
    tokens = stored(tmp_path / "tokens", torch.rand(6, 2, D), [{"a": "x"}] * 6)
    with pytest.raises(DataError, match="this store has 2: extract with --tokens cls or pooled"):
        bias(planted(), tokens, label="a", concept="0")
    few = stored(tmp_path / "few", torch.rand(6, 1, D), [{"a": "x"}] * 3 + [{"a": "y"}] * 3)
    with pytest.raises(DataError, match="a is x on 3 images and something else on 3; 5 of each"):
        concept_of("a:x", scan(planted(), few), few.about)


# ---- what is shown


def test_the_page_and_the_plot(found: Bias, tmp_path: Path) -> None:
    page = write_page(found, tmp_path / "page").read_text("utf-8")
    assert "What “gender:woman” does to “job”" in page and "<svg" in page
    data = json.loads((tmp_path / "page" / "bias.json").read_text("utf-8"))
    assert data["effects"][0]["moved"] and data["effects"][0]["change"] > 0.3
    assert draw_bias(found).count("<circle") == len(found.effects)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("kept")
    with pytest.raises(OutputExists, match=r"already holds something else \(mine.txt\)"):
        write_page(found, tmp_path / "other")
    assert write_page(found, tmp_path / "page").is_file()  # its own page is replaced


@pytest.mark.slow
def test_the_command(store: Store, tmp_path: Path) -> None:
    save(planted(), tmp_path / "sae")
    words = ["bias", tmp_path / "sae", "--acts", store.folder, "--label", "job", "--ignore",
             "man,woman", "--where", "kind=role", "--concept", "gender:woman", "--random", "25",
             "--out", tmp_path / "out"]  # fmt: skip
    got = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert got.exit_code == 0, got.output
    told = json.loads(got.stdout)
    assert told["effects"][0]["name"] == "nurse" and Path(told["page"]).is_file()
    table = CliRunner().invoke(app, [*map(str, words), "--overwrite"])
    assert table.exit_code == 0 and "p against random" in table.stdout
    shown = CliRunner().invoke(app, ["bias", "--help"])
    assert "vision-sae bias sae/ --acts acts/" in shown.stdout
