"""What a plan does to a site's tensor, without a host sync: gates, targets, and what is added.

Shape key: b images, t positions, n = b * t rows, m latents of an edit, d width of the site.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from vision_sae.adapters.diffusion_inputs import kind_of
from vision_sae.errors import ConfigError
from vision_sae.recipes.unlearn.calls import Guidance
from vision_sae.recipes.unlearn.plan import SiteEdit
from vision_sae.recipes.unlearn.readers import Thresholds, joined_reader
from vision_sae.sae import SAE

LAST = 1000  # timesteps go from 0 to here
Opened = Tensor | None  # where an image gate is open, [b]
BESIDE = ("patches", "transport")  # modes that change tokens, not codes


class Clock:
    """The denoiser's current call: its timestep as the row of a table, and the gates seen open.

    `seen` has for each plan whether its image gate was open, [b], at a site of this call.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.factor = LAST if kind_of(denoiser) == "FluxTransformer2DModel" else 1
        self.now: Any = 0
        self.seen: dict[int, Tensor] = {}

    @contextmanager
    def following(self, denoiser: nn.Module) -> Iterator[None]:
        handle = denoiser.register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.now, self.seen = self._row(time), {}

    def _row(self, time: Any) -> Any:
        """A number where that needs no wait, else a tensor on the device."""
        if not isinstance(time, Tensor):
            return min(round(float(time) * self.factor), LAST)
        first = time.flatten()[0]
        if first.device.type == "cpu":
            return min(round(float(first) * self.factor), LAST)
        return (first.float() * self.factor).round().long().clamp(0, LAST)


