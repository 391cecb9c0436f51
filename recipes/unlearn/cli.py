"""`vision-sae unlearn ...`: the options; commands.py and measuring.py do what they ask for."""

from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.cli import show
from vision_sae.cli.options import Json, Overwrite, given_only, grid_from

app = typer.Typer(
    name="unlearn", no_args_is_help=True, rich_markup_mode="markdown",
    help="Remove a concept while a text-to-image model samples.",
)  # fmt: skip

EMBEDDED = "emoji-diffusion"
Model = Annotated[
    str,
    typer.Option(help="emoji-diffusion, or 'diffusers:FOLDER?steps=50&guidance=7.5' of your own."),
]
Concept = Annotated[str, typer.Option(help="FACTOR:VALUE, as object:pizza or style:neon.")]
Saes = Annotated[
    list[str] | None,
    typer.Option(
        "--sae",
        help="A folder of an SAE, or SITE=FOLDER; may be given many times. Default: the embedded.",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        help="A table (.csv, .tsv, .jsonl) of prompts whose other columns are factors: object, "
        "style. Default: every pair that emoji-diffusion knows."
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="A model that embeds images and texts and reads the pictures by the table's words, "
        "as open_clip:ViT-B-32/laion2b_s34b_b79k. Default for emoji-diffusion: its own judge."
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch", min=1, help="Pictures at a time. Default: 64 for emoji-diffusion, 4 for others."
    ),
]
PlanFolders = Annotated[list[Path], typer.Argument(help="Folders that find has written.")]
Out = Annotated[Path, typer.Option(help="The folder to write to.")]


class Score(StrEnum):
    saeuron = "saeuron"
    difference = "difference"
    shift = "shift"
    attribution = "attribution"
    selective = "selective"


class Mode(Enum):
    transport = "transport"
    replace = "replace"
    multiple = "multiple"
    scale = "scale"
    clamp = "clamp"
    zero = "zero"
    patches = "patches"


class Reads(StrEnum):
    codes = "codes"
    activations = "activations"


class Half(StrEnum):
    cond = "cond"
    uncond = "uncond"
    both = "both"


class Compat(StrEnum):
    saeuron = "saeuron"


