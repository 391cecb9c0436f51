"""One SAE in training: the state of a run and what a step does to it.

Each step: forward, losses, gradients off the atoms' directions, optimizer, atoms back to unit norm.
Everything a step depends on is (weights, moments, counters, step number): a resumed run is exact.
"""

import copy
from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vision_sae import losses, metrics, sharded
from vision_sae.errors import ConfigError, DataError
from vision_sae.families import BatchTopK
from vision_sae.losses import Pass
from vision_sae.parallel import ALONE, Group
from vision_sae.sae import SAE
from vision_sae.source import Batch, Source
from vision_sae.statistics import calibrate, centre
from vision_sae.train.best import Best
from vision_sae.train.config import TrainConfig
from vision_sae.train.dead import Treatment
from vision_sae.train.inputs import Inputs, unit_scale, whitening
from vision_sae.train.optimizer import optimizer_of, rows_of

SAMPLE = 2**15  # rows from which centre and scale are learnt


class Trainer:
    """The state of a run. `train` is the usual way in."""

    def __init__(
        self,
        sae: SAE,
        source: Source,
        config: TrainConfig,
        *,
        validation: Float[Tensor, "m d"] | None = None,
        group: Group = ALONE,
    ) -> None:
        _check_widths(sae, source)
        _check_settings(sae, config, group, source.rows)
        self.source, self.config = source, config
        self.validation, self.group = validation, group
        self.whole, sae = sae, sharded.spread_out(sae, group).train()
        self.sae, self.cut = sae, sharded.latent_names(self.whole, sae)
        self.step = 0
        device = sae.b_dec.device
        self.since_fired = torch.zeros(sae.config.s, dtype=torch.int64, device=device)
        self.inputs = Inputs.untreated()
        self.penalty_state = sae.config.sparsity.training_state()
        self.treatment: Treatment = config.dead or _usual_treatment(sae)
        self.average = _copies(sae) if config.ema else {}
        self.best = Best()
        sae.row_gradients = config.optimizer == "rows"
        sae.screened = config.precision == "screened"
        sae.group = group
        self.optimizer = optimizer_of(config, sae, config.learning_rate(self.whole.config.s))

    @property
    def done(self) -> bool:
        return self.step >= self.config.steps or self.best.exhausted(self.config.patience)

    def start(self, *, fresh: bool = True) -> None:
        """Learn scale and centre from a sample of the data; a trained SAE keeps its weights."""
        x, target = _pair(self.source.sample(SAMPLE, seed=self.config.seed))
        x = self.sae.treated(x.to(self.sae.b_dec)).rows
        target = target.to(self.sae.b_dec) if self.sae.config.d_out is not None else x
        for rows in (x, target):
            _check_finite(rows, "a sample of the activations")
        middle = centre(target, self.config.centre)
        self.inputs = self._fit_inputs(x, target, middle)
        if not fresh:
            self._unfold()
            return
        with torch.no_grad():
            self.sae.b_dec.copy_(self._centre_treated(middle))
            if self.sae.config.dictionary:
                self._place_archetypes(self.inputs.apply(x))

    def _fit_inputs(self, x: Tensor, target: Tensor, middle: Tensor) -> Inputs:
        if self.config.inputs == "none" or self.sae.config.rows != "none":
            return Inputs.untreated()
        if self.config.inputs == "whiten":
            return whitening(x)
        inputs = Inputs.untreated()
        inputs.scale_out = unit_scale(target, middle)
        separate = self.sae.config.d_out is not None
        inputs.scale = unit_scale(x, x.mean(0)) if separate else inputs.scale_out.clone()
        return inputs

    def _centre_treated(self, middle: Tensor) -> Tensor:
        if self.sae.config.d_out is not None:
            return self.inputs.apply_out(middle)
        return self.inputs.apply(middle)

    def _unfold(self) -> None:
        """Bring a trained SAE into the units of treated inputs."""
        if self.inputs.matrix is not None:
            raise ConfigError("a trained SAE goes on with inputs='scale' or 'none', not 'whiten'")
        undone = Inputs(1 / self.inputs.scale, 1 / self.inputs.scale_out)
        undone.fold(self.sae)

    def _place_archetypes(self, rows: Tensor) -> None:
        """Data points for an archetypal dictionary: rows far from each other, by k-means."""
        from vision_sae.statistics import kmeans

        shape: Any = self.sae.parametrizations.W_dec[0]  # type: ignore[union-attr,index]
        shape.C.copy_(kmeans(rows - self.sae.b_dec, len(shape.C), seed=self.config.seed))
        self.sae.W_enc.copy_(nn.functional.normalize(self.sae.W_dec, dim=1))

    def train_step(self, batch: Batch, *, log: bool = False) -> dict[str, float]:
        """One step; with `log`, its numbers."""
        x, target = self._treat(batch)
        rows = self.group.rows.total(len(x))
        spread = losses.spread(target, self.group.rows)
        dead = self.since_fired >= self.config.rows_until_dead()
        self.optimizer.zero_grad(set_to_none=True)
        numbers: dict[str, Tensor] = {}
        for piece, goal in zip(  # as many pieces on every process
            x.tensor_split(self.config.pieces), target.tensor_split(self.config.pieces), strict=True
        ):
            p = self._forward(piece, goal, dead, rows, spread)
            terms = self._terms(p)
            self._check_loss(terms["loss"], batch)
            terms["loss"].backward()
            self._count(p)
            for name, value in terms.items():
                numbers[name] = numbers.get(name, 0) + value.detach()
        self._update(dead)
        self.since_fired += rows
        self.treatment.after(self, p)
        return self._numbers(numbers, p) if log else {}

    def _treat(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, goal = _pair(batch)
        like = self.sae.b_dec
        x = self.inputs.apply(rows.to(like))
        if self.sae.config.d_out is not None:
            return x, self.inputs.apply_out(goal.to(like))
        return x, self.sae.treated(x).rows

    def _forward(self, x: Tensor, target: Tensor, dead: Tensor, rows: int, spread: Tensor) -> Pass:
        sae, progress = self.sae, self.step / self.config.steps
        low = self.config.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            codes, z = sae.encoded(x, k=sae.config.sparsity.k_at(progress))
            x_hat = sae.decode(codes) + sae.skipped(x)
        return Pass(
            sae, x, target, codes, z, x_hat.to(target.dtype), dead, rows, spread,
            self.step, progress, self.config.seed, self.penalty_state, self.group,
        )  # fmt: skip

    def _terms(self, p: Pass) -> dict[str, Tensor]:
        """The losses of a step by name, and their sum."""
        terms = {"reconstruction": losses.reconstruction(p)}
        more = {
            "penalty": p.sae.config.sparsity.penalty(p),
            "multi": losses.multi_topk(p),
            "dead_loss": self.treatment.loss(p),
        }
        terms |= {name: value for name, value in more.items() if value is not None}
        if "penalty" in terms:
            terms["penalty"] = terms["penalty"] * self.config.penalty_factor(self.step)
        terms["loss"] = torch.stack([t.float() for t in terms.values()]).sum()
        return terms

    def _check_loss(self, loss: Tensor, batch: Batch) -> None:
        finite = self.group.largest((~loss.detach().isfinite()).float())
        if not bool(finite):
            return
        where = getattr(self.source, "locate", None)
        for rows in _pair(batch):  # all processes say the same
            finite = self.group.rows.in_order(rows.isfinite().all(1))
            bad = (~finite).nonzero()[:, 0]
            if len(bad):
                at = (self.config.batch_size, self.config.seed, self.step)
                place = where(*at, int(bad[0])) if where else f"row {int(bad[0])} of the batch"
                raise DataError(
                    f"NaN or infinity in {len(bad)} of {len(finite)} rows of step {self.step}; "
                    f"the first is {place}"
                )
        value = float(self.group.sum(loss.detach().clone()))
        raise DataError(f"the loss is {value} at step {self.step}; try a lower lr")

    def _update(self, dead: Bool[Tensor, " s"]) -> None:
        sharded.share_gradients(self.sae, self.group)
        unit = self.sae.config.atoms == "unit"
        if unit:
            self.sae.remove_parallel_gradient()
        if self.config.clip is not None:
            clip_gradients(self.sae, self.config.clip, self.group, self.cut)
        lr = self.config.learning_rate(self.whole.config.s) * self.config.factor(self.step)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        if unit:
            self.sae.normalise_decoder()
        self._follow_average()

    @torch.no_grad()
    def _follow_average(self) -> None:
        for name, mean in self.average.items():
            mean.lerp_(self.sae.get_parameter(name), 1 - (self.config.ema or 0))

    @torch.no_grad()
    def _count(self, p: Pass) -> None:
        """Rows since each latent fired, and the running BatchTopK threshold."""
        fired = self.group.rows.largest(p.codes.fired().to(torch.uint8))
        self.since_fired[fired.bool()] = -p.rows  # 0 once the step's rows are added
        if isinstance(p.sae.config.sparsity, BatchTopK):
            p.sae.config.sparsity.follow(p.sae, p.codes)

    def _numbers(self, terms: dict[str, Tensor], p: Pass) -> dict[str, float]:
        l0 = p.codes.l0.sum().float() * self.config.pieces / p.rows
        error = self.group.latents.part_of(losses.squared(p.residual.detach()))
        fvu = error * self.config.pieces / p.spread
        dead = (self.since_fired >= self.config.rows_until_dead()).float().mean()
        shared = {**terms, "fvu": fvu, "l0": l0, "dead": dead / self.group.size}
        values = self.group.sum(torch.stack([value.float() for value in shared.values()]))
        lr = self.optimizer.param_groups[0]["lr"]
        return dict(zip(shared, values.tolist(), strict=True)) | {"lr": float(lr)}

    def forget_moments(self, parameter: Tensor, rows: Tensor) -> None:
        """Zero the optimizer's memory of some rows of a parameter."""
        for name, value in self.optimizer.state.get(parameter, {}).items():
            if name != "step":
                value[rows] = 0

    def validate(self) -> None:
        """Note the FVU on held-out rows, and the weights when it is the best so far."""
        if self.validation is None:
            return
        rows = self.inputs.apply(self.validation.to(self.sae.b_dec))
        sae = self._averaged(copy.deepcopy(self.sae)) if self.average else self.sae
        fvu = torch.tensor(metrics.evaluate(sae, rows.split(4096)).fvu, dtype=torch.float64)
        self.sae.train()
        self.group.same([fvu])  # all must agree on when to stop
        self.best.note(float(fvu), sae)

    def snapshot(self) -> SAE:
        """The SAE as it is now, in the data's units; training is not touched."""
        sae = self._finished(self._averaged(copy.deepcopy(self.sae)))
        return self._merged(sae, copy.deepcopy(self.whole))

    def finish(self) -> SAE:
        """The result, in the data's units: the best or averaged weights where those are kept."""
        if self.best.weights:
            self.best.restore(self.sae)
        else:
            self._averaged(self.sae)
        return self._merged(self._finished(self.sae), self.whole)

    def _merged(self, sae: SAE, whole: SAE) -> SAE:
        return sae if self.group.latents.size == 1 else sharded.merged(sae, whole, self.group)

    @torch.no_grad()
    def _averaged(self, sae: SAE) -> SAE:
        """The weights moved to their average, if there is one."""
        if self.average and self.step:
            for name, mean in self.average.items():
                sae.get_parameter(name).copy_(mean / (1 - (self.config.ema or 0) ** self.step))
            sae.zero_grad()  # a row-sparse gradient would say that other atoms have not moved
            if sae.config.atoms == "unit":
                sae.normalise_decoder()
        return sae

    @torch.no_grad()
    def _finished(self, sae: SAE) -> SAE:
        sae.group, sae.b_in = self.group.latents, None
        self.inputs.fold(sae)
        if isinstance(sae.config.sparsity, BatchTopK):
            sample = _pair(self.source.sample(2**14, seed=self.config.seed + 1))[0]
            sae.threshold.copy_(calibrate(sae, sample.to(sae.b_dec)))
        sae.group = ALONE
        return sae.eval()


def _copies(sae: SAE) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) for name, p in sae.named_parameters()}


