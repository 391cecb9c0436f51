"""`vision-sae unlearn ...`: each command on a tiny pipeline in a folder, its errors, its help."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer.main
from click.testing import Result
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from vision_sae import checkpoint
from vision_sae.cli.app import app
from vision_sae.errors import ConfigError
from vision_sae.model.adapter import fingerprint, load_adapter
from vision_sae.provenance import Provenance
from vision_sae.recipes import unlearn as recipe
from vision_sae.recipes.unlearn import commands, inputs, measuring, methods, steering, text_layers
from vision_sae.recipes.unlearn.choice import SAEURON, Choice, choice_of
from vision_sae.recipes.unlearn.draw import draw
from vision_sae.recipes.unlearn.plan import Gate, Mode, Plan
from vision_sae.recipes.unlearn.scores import SCORES
from vision_sae.sae import SAE, SAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITE = "mid_block.attentions.0:update"
LATER = "up_blocks.0.attentions.0:update"
PROMPTS = """prompt,seed,object,style
a cat,1,cat,plain
a cat in neon,2,cat,neon
a dog,3,dog,plain
a dog in neon,4,dog,neon
a cow,5,cow,plain
a cow in neon,6,cow,neon
"""
GUIDE = (Path(__file__).parents[2] / "docs" / "unlearn.md").read_text("utf-8")
COMMANDS = ("find", "steer", "apply", "show", "sweep", "evaluate")
Fine = Callable[..., Result]
Refused = Callable[..., str]


class Tiny:
    """A pipeline in a folder, an SAE that says its site, one that does not, and a table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pipeline("sd").save_pretrained(folder / "model")
        self.model = f"diffusers:{folder / 'model'}?steps=3&guidance=3"
        self.table = folder / "prompts.csv"
        self.table.write_text(PROMPTS)
        model = load_adapter(self.model).model
        for name, seed, weights in (("sae", 0, fingerprint(model)), ("foreign", 1, "0" * 16)):
            sae = SAE(SAEConfig.of(16, 48, "relu"), seed=seed)
            told = {"site": SITE, "tokens": "all", "data": "prompts.csv", "half": "cond"}
            sae.provenance = Provenance(model="tiny", fingerprint=weights, **told)  # type: ignore[arg-type]
            checkpoint.save(sae, folder / name)
        checkpoint.save(SAE(SAEConfig.of(16, 48, "relu"), seed=2), folder / "silent")

    def asks(self, *more: object) -> list[object]:
        """What find needs, with an edit that any latents can do."""
        given = ["--model", self.model, "--sae", self.folder / "sae", "--prompts", self.table]
        return [*given, "--concept", "object:cat", "--mode", "scale", "--count", 5, *more]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plan(tiny: Tiny, fine: Fine) -> Path:
    """A plan that changes every picture; tests must not write into it."""
    out = tiny.folder / "plan"
    fine("unlearn", "find", *tiny.asks("--where", "everywhere"), "--out", out)
    return out


def picture(path: Path) -> Tensor:
    return pil_to_tensor(Image.open(path))


# ---- find


def test_find_writes_a_plan_with_the_settings_given(tiny: Tiny, fine: Fine, tmp_path: Path) -> None:
    flags = ["--multiplier", -2, "--strength", 0.5, "--half", "both", "--window", "200:800"]
    flags += ["--where", "image+threshold", "--score", "difference", "--json"]
    result = fine("unlearn", "find", *tiny.asks(*flags), "--out", tmp_path / "plan")
    made = Plan.load(tmp_path / "plan")
    (edit,) = made.edits
    assert (made.concept, edit.site, edit.mode, edit.half) == ("object:cat", SITE, "scale", "both")
    assert (edit.multiplier, edit.window, edit.where) == (-2, (200, 800), "image+threshold")
    assert set(edit.strengths.unique().tolist()) == {0.0, 0.5}  # 0: watched by the gate alone
    assert json.loads(result.stdout) == json.loads(json.dumps(made.describe()))


def test_find_tells_the_latents_it_chose(tiny: Tiny, fine: Fine, tmp_path: Path) -> None:
    where = ["--where", "everywhere", "--out", tmp_path / "plan"]
    result = fine("unlearn", "find", *tiny.asks(*where))
    (edit,) = Plan.load(tmp_path / "plan").edits
    assert len(edit.latents) == 5
    line = next(line for line in result.stdout.splitlines() if SITE in line)
    assert all(str(latent) in line for latent in edit.latents.tolist())


