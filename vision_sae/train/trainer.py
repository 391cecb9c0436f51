"""One SAE in training: the state of a run and what a step does to it.

Each step: forward, losses, gradients off the atoms' directions, optimizer, atoms back to unit norm.
Everything a step depends on is (weights, moments, counters, step number): a resumed run is exact.
"""

import copy

import torch
from torch import Tensor

from vision_sae import losses, sharded
from vision_sae.errors import DataError
from vision_sae.families import Family
from vision_sae.losses import Pass
from vision_sae.measures import metrics
from vision_sae.parallel import ALONE, Group
from vision_sae.sae import SAE
from vision_sae.source import Batch, Source, pair
from vision_sae.train.best import Best
from vision_sae.train.checks import check_batch, check_settings, check_widths
from vision_sae.train.config import TrainConfig
from vision_sae.train.dead import TREATMENTS, Treatment
from vision_sae.train.inputs import Inputs
from vision_sae.train.optimizer import clip_gradients, optimizer_of, set_rate
from vision_sae.train.start import begin_fresh, begin_trained


class Trainer:
    """The state of a run. `train` is the usual way in."""

    def __init__(
        self,
        sae: SAE,
        source: Source,
        config: TrainConfig,
        *,
        validation: Batch | None = None,
        group: Group = ALONE,
    ) -> None:
        check_widths(sae, source)
        check_settings(sae, config, group, source.rows)
        self.source, self.config = source, config
        self.validation, self.group = validation, group
        self.whole, sae = sae, sharded.spread_out(sae, group).train()
        self.sae, self.cut = sae, sharded.latent_names(self.whole, sae)
        self.step = 0
        device = sae.b_dec.device
        self.since_fired = torch.zeros(sae.config.s, dtype=torch.int64, device=device)
        self.inputs = Inputs.untreated()
        self.penalty_state = sae.config.sparsity.training_state()
        self.treatment: Treatment = config.dead or TREATMENTS[sae.config.sparsity.dead]()
        self.average = _copies(sae) if config.ema else {}
        self.best = Best()
        sae.row_gradients = config.optimizer == "rows"
        sae.screened = config.precision == "screened"
        sae.group = group
        self.optimizer = optimizer_of(config, sae)

    @property
    def done(self) -> bool:
        return self.step >= self.config.steps or self.best.exhausted(self.config.patience)

    def start(self, *, fresh: bool = True) -> None:
        """Learn scale and centre from a sample of the data; a trained SAE keeps its weights."""
        begin = begin_fresh if fresh else begin_trained
        self.inputs = begin(self.sae, self.source, self.config)

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
        self._update()
        self.since_fired += rows
        self.treatment.after(self, p)
        return self._numbers(numbers, p) if log else {}

    def _treat(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, goal = pair(batch)
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
        """Raises DataError on every process alike when the loss is not finite on any."""
        if bool(self.group.largest((~loss.detach().isfinite()).float())):
            check_batch(batch, self.source, self.config, self.step, self.group.rows)
            value = float(self.group.sum(loss.detach().clone()))
            raise DataError(f"the loss is {value} at step {self.step}; try a lower lr")

    def _update(self) -> None:
        sharded.share_gradients(self.sae, self.group)
        unit = self.sae.config.atoms == "unit"
        if unit:
            self.sae.remove_parallel_gradient()
        if self.config.clip is not None:
            clip_gradients(self.sae, self.config.clip, self.group, self.cut)
        set_rate(self.optimizer, self._lr())
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
        """Rows since each latent fired, and what the family follows."""
        fired = self.group.rows.largest(p.codes.fired().to(torch.uint8))
        self.since_fired[fired.bool()] = -p.rows  # 0 once the step's rows are added
        p.sae.config.sparsity.follow(p.sae, p.codes)

    def _numbers(self, terms: dict[str, Tensor], p: Pass) -> dict[str, float]:
        l0 = p.codes.l0.sum().float() * self.config.pieces / p.rows
        error = self.group.latents.part_of(losses.squared(p.residual.detach()))
        fvu = error * self.config.pieces / p.spread
        dead = (self.since_fired >= self.config.rows_until_dead()).float().mean()
        shared = {**terms, "fvu": fvu, "l0": l0, "dead": dead / self.group.size}
        values = self.group.sum(torch.stack([value.float() for value in shared.values()]))
        return dict(zip(shared, values.tolist(), strict=True)) | {"lr": self._lr()}

    def _lr(self) -> float:
        return self.config.learning_rate(self.whole.config.s) * self.config.factor(self.step)

    def forget_moments(self, parameter: Tensor, rows: Tensor) -> None:
        """Zero the optimizer's memory of some rows of a parameter."""
        for name, value in self.optimizer.state.get(parameter, {}).items():
            if name != "step":
                value[rows] = 0

    def validate(self) -> None:
        """Note the FVU on held-out rows, and the weights when it is the best so far."""
        if self.validation is None:
            return
        x, target = self._treat(self.validation)
        pairs = zip(x.split(4096), target.split(4096), strict=True)
        sae = self._averaged(copy.deepcopy(self.sae)) if self.average else self.sae
        fvu = torch.tensor(metrics.evaluate(sae, pairs, weights=False).fvu, dtype=torch.float64)
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
        family = sae.config.sparsity
        if type(family).calibrate is not Family.calibrate:
            sample = pair(self.source.sample(2**14, seed=self.config.seed + 1))[0]
            family.calibrate(sae, sample.to(sae.b_dec))
        sae.group = ALONE
        return sae.eval()


def _copies(sae: SAE) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) for name, p in sae.named_parameters()}