def _usual_treatment(sae: SAE) -> Treatment:
    from vision_sae.train.dead import TREATMENTS

    return TREATMENTS[sae.config.sparsity.dead]()


def _pair(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch if isinstance(batch, tuple) else (batch, batch)


def _check_widths(sae: SAE, source: Source) -> None:
    if source.width != sae.config.d:
        raise DataError(
            f"the SAE reads width {sae.config.d}, the activations have width {source.width}"
        )
    wanted, given = sae.config.d_out, getattr(source, "width_out", None)
    if wanted != given:
        raise DataError(f"the SAE writes width {wanted}, the source's targets have width {given}")


def _check_settings(sae: SAE, config: TrainConfig, group: Group, rows: int) -> None:
    if config.inputs == "whiten" and (sae.config.rows != "none" or sae.config.d_out is not None):
        raise ConfigError("inputs='whiten' goes with rows='none' and without d_out")
    if config.inputs == "whiten" and sae.config.sparsity.kind == "mp":
        raise ConfigError(
            "inputs='whiten' does not go with matching pursuit: its atoms have norm 1"
        )
    if config.optimizer == "rows" and group.size > 1:
        raise ConfigError("optimizer='rows' is for one process")
    sharded.check(sae.config, group)
    least = min(config.batch_size, rows) // group.rows.size
    if least < config.pieces:
        raise ConfigError(
            f"a batch of {min(config.batch_size, rows)} rows cannot be dealt to {group.rows.size} "
            f"processes in {config.pieces} pieces each: the least batch is "
            f"{group.rows.size * config.pieces}"
        )


def _check_finite(rows: Tensor, what: str) -> None:
    bad = int((~rows.isfinite().all(1)).sum())
    if bad:
        raise DataError(f"NaN or infinity in {bad} of {len(rows)} rows of {what}")


@torch.no_grad()
def clip_gradients(sae: SAE, most: float, group: Group = ALONE, cut: Collection[str] = ()) -> None:
    """Scale all gradients down so that their norm together is at most `most`.

    Of the parameters that are `cut`, each process holds a part.
    """
    named = [(name, p.grad) for name, p in sae.named_parameters() if p.grad is not None]
    squares = [(name, rows_of(grad)[1].norm().square()) for name, grad in named]
    zero = sae.b_dec.new_zeros(())
    mine = sum((square for name, square in squares if name in cut), zero)
    norm = (group.latents.sum(mine) + sum(s for name, s in squares if name not in cut)).sqrt()
    factor = (most / norm.clamp(min=1e-12)).clamp(max=1)
    for parameter in sae.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
