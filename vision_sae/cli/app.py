"""The commands: each reads its options, calls one function of the library, and shows the result."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vision_sae import plugins
from vision_sae.cli import compare, demo, factors, many, naming, show, steps
from vision_sae.cli.options import (
    BatchSize,
    BufferRows,
    Centre,
    Config,
    Data,
    Device,
    Expansion,
    FamilyFlag,
    Json,
    K,
    Lr,
    Model,
    OptionalActs,
    Overwrite,
    Sae,
    Seed,
    Set,
    Steps,
    StoredActs,
    StreamData,
    StreamModel,
    StreamSite,
    Targets,
    Validation,
    ValidationTargets,
    grid_from,
    settings_from,
)
from vision_sae.errors import claim_folder
from vision_sae.jobs.naming import CANDIDATES, THRESHOLD, NamingConfig
from vision_sae.naming import PLAIN

app = typer.Typer(
    name="vision-sae",
    help="Sparse autoencoders for vision models: extract, train, eval, name, report.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class Which(StrEnum):
    cls = "cls"
    registers = "registers"
    patches = "patches"
    pooled = "pooled"
    all = "all"


StreamTokens = Annotated[
    Which, typer.Option(help="Which tokens to read.", rich_help_panel="Stream")
]


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.command()
def extract(
    model: Model,
    site: Annotated[
        list[str],
        typer.Option(
            help="A module's path, which `vision-sae sites` lists; PATH:update is its output minus "
            "its input, PATH:input its input, PATH:heads an attention module's heads. May be given "
            "many times: one pass serves all, each has its store in OUT/SITE."
        ),
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write the store to.")],
    tokens: Annotated[Which, typer.Option(help="Which tokens to keep.")] = Which.all,
    batch_size: int = 64,
    dtype: Dtype = Dtype.float32,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse broken images.")] = False,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model's activations on images or prompts to disk; run again to resume.

    Example: `vision-sae extract --model emoji-clip --site visual.transformer.resblocks.4
    --data emoji-canvas --out acts/`

    Example: `torchrun --nproc-per-node 2 -m vision_sae extract --model emoji-clip
    --site visual.transformer.resblocks.4 --data emoji-canvas --out acts/` shares the images
    """
    options = {"tokens": tokens.value, "batch_size": batch_size, "dtype": dtype.value}
    options |= {"strict": strict, "overwrite": overwrite}
    with show.errors():
        steps.extract(steps.Extraction(model, site, data, out, device, options))


@app.command()
def sites(model: Model, data: Data = "emoji-canvas", json: Json = False) -> None:
    """List the modules of a model as a tree, with what each gives.

    Example: `vision-sae sites --model emoji-clip`
    """
    with show.errors():
        steps.sites(model, data, json)


class Share(StrEnum):
    rows = "rows"
    latents = "latents"


Parallel = Annotated[
    Share | None,
    typer.Option(
        help="Under torchrun: each process takes a part of each batch, or of the latents.",
        rich_help_panel="Machine",
    ),
]