class Seen(NamedTuple):
    """One plan's image gates in the denoiser's current call."""

    clock: Clock
    plan: int

    def __call__(self, found: Bool[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Where the gate is open here or was open at an earlier site."""
        before = self.clock.seen.get(self.plan)
        self.clock.seen[self.plan] = found if before is None else found | before
        return self.clock.seen[self.plan]


class Tables(NamedTuple):
    """One edit's tables, one row per timestep from 0 to LAST."""

    strengths: Float[Tensor, "r m"]
    mean: Float[Tensor, "r m"]
    other: Float[Tensor, "r m"]
    theta: Float[Tensor, "r m"]
    detector: Float[Tensor, "r m"]
    bias: Float[Tensor, "r 1"]

    @classmethod
    def of(cls, edit: SiteEdit, device: torch.device) -> "Tables":
        inside = _inside(edit.window)[:, None]
        strengths = spread(edit.strengths, edit.timesteps) * inside
        rest = [spread(t, edit.timesteps) for t in (edit.mean, edit.other, edit.theta)]
        bias = spread(edit.bias[:, None], edit.timesteps)
        detector = spread(edit.detector, edit.timesteps)
        return cls(*(t.to(device) for t in (strengths, *rest, detector, bias)))

    def at(self, row: Any) -> "Tables":
        """The rows of one timestep, [m] each."""
        return Tables(*(row_of(table, row) for table in self))


def row_of(table: Shaped[Tensor, "r ..."], row: Any) -> Shaped[Tensor, "..."]:
    """table[row], without a wait where the row is a tensor on the device."""
    return table.index_select(0, row)[0] if isinstance(row, Tensor) else table[row]


def _inside(window: tuple[int, int]) -> Bool[Tensor, " r"]:
    rows = torch.arange(LAST + 1)
    return (rows >= window[0]) & (rows <= window[1])


def spread(table: Float[Tensor, "T m"], timesteps: Int[Tensor, " T"]) -> Float[Tensor, "r m"]:
    """Every timestep's row by linear interpolation, constant beyond the first and the last."""
    times, order = timesteps.sort()
    table, rows = table[order].float(), torch.arange(LAST + 1)
    high = torch.searchsorted(times, rows).clamp(max=len(times) - 1)
    low = (high - 1).clamp(min=0)
    gap = (times[high] - times[low]).clamp(min=1)
    part = ((rows - times[low]) / gap).clamp(0, 1)[:, None]
    return torch.lerp(table[low], table[high], part)


def _phases(timesteps: Int[Tensor, " T"], phases: int) -> Int[Tensor, " r"]:
    """Each timestep's phase: that of the nearest of those that were sampled, noise first."""
    times = timesteps.sort(descending=True).values
    near = (torch.arange(LAST + 1)[:, None] - times).abs().argmin(1)
    return near * phases // len(times)


class _GateFirst(NamedTuple):
    """What an edit with an image gate reads of all pictures, and of those where it opens."""

    watch: Thresholds
    columns: Int[Tensor, " w"]  # of the detector
    rest: Thresholds

    @classmethod
    def of(cls, edit: SiteEdit, device: torch.device) -> "_GateFirst | None":
        """None where there is no such gate, or where latents compete, so that all are read."""
        if "image" not in edit.gates or edit.readout is None:
            return None
        columns = (edit.detector != 0).any(0).nonzero()[:, 0]
        watch = Thresholds([edit.readout.part(columns)], device)
        return cls(watch, columns.to(device), Thresholds([edit.readout], device))


class _Edit:
    """One edit with its tables, and where its codes stand among those that the site reads."""

    def __init__(self, edit: SiteEdit, first: int, seen: Seen, device: torch.device) -> None:
        self.plan, self.tables, self.seen = edit, Tables.of(edit, device), seen
        self.span = slice(first, first + len(edit.latents))
        if edit.write is not None and edit.shift is not None:
            self.write = edit.write.float().to(device)
            self.phase = _phases(edit.timesteps, len(edit.write)).to(device)
            self.shift = spread(edit.shift, edit.timesteps).to(device)
        self.needs = set(edit.gates)
        self.first = _GateFirst.of(edit, device)

    def gate(self, f: Float[Tensor, "b t m"], now: Tables, opened: Opened = None) -> Tensor | float:
        """1 where the edit acts, shaped to fit [b t m]; `opened` is the image gate where known."""
        gate: Tensor | float = 1.0
        if "image" in self.needs:
            found = self.image(f, now) if opened is None else opened
            gate = found.to(f.dtype)[:, None, None]
        if "threshold" in self.needs:
            gate = gate * (f > now.theta)
        if "mask" in self.needs:
            gate = gate * self.mask(f, now)[..., None]
        return gate

    def image(self, f: Float[Tensor, "b t m"], now: Tables) -> Bool[Tensor, " b"]:
        """The detector, or that of an earlier site: what was removed there is not seen here."""
        found = f.mean(1) @ now.detector + now.bias > 0
        return self.seen(found)

    def opened(self, x: Float[Tensor, "b t d"], row: Any) -> Bool[Tensor, " b"]:
        """The image gate, from the latents that it reads alone."""
        assert self.first is not None
        now, columns = self.tables.at(row), self.first.columns
        f = self.first.watch(x)[0]
        return self.seen(f.mean(1) @ now.detector[columns] + now.bias > 0)

    def change(self, x: Float[Tensor, "b t d"], row: Any) -> Float[Tensor, "b t d"]:
        """What is added to the tokens of pictures where the image gate is open."""
        assert self.first is not None
        f, spread_back = self.first.rest(x)
        opened = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if self.plan.mode in BESIDE:
            return self.moved(x, f, row, opened)
        codes = self.added(f, self.tables.at(row), opened)
        return spread_back(codes @ self.first.rest.atoms)

    def mask(self, f: Float[Tensor, "b t m"], now: Tables) -> Bool[Tensor, "b t"]:
        """Positions where any edited latent is above its threshold."""
        return ((f > now.theta) & (now.strengths != 0)).any(-1)

    def added(
        self, f: Float[Tensor, "b t m"], now: Tables, opened: Opened = None
    ) -> Float[Tensor, "b t m"]:
        """What is added to the codes."""
        return now.strengths * self._away(f, now) * self.gate(f, now, opened)

    def _away(self, f: Tensor, now: Tables) -> Tensor:
        """target - f."""
        mode, factor = self.plan.mode, self.plan.multiplier
        if mode == "replace":
            return (now.other - now.mean).expand_as(f)
        if mode == "zero":
            return -f
        if mode == "clamp":
            return factor * now.mean - f
        return (factor * now.mean * f if mode == "multiple" else factor * f) - f

    def moved(
        self, x: Float[Tensor, "b t d"], f: Float[Tensor, "b t m"], row: Any, opened: Opened = None
    ) -> Float[Tensor, "b t d"]:
        """What is added to the tokens beside what is added to the codes."""
        now = self.tables.at(row)
        if self.plan.mode == "patches":
            return self.patched(x, f, now, opened)
        source = f if self.plan.reads == "codes" else x
        strength = now.strengths.amax() * self.gate(f, now, opened)
        write = row_of(self.write, row_of(self.phase, row))
        return strength * (source @ write + row_of(self.shift, row))

    def patched(
        self, x: Float[Tensor, "b t d"], f: Float[Tensor, "b t m"], now: Tables, opened: Opened
    ) -> Float[Tensor, "b t d"]:
        """What moves each detected position to an undetected one of the same map (PER)."""
        found = self.mask(f, now)
        if "image" in self.needs:
            found = found & (self.gate(f, now, opened)[..., 0] > 0)  # type: ignore[index]
        t = x.shape[1]
        lots = torch.rand(t, t, generator=torch.Generator().manual_seed(0)).to(x.device)
        source = (lots - 2.0 * found[:, None, :]).argmax(-1)  # [b t], detected ones last
        moved = x.gather(1, source[..., None].expand_as(x)) - x
        some = found & ~found.all(1, keepdim=True)
        return moved * (some * now.strengths.amax())[..., None]


class SiteChange:
    """All edits of one site, as a function of the site's tensor.

    All read the codes that the model gives before any of them changes it; what they add is summed.
    """

    def __init__(
        self,
        edits: Sequence[SiteEdit],
        clock: Clock,
        guided: Guidance,
        sae: SAE | None,
        device: torch.device,
        plans: Sequence[int] | None = None,
    ) -> None:
        """`plans` says to which plan each edit belongs; without it each is a plan's only one."""
        self.clock, self.guided, self.half = clock, guided, _one_half(edits)
        self.edits, first = [], 0
        for edit, plan in zip(edits, plans or range(len(edits)), strict=True):
            self.edits.append(_Edit(edit, first, Seen(clock, plan), device))
            first += len(edit.latents)
        self.reader = joined_reader(edits, sae, device)
        self.gates_first = all(e.first and not e.plan.saeuron_sign for e in self.edits)

    @torch.no_grad()
    def __call__(self, output: Tensor) -> Tensor:
        tokens, back = as_tokens(output, self.reader.atoms.shape[1])
        rows = _rows_of(len(tokens), self.half, self.guided())
        x = tokens[rows].float()
        known = x.device.type == "cpu" and not isinstance(self.clock.now, Tensor)
        if self.gates_first and known:
            return self._where_open(output, x, rows, back)
        delta = self.delta(x).to(output.dtype)
        if rows == slice(None):
            return output + back(delta)
        changed = output.clone()
        changed[rows] += back(delta)
        return changed

    def _where_open(
        self, output: Tensor, x: Float[Tensor, "b t d"], rows: slice, back: Callable[..., Tensor]
    ) -> Tensor:
        """The same on a CPU, where asking costs no wait: gates are read before all else."""
        changed, places = output, torch.arange(len(output))[rows]
        for edit in self.edits:
            opened = edit.opened(x, self.clock.now).nonzero()[:, 0]
            if len(opened):
                delta = edit.change(x[opened], self.clock.now).to(output.dtype)
                changed = output.clone() if changed is output else changed
                changed[places[opened]] += back(delta)
        return changed

    def delta(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """What is added to the site's tokens."""
        f, spread_back = self.reader(x)
        total = torch.zeros((), device=x.device)
        for edit in self.edits:
            mine = f[..., edit.span]
            if edit.plan.mode in BESIDE:
                total = total + edit.moved(x, mine, self.clock.now)
            else:
                codes = edit.added(mine, edit.tables.at(self.clock.now))
                total = total + spread_back(codes @ self.reader.atoms[edit.span])
        signed = [edit for edit in self.edits if edit.plan.saeuron_sign]
        if signed:
            live = [(edit.tables.at(self.clock.now).strengths != 0).any() for edit in signed]
            total = total + 2 * self.reader.error(x) * torch.stack(live).any()
        return total


def _one_half(edits: Sequence[SiteEdit]) -> str:
    halves = {edit.half for edit in edits}
    if len(halves) > 1:
        raise ConfigError(
            f"the plans at {edits[0].site!r} change different halves of the guided batch "
            f"({', '.join(sorted(halves))}); plans that are used together must agree"
        )
    return halves.pop()


def _rows_of(b: int, half: str, guided: bool) -> slice:
    """Which rows of a batch [unconditional, conditional] are edited. Raises ConfigError."""
    if half == "both" or (not guided and half == "cond"):
        return slice(None)
    if not guided:
        raise ConfigError(
            "this plan edits the unconditional half of the guided batch, and the pipeline runs "
            "without guidance: set guidance_scale above 1, or find a plan with half='cond'"
        )
    return slice(b // 2, None) if half == "cond" else slice(0, b // 2)


def as_tokens(
    output: Tensor, width: int
) -> tuple[Float[Tensor, "b t d"], Callable[[Tensor], Tensor]]:
    """A site's tensor as tokens, and the way back for tokens of some of its rows."""
    if output.ndim == 2:
        return output[:, None], lambda tokens: tokens[:, 0]
    if output.ndim == 3:
        return output, lambda tokens: tokens
    axis = 1 if output.shape[1] == width else 3
    last = output.movedim(axis, 3)
    grid = last.shape[1:3]
    return last.flatten(1, 2), lambda tokens: tokens.unflatten(1, grid).movedim(3, axis)
