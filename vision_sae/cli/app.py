"""The commands: each reads its options, calls one function of the library, and shows the result."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vision_sae.cli import demo, show, steps
from vision_sae.errors import claim_folder

app = typer.Typer(
    name="vision-sae",
    help="Sparse autoencoders for vision models: extract, train, eval, name, report.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Acts = Annotated[Path, typer.Option(help="A folder of activations, made by extract.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of a table.")]
Model = Annotated[
    str, typer.Option(help="emoji-clip, open_clip:NAME/WEIGHTS, timm:NAME, toy, or a plugin's.")
]
Data = Annotated[
    str,
    typer.Option(
        help="emoji-canvas[:SPLIT], a folder of images, a class-per-folder tree, or "
        "WebDataset shards (shards/{000..009}.tar)."
    ),
]


class Family(StrEnum):
    topk = "topk"
    batchtopk = "batchtopk"


class Centre(StrEnum):
    median = "median"
    mean = "mean"
    zero = "zero"


class Which(StrEnum):
    cls = "cls"
    patches = "patches"
    pooled = "pooled"
    all = "all"


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.command()
def extract(
    model: Model,
    site: Annotated[str, typer.Option(help="A module path; `vision-sae sites` lists them.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="The folder to write the store to.")],
    tokens: Annotated[Which, typer.Option(help="Which tokens to keep.")] = Which.all,
    batch_size: int = 64,
    dtype: Dtype = Dtype.float32,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse broken images.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a model's activations on images to disk; run again to resume.

    Example: `vision-sae extract --model emoji-clip --site visual.transformer.resblocks.4
    --data emoji-canvas --out acts/`
    """
    with show.errors():
        steps.extract(
            model, site, data, out, tokens.value, batch_size, dtype.value, strict, overwrite
        )


@app.command()
def sites(model: Model, data: Data = "emoji-canvas") -> None:
    """List the module paths of a model and what each gives.

    Example: `vision-sae sites --model emoji-clip`
    """
    with show.errors():
        steps.sites(model, data)


@app.command()
def train(
    acts: Acts,
    out: Annotated[Path, typer.Option(help="The folder to save the SAE to.")],
    family: Annotated[Family, typer.Option(help="How codes are made sparse.")] = Family.topk,
    k: Annotated[int, typer.Option(help="Active latents per row.")] = 16,
    expansion: Annotated[int, typer.Option(help="Latents per input dimension.")] = 16,
    steps_: Annotated[int, typer.Option("--steps")] = 2000,
    batch_size: int = 4096,
    lr: Annotated[float | None, typer.Option(help="Default: 2e-4 / sqrt(latents / 16384).")] = None,
    centre: Annotated[
        Centre, typer.Option(help="Start of the decoder bias: geometric median, mean or zero.")
    ] = Centre.median,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train an SAE on stored activations; run again to resume.

    Example: `vision-sae train --acts acts/ --family topk --k 16 --expansion 16 --out sae/`
    """
    with show.errors():
        options: dict[str, Any] = {"steps": steps_, "batch_size": batch_size, "lr": lr}
        options |= {"centre": centre.value, "seed": seed}
        steps.train(acts, out, family.value, k, expansion, options, overwrite)


Sae = Annotated[Path, typer.Argument(help="A folder that holds an SAE, made by train.")]
OptionalActs = Annotated[
    Path | None, typer.Option("--acts", help="Default: the activations it was trained on.")
]


@app.command(name="eval")
def evaluate(
    sae: Sae,
    acts: OptionalActs = None,
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
        steps.evaluate(steps.open_sae(sae, acts), model, data, label, images, json)


@app.command()
def name(
    sae: Sae,
    acts: OptionalActs = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="A file with a word per line. Default: the images' names.")
    ] = None,
    json: Json = False,
) -> None:
    """Name each latent by the model's text embeddings, and test it against known factors.

    Example: `vision-sae name sae/ --vocabulary words.txt`
    """
    with show.errors():
        steps.name(steps.open_sae(sae, acts), vocabulary, json)


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


def main() -> None:
    app()
