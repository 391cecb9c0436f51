"""Replacement learnt from pairs: what a site gives for one prompt, from what it gives for another.

Two prompts that differ in the concept alone are run on the same latents, those of the prompt that
is wanted instead. At each site, with all earlier sites already replaced, a linear map by least
squares leads from the codes under the concept's prompt to what must be added:

    x_instead - x_asked  ~  f(x_asked) write + shift(t)

So the map is learnt where it will be used: on the trajectory of an edited sampling.

Shape key: n pairs, T timesteps, t tokens, m latents that are read, d width of the site.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import ConfigError, DataError
from vision_sae.model.hooks import edit, inference
from vision_sae.model.probing import probe_sites
from vision_sae.recipes.unlearn.change import as_tokens
from vision_sae.recipes.unlearn.prompts import Labelled, holds, parse
from vision_sae.recipes.unlearn.readers import reader_of
from vision_sae.sae import SAE

RIDGE = 0.01


class Pair(NamedTuple):
    """A prompt of the concept, and the one that is wanted in its place."""

    asked: Labelled
    instead: Labelled


class Transport(NamedTuple):
    """A site's map, and what it was learnt from."""

    write: Float[Tensor, "r d"]  # from m codes, or from d activations
    shift: Float[Tensor, "T d"]
    codes: Float[Tensor, "n T m"]  # token means under the concept's prompts, for detectors
    explained: float  # share of the difference's square


def pairs_of(prompts: Sequence[Labelled], concept: str, towards: str) -> list[Pair]:
    """Each prompt of the concept with one that differs from it in this factor alone.

    Raises DataError where there is none, ConfigError for concepts of two factors.
    """
    (factor, _), (other, _) = parse(concept), parse(towards)
    if factor != other or concept == towards:
        raise ConfigError(f"{concept} can be replaced by another {factor}; got {towards}")
    waiting: dict[Any, list[Labelled]] = {}
    for row in prompts:
        if holds(row, towards):
            waiting.setdefault(_rest(row, factor), []).append(row)
    found, used = [], dict.fromkeys(waiting, 0)
    for row in (row for row in prompts if holds(row, concept)):
        rest = _rest(row, factor)
        if rest in waiting:
            found.append(Pair(row, waiting[rest][used[rest] % len(waiting[rest])]))
            used[rest] += 1
    if not found:
        raise DataError(
            f"no prompt of {towards} is like one of {concept} in all other columns; "
            "add such rows, or choose another concept with towards="
        )
    return found


def _rest(row: Labelled, factor: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((f, v) for f, v in row.labels.items() if f != factor))


class _Sums:
    """Normal equations of one site; what is read is centred at each timestep in the end."""

    def __init__(self, sae: SAE, latents: Int[Tensor, " m"], steps: int, whole: bool) -> None:
        self.read, self.whole = reader_of(sae, latents), whole
        self.width = d = sae.config.d
        m = d if whole else len(latents)
        self.rows = 0
        self.f, self.moved = torch.zeros(steps, m).double(), torch.zeros(steps, d).double()
        self.gram, self.cross = torch.zeros(m, m).double(), torch.zeros(m, d).double()
        self.square = 0.0
        self.codes: list[list[Tensor]] = []

    def add(
        self, step: int, asked: Float[Tensor, "b t d"], instead: Float[Tensor, "b t d"]
    ) -> None:
        x = asked.flatten(0, 1).float()
        moved = (instead.flatten(0, 1).float() - x).cpu()
        codes = self.read(asked.float())[0]
        source = (x if self.whole else codes.flatten(0, 1)).cpu()
        self.rows += len(x) if step == 0 else 0
        self.f[step] += source.sum(0)
        self.moved[step] += moved.sum(0)
        self.gram += source.T @ source
        self.cross += source.T @ moved
        self.square += float(moved.square().sum())
        self.codes[-1].append(codes.mean(1).cpu())

    def solved(self, ridge: float) -> Transport:
        """Least squares of centred rows, with `ridge` times the mean variance on the diagonal."""
        mean, moved = self.f / self.rows, self.moved / self.rows
        gram = self.gram - self.rows * mean.T @ mean
        cross = self.cross - self.rows * mean.T @ moved
        penalty = (ridge * gram.diagonal().mean()).clamp(min=1e-12) * torch.eye(len(gram)).double()
        write = torch.cholesky_solve(cross, torch.linalg.cholesky(gram + penalty))
        left = (write * (gram @ write)).sum() - 2 * (write * cross).sum()
        centred = self.square - self.rows * float(moved.square().sum())
        explained = 1 - (centred + float(left)) / max(self.square, 1e-12)
        codes = torch.cat([torch.stack(some, 1) for some in self.codes])
        return Transport(write.float(), (moved - mean @ write).float(), codes, explained)