def test_find_gives_the_plan_of_the_python_call(tiny: Tiny, plan: Path) -> None:
    saes = {SITE: checkpoint.load(tiny.folder / "sae")}
    rows = recipe.read(str(tiny.table))
    made = recipe.find(
        load_adapter(tiny.model), saes, rows, "object:cat", mode="scale", count=5,
        where="everywhere",
    )  # fmt: skip
    (mine,), (theirs,) = made.edits, Plan.load(plan).edits
    assert torch.equal(mine.latents, theirs.latents)
    torch.testing.assert_close(mine.mean, theirs.mean)


def test_find_refuses_a_folder_with_a_plan(
    tiny: Tiny, fine: Fine, refused: Refused, tmp_path: Path
) -> None:
    fine("unlearn", "find", *tiny.asks("--out", tmp_path / "plan"))
    error = refused("unlearn", "find", *tiny.asks("--out", tmp_path / "plan"))
    assert error == f"{tmp_path / 'plan'} holds a plan; choose another folder or pass --overwrite"
    again = tiny.asks("--concept", "style:neon", "--out", tmp_path / "plan", "--overwrite")
    fine("unlearn", "find", *again)
    assert Plan.load(tmp_path / "plan").concept == "style:neon"


def test_an_sae_can_be_given_with_its_site(tiny: Tiny, fine: Fine, tmp_path: Path) -> None:
    more = ["--sae", f"{LATER}={tiny.folder / 'silent'}", "--out", tmp_path / "plan"]
    fine("unlearn", "find", *tiny.asks(*more))
    assert Plan.load(tmp_path / "plan").sites == (SITE, LATER)


def test_an_sae_without_a_site_is_refused(tiny: Tiny, refused: Refused, tmp_path: Path) -> None:
    silent = tiny.folder / "silent"
    error = refused("unlearn", "find", *tiny.asks("--sae", silent, "--out", tmp_path / "plan"))
    assert error == f"{silent} does not say at which site it was trained: pass SITE={silent}"


def test_an_sae_of_another_model_is_refused(tiny: Tiny, refused: Refused, tmp_path: Path) -> None:
    foreign = tiny.folder / "foreign"
    error = refused("unlearn", "find", *tiny.asks("--sae", foreign, "--out", tmp_path / "plan"))
    assert str(foreign) in error and "was trained on tiny, whose weights differ" in error


def test_another_model_needs_prompts_and_saes(tiny: Tiny, refused: Refused, tmp_path: Path) -> None:
    given = ["--model", tiny.model, "--concept", "object:cat", "--out", tmp_path / "plan"]
    assert "pass --prompts TABLE" in refused("unlearn", "find", *given)
    error = refused("unlearn", "find", *given, "--prompts", tiny.table)
    assert error.endswith("is known: pass --sae FOLDER, as trained at its sites")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--concept", "object:cow boy"], "no prompts of concept 'object:cow boy'"),
        (["--concept", "cat"], "a concept is FACTOR:VALUE, as in object:pizza; got 'cat'"),
        (["--window", "200-800"], "--window takes FROM:TO in timesteps, as 200:800; got '200-800'"),
        (["--window", "800:200"], "a window is (from, to) in timesteps, from <= to"),
        (["--where", "nowhere"], "gate must be one of everywhere, threshold, image, mask"),
        (["--percentile", "100"], "percentile must be from 0 to below 100; got 100"),
        (["--count", "0"], "count, detectors and rounds must be at least 1; got 0"),
    ],
)
def test_find_says_what_is_wrong(
    tiny: Tiny, refused: Refused, tmp_path: Path, flags: list[str], said: str
) -> None:
    assert said in refused("unlearn", "find", *tiny.asks(*flags, "--out", tmp_path / "plan"))


def test_tuning_needs_a_judge_and_known_settings(
    tiny: Tiny, refused: Refused, tmp_path: Path
) -> None:
    def error(*more: object) -> str:
        return refused("unlearn", "find", *tiny.asks("--out", tmp_path / "plan", *more))

    assert f"who says what {tiny.model} has drawn? pass --judge" in error("--tune", "count=1,2")
    assert "no setting of a choice 'counts'; did you mean count" in error("--tune", "counts=1,2")
    told = error("--tune", "count=1,2", "--judge", tiny.model)
    assert "embeds no images and texts in one space" in told


