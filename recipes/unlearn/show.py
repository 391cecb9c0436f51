"""A page of pictures before and after: the same prompts and seeds, without and with the plans."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError, require
from vision_sae.files import write_bytes
from vision_sae.model.hooks import capture
from vision_sae.recipes.unlearn.apply import unlearn
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit
from vision_sae.sae import SAE

Plans = Plan | str | Path | Sequence[Plan | str | Path]
Labels = Sequence[Mapping[str, str]]
LISTED = 12  # latents of an edit that are named


class Pair(NamedTuple):
    """One prompt's pictures, of the same seed.

    `mask` is how far each position of the edited sites was moved, as a share of a position's mean
    length there: the mean over the calls, the largest of the sites. None where a site has no map.
    """

    prompt: Prompt
    plain: Float[Tensor, "3 h w"]
    edited: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "y x"] | None


def show(
    pipe: Any,
    plans: Plans,
    prompts: Sequence[Prompt | str],
    out: Path | str,
    *,
    saes: Mapping[str, SAE] | None = None,
    labels: Labels | None = None,
    judge: Any = None,
    batch_size: int = 16,
    tell: Callable[[int], None] = lambda pairs: None,
    **settings: Any,
) -> Path:
    """Write one HTML file that needs no others, of each prompt's plain and edited picture.

    `out` is the file, or a folder for an index.html. `settings` are of the pipeline's own call,
    such as num_inference_steps and guidance_scale; a prompt's own guidance comes first. `labels`
    says what each prompt asks for, such as {"object": "pizza", "style": "neon"}. `judge` takes
    pictures [n 3 h w] in 0..1 and gives logits as a NamedTuple with a field per factor
    ("object": its classes are judge.objects). Raises DataError for no prompts or other than one
    label for each, ConfigError for a batch size below 1, and what `unlearn` does.

        show(pipe, "plan/", [Prompt("a pizza", seed=3)], "page.html", num_inference_steps=25)
    """
    asked = [Prompt(p) if isinstance(p, str) else p for p in prompts]
    _check(asked, labels, batch_size)
    given = [plans] if isinstance(plans, (Plan, str, Path)) else plans
    chosen = [plan if isinstance(plan, Plan) else Plan.load(plan) for plan in given]
    pairs = draw_pairs(pipe, chosen, asked, saes=saes, batch_size=batch_size, tell=tell, **settings)
    out = Path(out) if Path(out).suffix in (".html", ".htm") else Path(out) / "index.html"
    html = _page(chosen, pairs, labels, verdicts(pairs, judge) if judge is not None else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, html.encode())
    return out


def _check(prompts: Sequence[Prompt], labels: Labels | None, batch_size: int) -> None:
    if not prompts:
        raise DataError("there are no prompts to show; pass at least one")
    if labels is not None and len(labels) != len(prompts):
        raise DataError(
            f"{len(labels)} labels for {len(prompts)} prompts; pass one for each, or none"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1; got {batch_size}")


# ---- drawing


def draw_pairs(
    pipe: Any,
    plans: Sequence[Plan],
    prompts: Sequence[Prompt],
    *,
    saes: Mapping[str, SAE] | None = None,
    batch_size: int = 16,
    tell: Callable[[int], None] = lambda pairs: None,
    **settings: Any,
) -> list[Pair]:
    """Every prompt without and with the plans, in order; the noise is of each prompt's seed."""
    sites = sorted({site for plan in plans for site in plan.sites})
    pairs = []
    for batch in _batches(prompts, batch_size):
        plain = _draw(pipe, batch, settings)
        before = acted(pipe, sites, len(batch))
        with before as marks, unlearn(pipe, plans, saes=saes), marks.after():
            edited = _draw(pipe, batch, settings)
        masks: Sequence[Tensor | None] = marks.masks() or [None] * len(batch)
        pairs += [Pair(*four) for four in zip(batch, plain, edited, masks, strict=True)]
        tell(len(batch))
    return pairs