def learn(
    adapter: Any,
    saes: Mapping[str, SAE],
    latents: Mapping[str, Int[Tensor, " m"]],
    pairs: Sequence[Pair],
    *,
    whole: bool = False,
    ridge: float = RIDGE,
    batch_size: int = 32,
    tell: Callable[[int], None] = lambda pairs: None,
) -> dict[str, Transport]:
    """The map of each site, from codes of its latents, or from the `whole` activations.

    Streamed: sums are kept, and token-mean codes of these latents. Raises ConfigError for an
    adapter that does not keep the conditional half.
    """
    if adapter.half != "cond":
        raise ConfigError(f"pairs are compared in the conditional half; got half={adapter.half!r}")
    steps = len(adapter.timesteps)
    sums = {site: _Sums(sae, latents[site], steps, whole) for site, sae in saes.items()}
    probe_sites(adapter, list(saes), adapter.prepare([pairs[0].asked.prompt]))  # they are there
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        _follow(adapter, sums, some)
        tell(len(some))
    return {site: each.solved(ridge) for site, each in sums.items()}


def _follow(adapter: Any, sums: Mapping[str, _Sums], pairs: Sequence[Pair]) -> None:
    """One batch: the wanted prompts, then the concept's on the same seeds and latents."""
    wanted = [pair.instead.prompt for pair in pairs]
    asked = [pair.asked.prompt._replace(seed=p.seed) for pair, p in zip(pairs, wanted, strict=True)]
    for each in sums.values():
        each.codes.append([])
    with ExitStack() as stack:
        stack.enter_context(inference(adapter.model))
        stack.enter_context(_same_latents(adapter.model, len(pairs)))
        for site, each in sums.items():
            stack.enter_context(edit(adapter.model, site, _Recorder(adapter, each, len(pairs))))
        adapter.run(adapter.prepare([*wanted, *asked]))


@contextmanager
def _same_latents(model: Any, n: int) -> Iterator[None]:
    """Rows of the second n prompts read the latents of the first, in each half."""

    def copied(x: Tensor) -> Tensor:
        halves = x.unflatten(0, (-1, 2, n))[:, :1]
        return torch.cat([halves, halves], 1).flatten(0, 2)

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (copied(args[0]), *args[1:]), kwargs
        name = "sample" if "sample" in kwargs else "hidden_states"
        return args, kwargs | {name: copied(kwargs[name])}

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Recorder:
    """Adds to a site's sums, and puts what is wanted in the place of what is asked."""

    def __init__(self, adapter: Any, sums: _Sums, n: int) -> None:
        self.adapter, self.sums, self.n = adapter, sums, n
        self.call = self.step = 0

    def __call__(self, output: Tensor) -> Tensor:
        halves = output.unflatten(0, (-1, 2, self.n))
        instead, asked = halves[-1]
        if self.adapter.keep(self.call, output) is not None:
            width = self.sums.width
            self.sums.add(self.step, as_tokens(asked, width)[0], as_tokens(instead, width)[0])
            self.step += 1
        self.call += 1
        return torch.cat([output[: -self.n], instead])