@app.command()
def train(
    out: Annotated[
        Path, typer.Option(help="The folder to save the SAE to.", rich_help_panel="Data")
    ],
    acts: StoredActs = None,
    model: StreamModel = None,
    site: StreamSite = None,
    data: StreamData = None,
    tokens: StreamTokens = Which.all,
    buffer_rows: BufferRows = 2**17,
    targets: Targets = None,
    validate_on: Validation = None,
    validate_targets: ValidationTargets = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="An SAE to go on from.", rich_help_panel="Data"),
    ] = None,
    family: FamilyFlag = None,
    k: K = None,
    expansion: Expansion = None,
    steps_: Steps = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    centre: Centre = None,
    seed: Seed = None,
    skip: Annotated[
        bool,
        typer.Option(
            "--skip", help="A linear path beside a transcoder.", rich_help_panel="SAE and training"
        ),
    ] = False,
    set_: Set = None,
    config: Config = None,
    parallel: Parallel = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Train an SAE on stored activations, or on a model while it runs; run again to resume.

    Example: `vision-sae train --acts acts/ --family topk --k 16 --expansion 16 --out sae/`

    Example: `vision-sae train --acts acts/ --family jumprelu --set mode=target --set target=20
    --set dead=resample --set nest.ks=[4,8,16] --out sae/`

    Example: `torchrun --nproc-per-node 2 -m vision_sae train --parallel rows --acts acts/
    --out sae/`

    Example: `vision-sae train --model emoji-clip --site visual.transformer.resblocks.4
    --data emoji-canvas --k 16 --out sae/` stores no activations
    """
    flags = {"family": family, "k": k, "expansion": expansion, "steps": steps_}
    flags |= {"batch_size": batch_size, "lr": lr, "centre": centre, "seed": seed}
    with show.errors():
        settings = settings_from(config, set_, {**flags, "skip": skip or None})
        held_out = (validate_on, validate_targets)
        live = {"tokens": tokens.value, "buffer_rows": buffer_rows}
        read = steps.reads(acts, model, site, data, device, live)
        job = steps.Training(read, out, targets, *held_out, start, overwrite, device)
        steps.train(job, settings, parallel.value if parallel else None)


@app.command()
def sweep(
    out: Annotated[Path, typer.Option(help="The folder for all members.", rich_help_panel="Data")],
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=A,B,...",
            help="What varies; may be given many times, all combinations are trained.",
            rich_help_panel="SAE and training",
        ),
    ],
    acts: StoredActs = None,
    model: StreamModel = None,
    site: StreamSite = None,
    data: StreamData = None,
    tokens: StreamTokens = Which.all,
    buffer_rows: BufferRows = 2**17,
    targets: Targets = None,
    validate_on: Validation = None,
    validate_targets: ValidationTargets = None,
    family: FamilyFlag = None,
    k: K = None,
    expansion: Expansion = None,
    steps_: Steps = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    centre: Centre = None,
    seed: Seed = None,
    set_: Set = None,
    config: Config = None,
    together: many.Together = None,
    parallel: Parallel = None,
    device: Device = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train an SAE for each point of a grid in one pass over the activations; run again to resume.

    They are stored, or a model gives them while it runs (--model, --site, --data), once for all.

    Members that differ in seed start from other weights and see the same rows in the same order
    (`order` is the seed of that order). A setting that only other families of the grid have is
    left out of a member. OUT/index.json lists the members.

    Example: `vision-sae sweep --acts acts/ --out sweep/ --grid family=topk,batchtopk
    --grid k=8,16,32 --grid seed=0,1`

    Example: `vision-sae sweep --model emoji-clip --site visual.transformer.resblocks.4
    --data emoji-canvas --out sweep/ --grid k=8,16` stores no activations
    """
    flags = {"family": family, "k": k, "expansion": expansion, "steps": steps_}
    flags |= {"batch_size": batch_size, "lr": lr, "centre": centre, "seed": seed}
    with show.errors():
        settings, points = settings_from(config, set_, flags), grid_from(grid)
        live = {"tokens": tokens.value, "buffer_rows": buffer_rows}
        source = steps.reads(acts, model, site, data, device, live)
        read = many.Reads(source, targets, validate_on, validate_targets)
        many.sweep(
            read, out, points, settings, together, device, overwrite, json,
            parallel.value if parallel else None,
        )  # fmt: skip


