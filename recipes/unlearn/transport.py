"""Replacement learnt from pairs: what a site gives for one prompt, from what it gives for another.

Two prompts that differ in the concept alone are run on the same latents, those of the prompt that
is wanted instead. At each site, with all earlier sites already replaced, a linear map by least
squares leads from the codes under the concept's prompt to what must be added:

    x_instead - x_asked  ~  f(x_asked) write(phase of t) + shift(t)

The first map is learnt on the trajectory of the wanted prompt. Each later round learns it anew on
the trajectory of a sampling that the last map edits, from what both prompts give there, so that it
also undoes what its own errors do to the picture (as DAgger, arXiv 1011.0686).

Shape key: n pairs, T timesteps, p phases of them, t tokens, m latents that are read, d width of the
site.
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

RIDGE, PHASES = 0.01, 5


class Pair(NamedTuple):
    """A prompt of the concept, and the one that is wanted in its place."""

    asked: Labelled
    instead: Labelled


class Transport(NamedTuple):
    """A site's map, and what it was learnt from."""

    write: Float[Tensor, "p r d"]  # from m codes, or from d activations
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
        self.phase = phases_of(steps, min(PHASES, steps))
        p = int(self.phase[-1]) + 1
        self.rows = 0
        self.f, self.moved = torch.zeros(steps, m).double(), torch.zeros(steps, d).double()
        self.gram, self.cross = torch.zeros(p, m, m).double(), torch.zeros(p, m, d).double()
        self.square = 0.0
        self.codes: list[list[Tensor]] = []

    def add(
        self, step: int, asked: Float[Tensor, "b t d"], instead: Float[Tensor, "b t d"]
    ) -> None:
        x, phase = asked.flatten(0, 1).float(), int(self.phase[step])
        moved = (instead.flatten(0, 1).float() - x).cpu()
        codes = self.read(asked.float())[0]
        source = (x if self.whole else codes.flatten(0, 1)).cpu()
        self.rows += len(x) if step == 0 else 0
        self.f[step] += source.sum(0)
        self.moved[step] += moved.sum(0)
        self.gram[phase] += source.T @ source
        self.cross[phase] += source.T @ moved
        self.square += float(moved.square().sum())
        self.codes[-1].append(codes.mean(1).cpu())

    def solved(self, ridge: float) -> Transport:
        """Least squares of centred rows, with `ridge` times the mean variance on the diagonal."""
        mean, moved = self.f / self.rows, self.moved / self.rows
        writes, left = [], self.square - self.rows * float(moved.square().sum())
        for phase in range(len(self.gram)):
            steps = self.phase == phase
            gram = self.gram[phase] - self.rows * mean[steps].T @ mean[steps]
            cross = self.cross[phase] - self.rows * mean[steps].T @ moved[steps]
            write = _ridge(gram, cross, ridge)
            left += float((write * (gram @ write)).sum() - 2 * (write * cross).sum())
            writes.append(write)
        write = torch.stack(writes)
        shift = moved - torch.einsum("tm,tmd->td", mean, write[self.phase])
        codes = torch.cat([torch.stack(some, 1) for some in self.codes])
        return Transport(write.float(), shift.float(), codes, 1 - left / max(self.square, 1e-12))


def phases_of(steps: int, phases: int) -> Int[Tensor, " T"]:
    """In which of so many phases of about one length each step is."""
    return torch.arange(steps) * phases // steps


def _ridge(gram: Float[Tensor, "m m"], cross: Float[Tensor, "m d"], ridge: float) -> Tensor:
    penalty = (ridge * gram.diagonal().mean()).clamp(min=1e-12) * torch.eye(len(gram)).double()
    solved: Tensor = torch.cholesky_solve(cross, torch.linalg.cholesky(gram + penalty))
    return solved


def learn(
    adapter: Any,
    saes: Mapping[str, SAE],
    latents: Mapping[str, Int[Tensor, " m"]],
    pairs: Sequence[Pair],
    *,
    whole: bool = False,
    ridge: float = RIDGE,
    rounds: int = 2,
    batch_size: int = 32,
    tell: Callable[[int], None] = lambda pairs: None,
) -> dict[str, Transport]:
    """The map of each site, from codes of its latents, or from the `whole` activations.

    `tell` is told of each round's pairs.

    Streamed: sums are kept, and token-mean codes of these latents. Raises ConfigError for an
    adapter that does not keep the conditional half.
    """
    if adapter.half != "cond":
        raise ConfigError(f"pairs are compared in the conditional half; got half={adapter.half!r}")
    probe_sites(adapter, list(saes), adapter.prepare([pairs[0].asked.prompt]))  # they are there
    steps, maps = len(adapter.timesteps), None
    for _ in range(rounds):
        sums = {site: _Sums(sae, latents[site], steps, whole) for site, sae in saes.items()}
        for start in range(0, len(pairs), batch_size):
            some = pairs[start : start + batch_size]
            _follow(adapter, sums, some, maps)
            tell(len(some))
        maps = {site: each.solved(ridge) for site, each in sums.items()}
    return maps or {}