def _batches(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Neighbours of one guidance, as a batch has one."""
    for _, alike in groupby(prompts, lambda prompt: prompt.guidance):
        some = list(alike)
        yield from (some[start : start + size] for start in range(0, len(some), size))


def _draw(
    pipe: Any, prompts: Sequence[Prompt], settings: Mapping[str, Any]
) -> Float[Tensor, "b 3 h w"]:
    guidance = prompts[0].guidance
    own = {} if guidance is None else {"guidance_scale": guidance}
    pixels: Tensor = pipe(
        prompt=[prompt.text for prompt in prompts],
        generator=[torch.Generator("cpu").manual_seed(prompt.seed) for prompt in prompts],
        output_type="pt",
        **{**settings, **own},
    ).images
    return pixels.float().cpu()


# ---- where the edit acted


class Marks:
    """How far each position of the edited sites was moved, relative to their mean length."""

    def __init__(self, model: nn.Module, sites: Sequence[str], rows: int) -> None:
        self.model, self.sites, self.rows = model, sites, rows
        self.before: dict[str, Tensor] = {}
        self.moved: dict[str, list[Tensor]] = {site: [] for site in sites}

    def note(self, site: str) -> Any:
        def keep(call: int, output: Tensor) -> None:
            self.before[site] = output

        return keep

    def compare(self, site: str) -> Any:
        def keep(call: int, output: Tensor) -> None:
            before = self.before.pop(site)
            moved = _lengths((output - before).float()) / _lengths(before.float()).mean()
            halves = moved.unflatten(0, (-1, self.rows))  # of a guided batch
            self.moved[site].append(halves.amax(0))

        return keep

    @contextmanager
    def after(self) -> Iterator[None]:
        """Inside the block of `unlearn`, what the sites give is compared with what they gave."""
        with ExitStack() as stack:
            for site in self.sites:
                stack.enter_context(capture(self.model, [site], keep=self.compare(site)))
            yield

    def masks(self) -> list[Float[Tensor, "y x"]]:
        """Of each image; empty where there is no map."""
        maps = [torch.stack(each).mean(0) for each in self.moved.values() if each]
        if not maps or any(each.ndim != 3 for each in maps):
            return []
        size = max(tuple(each.shape[1:]) for each in maps)
        alike = [F.interpolate(each[:, None], size, mode="nearest")[:, 0] for each in maps]
        return list(torch.stack(alike).amax(0).cpu())


@contextmanager
def acted(pipe: Any, sites: Sequence[str], rows: int) -> Iterator[Marks]:
    """Note what the sites give before `unlearn`, which must begin inside this block."""
    marks = Marks(_denoiser(pipe), sites, rows)
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(capture(marks.model, [site], keep=marks.note(site)))
        yield marks


def _denoiser(pipe: Any) -> nn.Module:
    model = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{type(pipe).__name__} has no denoiser: no `unet` or `transformer`")
    return model


def _lengths(moved: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Of each position, [b y x]; of tokens that are no square map, [b t]."""
    if moved.ndim == 4:  # a U-Net's [b c y x]
        lengths: Tensor = moved.norm(dim=1)
        return lengths
    lengths = moved.norm(dim=-1)
    side = round(lengths[0].numel() ** 0.5)
    square = lengths.ndim == 2 and side * side == lengths.shape[1]
    return lengths.unflatten(1, (side, side)) if square else lengths


# ---- what a judge reads


def verdicts(pairs: Sequence[Pair], judge: Any) -> list[tuple[dict[str, str], dict[str, str]]]:
    """What the judge reads in each prompt's plain and in its edited picture, by factor."""
    pictures = torch.stack([picture for pair in pairs for picture in (pair.plain, pair.edited)])
    with torch.no_grad():
        found = judge(pictures)
    read = {f: getattr(found, f).argmax(1).tolist() for f in found._fields}
    named = {f: [getattr(judge, f"{f}s")[i] for i in places] for f, places in read.items()}
    each = [{f: names[n] for f, names in named.items()} for n in range(len(pictures))]
    return list(zip(each[::2], each[1::2], strict=True))


# ---- the page


def _page(
    plans: Sequence[Plan],
    pairs: Sequence[Pair],
    labels: Labels | None,
    read: list[tuple[dict[str, str], dict[str, str]]] | None,
) -> str:
    concepts = [plan.concept for plan in plans]
    asked = [_asked(concepts, label) for label in labels] if labels else [None] * len(pairs)
    furthest = max((float(pair.mask.amax()) for pair in pairs if pair.mask is not None), default=0)
    cards = [
        _card(pair, concepts, asks, read[n] if read else None, furthest)
        for n, (pair, asks) in enumerate(zip(pairs, asked, strict=True))
    ]
    side = max(pairs[0].plain.shape[1:])
    return render(
        "show.html",
        concepts=concepts,
        plans=[{"plan": plan, "edits": [facts(edit) for edit in plan.edits]} for plan in plans],
        groups=_groups(cards, bool(labels)),
        tallies=tallies(concepts, read, asked) if read else [],
        shown=128 if side <= 128 else 256,
        pixels=side <= 64,
        masked=any(pair.mask is not None for pair in pairs),
    )


def _asked(concepts: Sequence[str], label: Mapping[str, str]) -> bool:
    """Whether a prompt asks for a concept that is removed."""
    return any(f"{factor}:{value}" in concepts for factor, value in label.items())


def _card(
    pair: Pair,
    concepts: Sequence[str],
    asks: bool | None,
    read: tuple[dict[str, str], dict[str, str]] | None,
    furthest: float,
) -> dict[str, Any]:
    pictures = {"plain": data_uri(pair.plain), "edited": data_uri(pair.edited)}
    if pair.mask is not None:
        pictures["mask"] = data_uri(heated(pair.edited, pair.mask / max(furthest, 1e-12)))
    found: dict[str, Any] = {
        "prompt": pair.prompt,
        "pictures": pictures,
        "asks": asks,
        "verdict": None,
    }
    found["changed"] = float((pair.plain - pair.edited).abs().mean())
    if read:
        still = any(read[1].get(c.partition(":")[0]) == c.partition(":")[2] for c in concepts)
        good = not still if asks else read[0] == read[1]
        texts = (", ".join(map(str, one.values())) for one in read)
        found["verdict"] = {"texts": tuple(texts), "good": None if asks is None else good}
    return found


def _groups(cards: list[dict[str, Any]], labelled: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    if not labelled:
        return [("Prompts", cards)]
    asking = [card for card in cards if card["asks"]]
    others = [card for card in cards if not card["asks"]]
    groups = [("Prompts that ask for what is removed", asking), ("Other prompts", others)]
    return [(title, some) for title, some in groups if some]


def tallies(
    concepts: Sequence[str],
    read: Sequence[tuple[dict[str, str], dict[str, str]]],
    asked: Sequence[bool | None],
) -> list[tuple[str, str]]:
    """Counts of what the judge reads: (what, "before → after of n")."""
    found = []
    for concept in concepts:
        factor, _, value = concept.partition(":")
        before, after = (sum(one[side].get(factor) == value for one in read) for side in (0, 1))
        found.append((f"pictures read as {concept}", f"{before} → {after} of {len(read)}"))
    others = [one for one, asks in zip(read, asked, strict=True) if asks is False]
    if others:
        same = sum(plain == edited for plain, edited in others)
        found.append(("other prompts read as before", f"{same} of {len(others)}"))
    return found


def facts(edit: SiteEdit) -> dict[str, str]:
    """One edit in words, for the table."""
    latents = [str(latent) for latent in edit.latents.tolist()]
    more = f" and {len(latents) - LISTED} more" if len(latents) > LISTED else ""
    steps = sorted(edit.timesteps.tolist())
    low, high = max(edit.window[0], 0), min(edit.window[1], 1000)
    return {
        "site": edit.site,
        "latents": f"{len(latents)}: {', '.join(latents[:LISTED])}{more}",
        "strengths": _range(edit.strengths),
        "mode": edit.mode + (f" × {edit.multiplier:g}" if _multiplies(edit) else ""),
        "gate": edit.where,
        "half": edit.half,
        "window": f"timesteps {low} to {high}",
        "tables": f"{len(steps)} timesteps, {steps[0]} to {steps[-1]}" if steps else "none",
        "SAE": edit.sae,
    }


def _multiplies(edit: SiteEdit) -> bool:
    return edit.mode in ("multiple", "clamp", "scale")


def _range(strengths: Float[Tensor, "T m"]) -> str:
    used = strengths[strengths != 0]
    if not used.numel():
        return "0 (the identity)"
    low, high = float(used.min()), float(used.max())
    zeros = 1 - used.numel() / strengths.numel()
    rest = f", 0 in {zeros:.0%} of the table" if zeros else ""
    return (f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}") + rest


def heated(picture: Float[Tensor, "3 h w"], mask: Float[Tensor, "y x"]) -> Float[Tensor, "3 h w"]:
    """The picture in grey, with what the mask (0..1) marks in red."""
    size = picture.shape[1:]
    heat = F.interpolate(mask[None, None], tuple(size), mode="nearest")[0]
    grey = picture.mean(0, keepdim=True).expand(3, *size) * 0.6 + 0.25
    red = torch.tensor([0.9, 0.12, 0.1])[:, None, None]
    return torch.lerp(grey, red.expand_as(grey), 0.75 * heat)


def data_uri(picture: Float[Tensor, "3 h w"]) -> str:
    """A picture inside the page; small ones without loss."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    data = io.BytesIO()
    image = require("PIL.Image", "report").fromarray(pixels)
    small = max(image.size) <= 128
    image.save(data, "WEBP", lossless=small, quality=80 if small else 90)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def render(name: str, **given: Any) -> str:
    """One of this recipe's pages. Raises MissingExtra without jinja2."""
    jinja = require("jinja2", "report")
    folder = resources.files("vision_sae.recipes.unlearn") / "templates"
    environment = jinja.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined
    )
    style = (folder / "style.css").read_text(encoding="utf-8")
    page: str = environment.from_string((folder / name).read_text(encoding="utf-8")).render(
        style=style, **given
    )
    return page