@app.command()
def suite(
    config: Annotated[
        Path | None, typer.Argument(help="A JSON file; --example prints one to start from.")
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a config and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with sizes on disk and stop.")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """SAEs for many sites of a model: extract each, train all in one pass; run again to resume.

    Example: `vision-sae suite --example > suite.json; vision-sae suite suite.json --dry-run`
    """
    with show.errors():
        many.suite(config, example, dry_run, overwrite, json)


@app.command()
def families(
    name: Annotated[str | None, typer.Argument(help="One family. Default: all.")] = None,
    json: Json = False,
) -> None:
    """List the sparsity families, and all settings that train and sweep take with --set.

    Example: `vision-sae families jumprelu`
    """
    with show.errors():
        many.families(name, json)


class Written(StrEnum):
    saelens = "saelens"
    vision_sae = "vision_sae"


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="An SAE of any format that is known here.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    from_: Annotated[str, typer.Option("--from", help="The format of the source.")] = "auto",
    to: Annotated[Written, typer.Option(help="The format to write.")] = Written.saelens,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Turn an SAE of one library into that of another.

    Example: `vision-sae convert sae/ for_saelens/ --to saelens`
    """
    with show.errors():
        steps.convert(source, target, from_, to.value, overwrite, json)


@app.command(name="eval")
def evaluate(
    sae: Sae,
    acts: OptionalActs = None,
    targets: Annotated[
        Path | None, typer.Option(help="Of a transcoder. Default: those it was trained on.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Also splice the reconstruction into this model.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Images to splice on.")] = None,
    label: Annotated[str | None, typer.Option(help="What the zero-shot classes are.")] = None,
    images: Annotated[int, typer.Option(help="How many images to splice on.")] = 1000,
    json: Json = False,
) -> None:
    """Measure an SAE: FVU, cosine, L0, dead and dense latents, zero-shot accuracy when spliced.

    Example: `vision-sae eval sae/ --acts acts/ --model emoji-clip --data emoji-canvas:validation`
    """
    with show.errors():
        steps.evaluate(steps.open_sae(sae, acts, targets), model, data, label, images, json)


@app.command()
def name(
    sae: Sae,
    acts: OptionalActs = None,
    vocabulary: naming.Vocabulary = None,
    template: naming.Template = None,
    directions: naming.Directions = naming.Ways.auto,
    centre: Annotated[
        bool, typer.Option(help="Take the means over images and over words off.")
    ] = True,
    candidates: naming.Candidates = CANDIDATES,
    threshold: naming.Threshold = THRESHOLD,
    explainer: naming.ExplainerName = None,
    test: naming.Test = None,
    images: Annotated[int, typer.Option(help="How many images to test names on.")] = 2000,
    json: Json = False,
) -> None:
    """Name each latent by the model's text embeddings, and test the names on held-out images.

    Latents are tested against known factors, too. Everything is saved beside the SAE for `report`.

    Example: `vision-sae name sae/ --vocabulary words --template "a photo of a {}"
    --test emoji-canvas:validation`
    """
    with show.errors():
        config = NamingConfig(  # refused before anything is encoded
            directions=directions.value, templates=tuple(template or PLAIN), centre=centre,
            candidates=candidates, threshold=threshold, held_out=images,
        )  # fmt: skip
        words = naming.words(vocabulary, explainer, test)
        naming.name(steps.open_sae(sae, acts), words, config, json)


@app.command()
def report(
    sae: Sae,
    out: Annotated[Path, typer.Option(help="The folder to write the page to.")],
    acts: OptionalActs = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a page with pictures of every latent; it opens from disk, without a network.

    Example: `vision-sae report sae/ --acts acts/ --out report/`
    """
    with show.errors():
        claim_folder(out, "index.html", overwrite=overwrite)  # before the work
        steps.report(steps.open_sae(sae, acts), out, overwrite)


@app.command(name="demo")
def run_demo(
    out: Annotated[Path, typer.Option(help="The folder to work in.")] = Path("demo"),
) -> None:
    """All steps on the embedded model and images, in a few minutes.

    Example: `vision-sae demo`
    """
    with show.errors():
        demo.run(out)


app.command(name="compare")(compare.run)
app.command(name="factors")(factors.run)

for recipe in plugins.names(plugins.RECIPES):  # vision-sae unlearn ..., and other packages'
    app.add_typer(plugins.load(plugins.RECIPES, recipe), name=recipe)


def main() -> None:
    app()