def choice(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Choice", show_default=False)


@app.command()
def find(
    concept: Concept,
    out: Out,
    model: Model = EMBEDDED,
    sae: Saes = None,
    prompts: Prompts = None,
    mode: Annotated[Mode | None, choice("What is done. Default: transport.")] = None,
    towards: Annotated[
        str | None, choice("Replace by this concept, or by the nearest. Default: nearest.")
    ] = None,
    reads: Annotated[Reads | None, choice("What transport reads. Default: codes.")] = None,
    score: Annotated[Score | None, choice("How latents are ranked. Default: shift.")] = None,
    count: Annotated[int | None, choice("How many latents per site. Default: 200.")] = None,
    percentile: Annotated[
        float | None, choice("In place of a count: those above this percentile.")
    ] = None,
    per_step: Annotated[bool | None, choice("Choose anew at each timestep.", "--per-step")] = None,
    where: Annotated[
        str | None,
        choice("everywhere, threshold, image, mask, or several joined by +. Default: image."),
    ] = None,
    strength: Annotated[float | None, choice("1: the whole way to the target.")] = None,
    multiplier: Annotated[float | None, choice("Of multiple, scale and clamp.")] = None,
    detectors: Annotated[int | None, choice("Latents that the image gate reads.")] = None,
    half: Annotated[Half | None, choice("Of the guided batch. Default: cond.")] = None,
    window: Annotated[str | None, choice("FROM:TO in timesteps. Default: all.")] = None,
    compat: Annotated[
        Compat | None, choice("saeuron: as its published code, sign of the error included.")
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=A,B,...",
            help="Choose among these on validation pictures, as the judge reads them; many times.",
            rich_help_panel="Choice",
        ),
    ] = None,
    judge: Judge = None,
    batch: Batch = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Find the latents of a concept and write the plan that removes it.

    Example: `vision-sae unlearn find --concept object:pizza --out pizza/`

    Example: `vision-sae unlearn find --model 'diffusers:sd15/?steps=50&guidance=7.5'
    --sae saes/up.1.2/ --prompts prompts.csv --concept style:cubism --out cubism/`
    """
    from vision_sae.recipes.unlearn import commands, inputs

    given = {
        "mode": mode, "towards": towards, "reads": reads, "score": score, "count": count,
        "percentile": percentile, "per_step": per_step, "where": where, "strength": strength,
        "multiplier": multiplier, "detectors": detectors, "half": half,
    }  # fmt: skip
    with show.errors():
        settings = given_only(given)
        if window is not None:
            settings["window"] = inputs.window_of(window)
        asked = inputs.Asked(model, concept, sae or [], prompts, judge, batch)
        grid = grid_from(tune or [])
        published = compat.value if compat else None
        commands.find(asked, out, settings, published, overwrite, json, grid)


@app.command()
def steer(
    concept: Concept,
    out: Out,
    model: Model = EMBEDDED,
    prompts: Prompts = None,
    words: Annotated[
        str | None, typer.Option(help="What to steer away from. Default: the concept's value.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Below 0: towards the words. Published: 0.5 and 0.7.")
    ] = 0.85,
    negative: Annotated[
        bool, typer.Option("--negative/--prompts-only", help="Steer negative prompts too.")
    ] = True,
    sae: Annotated[
        str | None,
        typer.Option(help="An SAE of the layer's tokens. Default: trained on the table's prompts."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer of the text encoder, as 9, or text_encoder=9 for each that is read. "
            "Default: where the published SAEs read."
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a plan that steers the text encoder away from a concept's words (Concept Steerers).

    The plan itself needs no SAE.

    Example: `vision-sae unlearn steer --concept object:pizza --out away/`
    """
    from vision_sae.recipes.unlearn import inputs, steering

    with show.errors():
        asked = inputs.Asked(model, concept, (), prompts)
        how = steering.Steering(words, strength, negative, sae, layer or ())
        steering.steer(asked, how, out, overwrite, json)


@app.command()
def apply(
    plan: PlanFolders,
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be given many times.")],
    out: Out,
    model: Model = EMBEDDED,
    sae: Saes = None,
    seed: Annotated[int, typer.Option(help="Of the first prompt; each next has one more.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Draw the unedited pictures beside.")
    ] = False,
    batch: Batch = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw pictures from which the plans' concepts are removed.

    Example: `vision-sae unlearn apply pizza/ --prompt "a pizza in neon style" --plain
    --out pictures/`
    """
    from vision_sae.recipes.unlearn import commands, inputs

    with show.errors():
        size = inputs.batch_of(model, batch)
        drawing = commands.Drawing(model, sae or [], steps, guidance, size)
        commands.apply(plan, drawing, prompt, seed, out, plain, overwrite, json)


@app.command(name="show")
def show_plan(
    plan: PlanFolders,
    out: Out,
    model: Model = EMBEDDED,
    sae: Saes = None,
    prompts: Prompts = None,
    steps: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    judge: Judge = None,
    batch: Batch = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a page of pictures before and after, with where the edits acted.

    Example: `vision-sae unlearn show pizza/ --out page/`
    """
    from vision_sae.recipes.unlearn import commands, inputs

    with show.errors():
        size = inputs.batch_of(model, batch)
        drawing = commands.Drawing(model, sae or [], steps, guidance, size)
        commands.show_plans(plan, drawing, prompts, judge, out, overwrite, json)


@app.command()
def sweep(
    concept: Concept,
    out: Out,
    model: Model = EMBEDDED,
    sae: Saes = None,
    prompts: Prompts = None,
    judge: Judge = None,
    windows: Annotated[int, typer.Option(min=1, help="Parts of the timesteps.")] = 3,
    pictures: Annotated[int, typer.Option(min=2, help="Of each kind, per cell.")] = 20,
    batch: Batch = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Where a concept can be removed: each site and window of timesteps alone.

    Example: `vision-sae unlearn sweep --concept style:neon --out where/`

    Example: `vision-sae unlearn sweep --model 'diffusers:sd15/?steps=50&guidance=7.5'
    --sae saes/up.1.2/ --prompts prompts.csv --judge open_clip:ViT-B-32/laion2b_s34b_b79k
    --concept style:cubism --out where/`
    """
    from vision_sae.recipes.unlearn import inputs, measuring

    with show.errors():
        asked = inputs.Asked(model, concept, sae or [], prompts, judge, batch)
        measuring.sweep(asked, out, windows, pictures, overwrite, json)


@app.command()
def evaluate(
    out: Out,
    plan: Annotated[
        list[Path] | None, typer.Option(help="Measure these plans, each on its own concept.")
    ] = None,
    concept: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="By name. Default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Four concepts, about 5 minutes.")] = False,
    json: Json = False,
) -> None:
    """Run the benchmark EmojiCanvas-Unlearn; what OUT already holds is not measured again.

    Example: `vision-sae unlearn evaluate --quick --out results/`

    Example: `vision-sae unlearn evaluate --plan pizza/ --out results/`
    """
    from vision_sae.recipes.unlearn import measuring

    with show.errors():
        measuring.evaluate(out, plan or [], concept or [], method or [], quick, json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to work in.")] = Path("demo/unlearn"),
) -> None:
    """Find and remove pizzas from emoji-diffusion, and write the page; a minute or two.

    Example: `vision-sae unlearn demo`
    """
    from vision_sae.recipes.unlearn import commands

    with show.errors():
        commands.demo(out)