def _follow(
    adapter: Any,
    sums: Mapping[str, _Sums],
    pairs: Sequence[Pair],
    maps: Mapping[str, Transport] | None,
) -> None:
    """One batch: the wanted prompts, then the concept's on the same seeds and latents.

    The latents are those of the wanted prompts, or where there are `maps` of what these edit.
    """
    n, wanted = len(pairs), [pair.instead.prompt for pair in pairs]
    asked = [pair.asked.prompt._replace(seed=p.seed) for pair, p in zip(pairs, wanted, strict=True)]
    for each in sums.values():
        each.codes.append([])
    with ExitStack() as stack:
        stack.enter_context(inference(adapter.model))
        stack.enter_context(_same_latents(adapter.model, n, 0 if maps is None else 1))
        for site, each in sums.items():
            recorder = _Recorder(adapter, each, n, None if maps is None else maps[site])
            stack.enter_context(edit(adapter.model, site, recorder))
        adapter.run(adapter.prepare([*wanted, *asked]))


@contextmanager
def _same_latents(model: Any, n: int, which: int) -> Iterator[None]:
    """All rows read the latents of the first (0) or of the second (1) n prompts, in each half.

    The unconditional rows of both are equal then, and run once: sites see [n unconditional,] n of
    the first prompts, n of the second. All are run where others have hooks on the model, which may
    count on the halves (as a removal that is in use does).
    """
    rows, once = None, not _hooked(model)

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        nonlocal rows
        name = "sample" if "sample" in kwargs else "hidden_states"
        latents = args[0] if args else kwargs[name]
        order = torch.arange(len(latents), device=latents.device).view(-1, 2, n)
        rows = _Rows.of(order, which, len(order) - 1 if once else 0)
        args, kwargs = rows.taken(args), rows.taken(kwargs)
        if args:
            return (latents[rows.latents], *args[1:]), kwargs
        return args, kwargs | {name: latents[rows.latents]}

    def after(module: Any, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert rows is not None
        return (output[0][rows.back], *output[1:])

    handles = (
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(model: Any) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class _Rows(NamedTuple):
    """Of a batch [halves, 2, n]: whose latents and conditions are run, and where results go."""

    batch: int
    latents: Int[Tensor, " r"]
    given: Int[Tensor, " r"]
    back: Int[Tensor, " b"]

    @classmethod
    def of(cls, order: Int[Tensor, "h 2 n"], which: int, halves: int) -> "_Rows":
        """The first prompts of so many `halves` stand for both."""
        once, both = order[:halves], order[halves:]
        given = torch.cat([once[:, 0].flatten(), both.flatten()])
        latents = torch.cat([once[:, which].flatten(), both[:, [which, which]].flatten()])
        first, rest = torch.arange(len(given), device=order.device).tensor_split(
            [once[:, 0].numel()]
        )
        return cls(order.numel(), latents, given, torch.cat([first, first, rest]))

    def taken(self, given: Any) -> Any:
        """The rows that are run, of each tensor of a batch in arguments."""
        if isinstance(given, Mapping):
            return {name: self.taken(value) for name, value in given.items()}
        if isinstance(given, tuple):
            return tuple(self.taken(value) for value in given)
        batched = isinstance(given, Tensor) and given.ndim > 0 and len(given) == self.batch
        return given[self.given] if batched else given


class _Recorder:
    """Adds to a site's sums, and puts in the place of what is asked what is wanted, or what a map
    makes of it.
    """

    def __init__(self, adapter: Any, sums: _Sums, n: int, learnt: Transport | None) -> None:
        self.adapter, self.sums, self.n, self.learnt = adapter, sums, n, learnt
        self.call = self.step = 0

    def __call__(self, output: Tensor) -> Tensor:
        instead, asked = output[-2 * self.n :].chunk(2)
        x, back = as_tokens(asked, self.sums.width)
        changed = instead
        if self.learnt is not None:
            changed = asked + back(self._added(x, self.learnt)).to(asked.dtype)
        if self.adapter.keep(self.call, output) is not None:
            self.sums.add(self.step, x, as_tokens(instead, self.sums.width)[0])
            self.step += 1
        self.call += 1
        return torch.cat([output[: -self.n], changed])

    def _added(self, x: Float[Tensor, "n t d"], learnt: Transport) -> Float[Tensor, "n t d"]:
        source = x.float() if self.sums.whole else self.sums.read(x.float())[0]
        step = min(self.step, len(learnt.shift) - 1)
        write = learnt.write[self.sums.phase[step]]
        return source @ write.to(x.device) + learnt.shift[step].to(x.device)