def test_any_model_is_tuned_by_a_clip(tiny: Tiny, fine: Fine, tmp_path: Path) -> None:
    more = ["--tune", "count=1,2", "--judge", "toy", "--batch", 3, "--out", tmp_path / "plan"]
    result = fine("unlearn", "find", *tiny.asks(*more, "--where", "everywhere"))
    assert "tuned on validation pictures" in result.stdout
    assert "the judge on the same pictures, nothing removed: UA" in result.stderr
    assert len(Plan.load(tmp_path / "plan").edits[0].latents) in (1, 2)


def test_a_table_without_factors_is_refused(tiny: Tiny, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("prompt,seed\na cat,1\n")
    more = ["--prompts", tmp_path / "bare.csv", "--out", tmp_path / "plan"]
    error = refused("unlearn", "find", *tiny.asks(*more))
    assert "concepts are columns beside prompt, seed and guidance" in error


def choice(concept: str = "object:pizza", compat: str | None = None, **settings: Any) -> Choice:
    return choice_of(settings, compat, inputs.usual_for(concept))


def test_settings_are_laid_over_the_usual_ones() -> None:
    assert choice() == methods.USUAL["object"]
    assert choice("style:neon").towards == "style:plain"
    assert choice(count=7) == Choice(**(vars(methods.USUAL["object"]) | {"count": 7}))
    assert choice(compat="saeuron") == SAEURON
    assert choice(mode="zero") == Choice(mode="zero")  # nothing of transport's


def test_a_window_is_two_timesteps() -> None:
    assert inputs.window_of("200:800") == (200, 800)
    with pytest.raises(ConfigError, match="FROM:TO in timesteps, as 200:800; got '200:'"):
        inputs.window_of("200:")


# ---- steer


def test_steer_writes_a_plan_that_apply_draws_with(
    tiny: Tiny, fine: Fine, refused: Refused, tmp_path: Path
) -> None:
    given = ["--model", tiny.model, "--prompts", tiny.table, "--concept", "object:cat"]
    asks = [*given, "--strength", 3, "--out", tmp_path / "away"]
    result = fine("unlearn", "steer", *asks)
    assert "away from 'cat'" in result.stdout
    made = Plan.load(tmp_path / "away")
    (edit,) = made.text
    assert (made.concept, made.edits, edit.component, edit.strength) == (
        "object:cat", (), "text_encoder", 3,
    )  # fmt: skip
    assert "holds a plan" in refused("unlearn", "steer", *asks)
    drawn = ["--model", tiny.model, "--prompt", "a cat", "--plain", "--out", tmp_path / "drawn"]
    fine("unlearn", "apply", tmp_path / "away", *drawn)
    (plain,) = (tmp_path / "drawn").glob("*-plain.png")
    edited = plain.with_name(plain.name.replace("-plain", ""))
    assert not torch.equal(picture(plain), picture(edited))


def test_steer_with_an_sae_and_a_layer_of_ones_own(
    tiny: Tiny, fine: Fine, refused: Refused, tmp_path: Path
) -> None:
    given = ["--model", tiny.model, "--prompts", tiny.table, "--concept", "object:cat"]
    steered = ["unlearn", "steer", *given, "--layer", "text_encoder=1"]
    pipe = load_adapter(tiny.model).pipe  # type: ignore[attr-defined]
    width = pipe.text_encoder.config.hidden_size
    for d, name in ((width, "fits"), (width + 1, "wide")):
        checkpoint.save(SAE(SAEConfig.of(d, 2 * d, "topk", k=2)), tmp_path / name)
    fine(*steered, "--sae", tmp_path / "fits", "--out", tmp_path / "plan")
    (edit,) = Plan.load(tmp_path / "plan").text
    sae = checkpoint.load(tmp_path / "fits")
    wanted = text_layers.steering_vector(pipe, sae, "cat", {"text_encoder": 1})
    assert edit.layer == 1 and torch.allclose(edit.vector, wanted, atol=1e-5)
    wrong = refused(*steered, "--sae", tmp_path / "wide", "--out", tmp_path / "none")
    assert f"reads width {width + 1}" in wrong
    assert "layer 9 was asked" in refused(*steered[:-1], "9", "--out", tmp_path / "none")


def test_layers_are_numbers_or_named() -> None:
    assert steering.layers_from([]) is None and steering.layers_from(["9"]) == 9
    pair = steering.layers_from(["text_encoder=9", "text_encoder_2=28"])
    assert pair == {"text_encoder": 9, "text_encoder_2": 28}
    for wrong in (["nine"], ["9", "10"], ["a=1", "a=2"], ["a=1", "9"]):
        with pytest.raises(ConfigError, match=f"--layer takes a number.*got {' '.join(wrong)}"):
            steering.layers_from(wrong)


# ---- apply and show


def test_apply_draws_what_the_python_call_draws(
    tiny: Tiny, plan: Path, fine: Fine, tmp_path: Path
) -> None:
    asked = ["--prompt", "a cat, in neon", "--prompt", "a dog", "--seed", 4, "--steps", 2]
    given = ["--model", tiny.model, *asked, "--plain", "--json"]
    result = fine("unlearn", "apply", plan, *given, "--out", tmp_path / "out")
    index = json.loads(result.stdout)
    assert [row["file"] for row in index] == ["a-cat-in-neon-4.png", "a-dog-5.png"]
    assert [row["plain"] for row in index] == ["a-cat-in-neon-4-plain.png", "a-dog-5-plain.png"]
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == {"pictures": index}

    pipe: Any = load_adapter(tiny.model).pipe  # type: ignore[attr-defined]
    prompts, seeds = ["a cat, in neon", "a dog"], [4, 5]
    plain = draw(pipe, prompts, seeds, steps=2, guidance=3.0)
    with recipe.unlearn(pipe, plan):
        edited = draw(pipe, prompts, seeds, steps=2, guidance=3.0)
    assert not torch.equal(plain, edited)
    for i, row in enumerate(index):
        assert torch.equal(picture(tmp_path / "out" / row["plain"]), plain[i])
        assert torch.equal(picture(tmp_path / "out" / row["file"]), edited[i])


def test_a_plan_of_strength_0_changes_no_pixel(
    tiny: Tiny, plan: Path, fine: Fine, tmp_path: Path
) -> None:
    Plan.load(plan).scaled(0).save(tmp_path / "nothing")
    given = ["--model", tiny.model, "--prompt", "a cat", "--plain", "--out", tmp_path / "out"]
    fine("unlearn", "apply", tmp_path / "nothing", *given)
    edited, plain = (picture(tmp_path / "out" / f"a-cat-0{end}.png") for end in ("", "-plain"))
    assert torch.equal(edited, plain)


def test_several_plans_are_used_together(
    tiny: Tiny, plan: Path, fine: Fine, tmp_path: Path
) -> None:
    other = ["--concept", "style:neon", "--where", "everywhere", "--out", tmp_path / "neon"]
    fine("unlearn", "find", *tiny.asks(*other))
    given = ["--model", tiny.model, "--prompt", "a cat", "--json", "--out", tmp_path / "out"]
    (row,) = json.loads(fine("unlearn", "apply", plan, tmp_path / "neon", *given).stdout)
    assert row["removed"] == ["object:cat", "style:neon"] and "plain" not in row


def test_apply_refuses_what_is_no_plan(tiny: Tiny, refused: Refused, tmp_path: Path) -> None:
    given = ["--model", tiny.model, "--prompt", "a cat", "--out", tmp_path / "out"]
    error = refused("unlearn", "apply", tiny.folder / "sae", *given)
    assert error.startswith(f"{tiny.folder / 'sae'} is no plan (plan.json and plan.safetensors)")


def test_apply_refuses_the_plan_of_another_model(
    tiny: Tiny, plan: Path, refused: Refused, tmp_path: Path
) -> None:
    given = ["--prompt", "a cat", "--out", tmp_path / "out"]
    error = refused("unlearn", "apply", plan, *given)  # emoji-diffusion
    assert "the plan for 'object:cat' was made for" in error and "make a plan with this" in error


def test_apply_leaves_other_files_alone(
    tiny: Tiny, plan: Path, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    given = ["--model", tiny.model, "--prompt", "a cat", "--out", tmp_path]
    error = refused("unlearn", "apply", plan, *given)
    assert "already holds something else (thesis.txt)" in error


def test_show_writes_a_page(tiny: Tiny, plan: Path, fine: Fine, tmp_path: Path) -> None:
    given = ["--model", tiny.model, "--prompts", tiny.table, "--steps", 2, "--judge", "toy"]
    told = json.loads(
        fine("unlearn", "show", plan, *given, "--json", "--out", tmp_path / "page").stdout
    )
    page = (tmp_path / "page" / "index.html").read_text()
    assert told["page"] == str(tmp_path / "page" / "index.html")
    assert told["removed"] == ["object:cat"]
    rows = told["pictures"]
    assert [row["seed"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["asks"] == {"object": "cat", "style": "plain"} and rows[0]["change"] > 0
    for name, count in told["counts"].items():
        assert name in page and count in page
    assert all(row["edited"]["object"] in page for row in rows)
    assert "Without object:cat" in page and "a dog in neon" in page
    assert "http://" not in page and "https://" not in page


def test_show_needs_prompts_for_another_model(
    tiny: Tiny, plan: Path, refused: Refused, tmp_path: Path
) -> None:
    error = refused("unlearn", "show", plan, "--model", tiny.model, "--out", tmp_path / "page")
    assert error == f"what shall {tiny.model} draw? pass --prompts TABLE"


def test_the_usual_page_shows_both_kinds() -> None:
    rows = commands._shown("emoji-diffusion", None, ["object:pizza"])
    own = [row.labels["object"] == "pizza" for row in rows]
    assert own == [True] * 8 + [False] * 8


# ---- sweep and evaluate


def test_sweep_refuses_an_unknown_concept(refused: Refused, tmp_path: Path) -> None:
    error = refused("unlearn", "sweep", "--concept", "object:piza", "--out", tmp_path / "page")
    assert "no prompts of concept 'object:piza'" in error and "object:pizza" in error


def test_sweep_takes_any_model_and_a_clip(tiny: Tiny, fine: Fine, tmp_path: Path) -> None:
    given = ["--model", tiny.model, "--sae", tiny.folder / "sae", "--prompts", tiny.table]
    given += ["--judge", "toy", "--concept", "style:neon", "--windows", 2, "--pictures", 3]
    result = fine("unlearn", "sweep", *given, "--json", "--out", tmp_path / "where")
    rows = json.loads(result.stdout)
    assert [(r["site"], r["from"], r["to"]) for r in rows] == [
        (SITE, 0, 999), (SITE, 500, 999), (SITE, 0, 499),
    ]  # fmt: skip
    assert all({"UA", "IRA", "CRA"} < set(row) for row in rows)
    assert "style:neon" in (tmp_path / "where" / "index.html").read_text()


def test_evaluate_measures_plans_on_their_own_concepts(
    plan: Path, fine: Fine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def measured(out: Path, **given: Any) -> list[Any]:
        asked.update(given)
        return []

    monkeypatch.setattr(measuring, "run_benchmark", measured)
    result = fine("unlearn", "evaluate", "--plan", plan, "--quick", "--json", "--out", tmp_path)
    assert json.loads(result.stdout) == []
    assert (asked["quick"], asked["concepts"]) == (True, ["object:cat"])
    (name,) = asked["methods"]
    assert name.startswith("plan")
    pipe = pipeline("sd")
    before = draw(pipe, ["a cat"], [0], steps=2)
    with asked["more"][name]().fit(pipe, ["object:cat"])(pipe) as run:
        assert not torch.equal(draw(run, ["a cat"], [0], steps=2), before)


def test_evaluate_refuses_a_concept_without_a_plan(
    plan: Path, refused: Refused, tmp_path: Path
) -> None:
    given = ["--plan", plan, "--concept", "object:dog", "--out", tmp_path]
    assert refused("unlearn", "evaluate", *given) == "no plan is given for object:dog"


def test_evaluate_refuses_an_unknown_method(refused: Refused, tmp_path: Path) -> None:
    error = refused("unlearn", "evaluate", "--method", "negative promt", "--out", tmp_path)
    assert "no method 'negative promt'; did you mean negative prompt" in error


# ---- help, and the public names


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_has_an_example(fine: Fine, name: str) -> None:
    assert f"Example: vision-sae unlearn {name}" in " ".join(
        fine("unlearn", name, "--help").stdout.split()
    )


def test_the_public_names_are_what_they_say() -> None:
    assert all(callable(getattr(recipe, name)) for name in recipe.__all__ if name != "Removal")
    assert {"unlearn", "find", "observe", "plan_for", "Plan", "Choice"} <= set(recipe.__all__)


@pytest.mark.slow
def test_the_public_names_need_no_optional_library() -> None:
    hidden = ["diffusers", "transformers", "open_clip", "torchvision", "PIL", "jinja2", "sklearn"]
    hidden += ["scipy", "typer", "rich"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "from vision_sae.recipes.unlearn import Plan, assign, find, show, steer_text, unlearn"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# ---- the guide


def test_the_guides_commands_and_options_exist() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [ln for ln in GUIDE.replace("\\\n", " ").splitlines() if ln.startswith("vision-sae ")]
    for words in map(shlex.split, lines):
        command = known[words[1]]
        if words[1] == "unlearn":
            command = command.commands[words[2]]
        options = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= options, words
    assert {words.split()[2] for words in lines if words.split()[1] == "unlearn"} == set(COMMANDS)


def test_the_guides_modes_gates_and_scores_are_all_there_are() -> None:
    for names in (get_args(Mode), get_args(Gate), SCORES):
        assert all(f"| `{name}` |" in GUIDE for name in names)
    rows = re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)
    assert set(rows) == {*get_args(Mode), *get_args(Gate), *SCORES}


def test_the_guides_imports_work() -> None:
    lines = re.findall(r"^from vision_sae.*$", GUIDE, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        exec(line, {})


# ---- the embedded model


def few_prompts(folder: Path) -> Path:
    """Pizzas and frogs in three looks, twice."""
    from vision_sae.assets.vocabulary import ask

    pairs = [(o, s) for o in ("pizza", "frog") for s in ("", "neon", "sepia")] * 2
    rows = [f"{ask(o, s)},{i},{o},{s or 'plain'}" for i, (o, s) in enumerate(pairs)]
    table = folder / "prompts.csv"
    table.write_text("\n".join(["prompt,seed,object,style", *rows]))
    return table


@pytest.mark.slow
def test_tuning_keeps_what_did_best_on_validation_pictures(fine: Fine, tmp_path: Path) -> None:
    """Strength 0 removes nothing, so 1.15 must win over it."""
    table = few_prompts(tmp_path)
    asked = ["--concept", "object:pizza", "--prompts", table, "--out", tmp_path / "plan"]
    tuned = ["--mode", "zero", "--strength", 0, "--tune", "strength=0,1.15", "--json"]
    told = json.loads(fine("unlearn", "find", *asked, *tuned).stdout)
    assert told["concept"] == "object:pizza"
    edits = Plan.load(tmp_path / "plan").edits
    assert [float(edit.strengths.max()) for edit in edits] == pytest.approx([1.15] * 3)


@pytest.mark.slow
def test_a_pizza_goes_from_the_embedded_model(fine: Fine, tmp_path: Path) -> None:
    """find on few prompts, then pictures and a page: no pizza is left, and the frog stays."""
    from vision_sae.assets.judge import Judge

    table, plan = few_prompts(tmp_path), tmp_path / "plan"
    fine("unlearn", "find", "--concept", "object:pizza", "--prompts", table, "--out", plan)
    prompts = ["a pizza", "a pizza in neon style", "a pizza in sepia style", "a frog"]
    asked = [part for text in prompts for part in ("--prompt", text)]
    out = tmp_path / "out"
    index = json.loads(
        fine("unlearn", "apply", plan, *asked, "--seed", 100, "--out", out, "--json").stdout
    )
    pictures = torch.stack([picture(out / row["file"]) for row in index]).float() / 255
    judge = Judge.load()
    read = [judge.objects[i] for i in judge(pictures).object.argmax(1).tolist()]
    assert "pizza" not in read[:3] and read[3] == "frog"
    fine("unlearn", "show", plan, "--prompts", table, "--out", tmp_path / "page")
    assert "pictures read as object:pizza" in (tmp_path / "page" / "index.html").read_text()
