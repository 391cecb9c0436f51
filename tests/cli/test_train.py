"""`train` with every kind of setting, transcoders, fine-tuning, `families`, `convert`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from vision_sae import checkpoint, families, interop

Fine = Callable[..., Result]
Refused = Callable[..., str]


def train(toy: Path, out: Path, *more: object) -> list[Any]:
    sizes = ["--steps", 12, "--batch-size", 32, "--expansion", 2]
    return ["train", "--acts", toy / "acts", "--out", out, *sizes, *more]


# ---- settings


@pytest.mark.parametrize("family", list(families.OURS))
def test_every_family_trains_with_no_other_setting(
    fine: Fine, toy: Path, tmp_path: Path, family: str
) -> None:
    fine(*train(toy, tmp_path / "sae", "--family", family))
    sae = checkpoint.load(tmp_path / "sae")
    assert sae.config.sparsity.kind == family
    assert getattr(sae.config.sparsity, "k", 16) == 16


def test_settings_of_all_kinds(fine: Fine, toy: Path, tmp_path: Path) -> None:
    options = ["mode=target", "target=6", "nest.ks=[2,4]", "rows=layer_norm", "atoms=free"]
    options += ["dead=resample", "dead.times=2", "ema=0.9", "pieces=2", "dead-after=64"]
    given = [part for option in options for part in ("--set", option)]
    fine(*train(toy, tmp_path / "sae", "--family", "jumprelu", *given))
    saved = checkpoint.read_config(tmp_path / "sae")
    assert saved.sae.model_dump()["sparsity"]["target"] == 6
    assert saved.sae.nest is not None and saved.sae.nest.model_dump()["ks"] == (2, 4)
    assert (saved.sae.rows, saved.sae.atoms) == ("layer_norm", "free")
    assert saved.training["dead"]["kind"] == "resample" and saved.training["dead"]["times"] == 2
    assert (saved.training["ema"], saved.training["pieces"]) == (0.9, 2)
    assert saved.training["dead_after"] == 64


def test_flags_win_over_a_file(fine: Fine, toy: Path, tmp_path: Path) -> None:
    settings = {"family": "batchtopk", "k": 3, "nest": "prefix", "lr": 1e-3, "steps": 99}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    more = ["--config", tmp_path / "settings.json", "--k", 5, "--set", "lr=2e-3"]
    fine(*train(toy, tmp_path / "sae", *more))
    saved = checkpoint.read_config(tmp_path / "sae")
    assert (saved.sae.sparsity.kind, saved.sae.sparsity.k) == ("batchtopk", 5)  # type: ignore[attr-defined]
    assert saved.training["steps"] == 12 and saved.training["lr"] == 2e-3
    assert saved.sae.nest is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "coefficent=3"], "no setting 'coefficent'; did you mean coefficient (relu"),
        (["--set", "coefficient=3"], "coefficient is a setting of relu, panneal, jumprelu and "),
        (["--set", "qqqq=3"], "no setting 'qqqq'; `vision-sae families` lists all"),
        (["--set", "stepz=3"], "did you mean steps (training)?"),
        (["--set", "atom=free"], "did you mean atoms (every SAE)"),
        (["--set", "atoms"], "--set takes NAME=VALUE; got 'atoms'"),
        (["--set", "atoms=fre"], "atoms: Input should be 'unit' or 'free'; got 'fre'"),
        (["--set", "nest.kz=[2]"], "no setting nest.kz; nest may be prefix (reduction, shares)"),
        (["--set", "dead.weight=2"], "set dead to auxk or ghost or preact"),
        (["--set", "k=4", "--k", 5], "k is given twice: 5 and 4"),
        (["--family", "tokp"], "no family 'tokp'; there are: topk, batchtopk"),
        (["--family", "relu", "--k", 4], "k is a setting of topk, batchtopk"),
        (["--centre", "middle"], "centre: Input should be 'median', 'mean' or 'zero'"),
        (["--config", "nowhere.json"], "nowhere.json cannot be read: No such file"),
        (
            ["--set", "tied=true", "--set", "dictionary=archetypal"],
            "dictionary has tied=False",
        ),
    ],
)
def test_settings_that_cannot_be(
    refused: Refused, toy: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    assert message in refused(*train(toy, tmp_path / "sae", *options))
    assert not (tmp_path / "sae").exists()


def test_a_file_that_holds_no_settings(refused: Refused, toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    for text, message in (("{", "is not JSON"), ("[]", "must hold a JSON object")):
        path.write_text(text)
        assert message in refused(*train(toy, tmp_path / "sae", "--config", path))


def test_families_as_a_table_and_as_json(fine: Fine, refused: Refused) -> None:
    shown = fine("families").stdout
    assert all(name in shown for name in (*families.OURS, "every SAE", "training", "bandwidth"))
    found = json.loads(fine("families", "--json").stdout)
    assert found["jumprelu"]["settings"]["mode"]["values"] == "step | tanh | target"
    assert found["topk"]["settings"]["k"]["default"] == 16
    assert found["training"]["settings"]["clip"]["about"]
    assert "bandwidth" not in fine("families", "relu").stdout
    assert "no family 'nope'; there are" in refused("families", "nope")


# ---- transcoders, held-out rows, fine-tuning


def test_a_transcoder_from_training_to_report(
    fine: Fine, refused: Refused, toy: Path, tmp_path: Path
) -> None:
    sae = tmp_path / "sae"
    fine(*train(toy, sae, "--targets", toy / "later", "--skip", "--k", 4))
    config = checkpoint.load(sae).config
    assert (config.d_out, config.skip) == (24, True)
    numbers = json.loads(fine("eval", sae, "--json").stdout)
    assert numbers["rows"] == 16 * 16 and numbers["fvu"] > 0
    fine("report", sae, "--out", tmp_path / "report")
    assert "hold other images" in refused("eval", sae, "--targets", toy / "other_site")


def test_a_transcoder_is_validated_on_pairs(fine: Fine, toy: Path, tmp_path: Path) -> None:
    held_out = ["--validate-on", toy / "held_out", "--validate-targets", toy / "other_site"]
    settings = ["--k", 4, "--set", "validate_every=2", "--set", "patience=1", "--lr", 10]
    arguments = train(toy, tmp_path / "sae", "--targets", toy / "later", *held_out)
    fine(*arguments, *settings, "--steps", 400)
    log = (tmp_path / "sae" / "metrics.jsonl").read_text().splitlines()
    assert len(log) < 30
    assert checkpoint.read_config(tmp_path / "sae").training["validation_targets"] == str(
        toy / "other_site"
    )


def test_targets_that_do_not_belong(refused: Refused, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "sae"
    message = refused(*train(toy, out, "--targets", toy / "cls"))
    assert "has 16 tokens per image, the targets" in message and "have 1" in message
    assert "hold other images" in refused(*train(toy, out, "--targets", toy / "held_out"))
    assert "skip is for transcoders" in refused(*train(toy, out, "--skip"))
    more = ["--targets", toy / "later", "--validate-on", toy / "held_out"]
    assert "validation targets are for" in refused(*train(toy, out, *more))
    more += ["--validate-targets", toy / "held_out"]
    assert "cannot validate a training on" in refused(*train(toy, out, *more))
    assert not out.exists()


def test_held_out_rows_stop_a_training(fine: Fine, toy: Path, tmp_path: Path) -> None:
    settings = ["--set", "validate_every=2", "--set", "patience=1", "--lr", 10, "--steps", 400]
    arguments = train(toy, tmp_path / "sae", "--validate-on", toy / "held_out", "--k", 4)
    fine(*arguments, *settings)
    log = (tmp_path / "sae" / "metrics.jsonl").read_text().splitlines()
    assert len(log) < 30
    record = checkpoint.read_config(tmp_path / "sae").training
    assert record["validated_on"] == str(toy / "held_out")


def test_rows_of_another_site_cannot_validate(refused: Refused, toy: Path, tmp_path: Path) -> None:
    message = refused(*train(toy, tmp_path / "sae", "--validate-on", toy / "other_site"))
    assert "cannot validate" in message and "site 'blocks.0' against 'blocks.1'" in message


def test_a_training_that_goes_on_from_an_sae(
    fine: Fine, refused: Refused, toy: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    fine(*train(toy, first, "--k", 4))
    command = ["train", "--acts", toy / "acts", "--from", first, "--out", second, "--steps", 5]
    assert "so it takes no expansion" in refused(*command, "--expansion", 4)
    assert "so it takes no tied" in refused(*command, "--set", "tied=true")
    assert "k must lie in 1..48" in refused(*command, "--k", 49)
    assert "holds no SAE" in refused(*command, "--from", toy)
    assert not second.exists()
    fine(*command, "--k", 6, "--set", "batch_size=32")
    sae = checkpoint.load(second)
    assert sae.config.sparsity.k == 6 and sae.config.s == 48  # type: ignore[attr-defined]
    assert checkpoint.read_config(second).training["from"] == str(first)


def test_a_series_of_checkpoints_goes_with_overwrite(fine: Fine, toy: Path, tmp_path: Path) -> None:
    fine(*train(toy, tmp_path / "sae", "--k", 4, "--set", "series=2"))
    assert (tmp_path / "sae" / "series" / "step-0000010" / "config.json").exists()
    fine(*train(toy, tmp_path / "sae", "--k", 4, "--overwrite"))
    assert not list((tmp_path / "sae" / "series").iterdir())


# ---- other libraries


@pytest.fixture(scope="module")
def made(fine: Fine, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    fine(*train(toy, folder / "sae", "--k", 4))
    fine("convert", folder / "sae", folder / "lens")
    return folder


def test_convert_there_and_back(fine: Fine, made: Path, tmp_path: Path) -> None:
    assert interop.detect(made / "lens") == "saelens"
    result = fine("convert", made / "lens", tmp_path / "ours", "--to", "vision_sae", "--json")
    found = json.loads(result.stdout)
    assert (found["from"], found["to"]) == ("saelens", "vision_sae")
    assert found["config"]["s"] == 48
    assert f"48 latents, from saelens to vision_sae, in {tmp_path / 'ours'}" in result.stderr
    assert checkpoint.load(tmp_path / "ours").config.d == 24


def test_convert_says_what_is_wrong(refused: Refused, made: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused("convert", tmp_path / "no", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "holds no SAE" in refused("convert", tmp_path / "empty", tmp_path / "out")
    message = refused("convert", made / "sae", tmp_path / "out", "--from", "saelen")
    assert "no format 'saelen'; did you mean saelens" in message
    assert "already holds something else" in refused("convert", made / "sae", made / "lens")


def test_an_sae_of_another_library_is_read_everywhere(
    fine: Fine, refused: Refused, toy: Path, made: Path, tmp_path: Path
) -> None:
    ours, theirs = (
        json.loads(fine("eval", made / name, "--acts", toy / "acts", "--json").stdout)
        for name in ("sae", "lens")
    )
    assert ours["fvu"] == pytest.approx(theirs["fvu"]) and ours["l0"] == theirs["l0"]
    assert "does not say which acts it was trained on; pass --acts" in refused(
        "eval", made / "lens"
    )
    (tmp_path / "words.txt").write_text("red\ngreen\n")
    folder = tmp_path / "lens"
    fine("convert", made / "sae", folder)
    acts = ["--acts", toy / "acts"]
    fine("name", folder, *acts, "--vocabulary", tmp_path / "words.txt")
    fine("report", folder, *acts, "--out", tmp_path / "report")
    assert "red" in (tmp_path / "report" / "index.html").read_text()
    fine("train", *acts, "--from", made / "lens", "--out", tmp_path / "more", "--steps", 3)


def test_eval_prints_every_metric(fine: Fine, toy: Path, made: Path) -> None:
    from dataclasses import fields

    from vision_sae.measures.metrics import Metrics

    numbers = json.loads(fine("eval", made / "sae", "--acts", toy / "acts", "--json").stdout)
    assert {field.name for field in fields(Metrics)} <= set(numbers)
