"""Give each concept a latent of its own by fine-tuning an SAE with labels.

After SAEmnesia (ICML 2026: one latent per concept, then one latent to steer by) and SCAR
(binary cross-entropy on a latent's pre-activation).

Shape key: n rows, d width, c concepts, s latents.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from vision_sae.errors import ConfigError, DataError, require
from vision_sae.losses import Pass, dead_pre_activations
from vision_sae.sae import SAE
from vision_sae.source import Batch
from vision_sae.train import TrainConfig, Trainer

Labels = Tensor  # [n] the index of each row's concept, -1 for none; or [n c], 1 where it is there
Labelled = tuple[Tensor, Labels]  # rows [n d] and their labels
Loss = Literal["bce", "ce"]
SAMPLE = 2**14  # rows that are read before the first step


class Assigned(NamedTuple):
    """A fine-tuned SAE and the latent of each concept."""

    sae: SAE
    latents: Int[Tensor, " c"]


def assign(
    sae: SAE,
    batches: Iterator[Labelled],
    concepts: Sequence[str],
    *,
    weight: float = 1.0,
    steps: int = 500,
    lr: float | None = None,
    loss: str = "bce",
    positive: float = 1.0,
    latents: Int[Tensor, " c"] | None = None,
    score: Float[Tensor, "c s"] | None = None,
) -> Assigned:
    """Fine-tune a copy of an SAE so that each concept has one latent; the SAE itself stays.

        loss = the SAE's own loss + weight * L(z of the concepts' latents, labels)

    L is "bce", binary cross-entropy per latent with `positive` times the weight on rows that have
    the concept (SCAR), or "ce", cross-entropy among the latents over rows that have exactly one.
    z is in the units of training, where rows have norm sqrt(d). A label is a concept's index (-1:
    none of them) or a row of 0 and 1. `latents` are those to begin from; else they are matched by
    `score` (such as a concept's row of `statistics`), else by the labels of the first rows.
    Raises ConfigError for settings, DataError for labels that do not fit the concepts, or too few
    batches.
    """
    _check(sae, concepts, loss, weight)
    source = _Source(sae.config.d, len(concepts), batches)
    if latents is None:
        latents = matched(first_score(sae, *source.first()) if score is None else score)
    _check_latents(latents, sae, concepts)
    config = TrainConfig.of(steps=steps, batch_size=source.size, lr=lr)
    trainer = _Supervised(copy.deepcopy(sae), source, config)
    trainer.latents = latents.to(sae.b_dec.device)
    trainer.weight, trainer.kind, trainer.positive = weight, loss, positive
    trainer.start(fresh=False)
    stream = source.batches(source.size)
    while not trainer.done:
        batch = next(stream, None)
        if batch is None:
            raise DataError(f"the batches ended after {trainer.step} of {steps} steps")
        trainer.train_step(batch)
        trainer.step += 1
    return Assigned(trainer.finish(), latents.cpu())


def matched(score: Float[Tensor, "c s"]) -> Int[Tensor, " c"]:
    """One latent per concept with the largest sum of scores, none serving two (Hungarian).

    Raises ConfigError for fewer latents than concepts, DataError for scores that are not finite.
    """
    c, s = score.shape
    if s < c:
        raise ConfigError(f"{c} concepts need as many latents; this SAE has {s}")
    if not score.isfinite().all():
        raise DataError("the scores hold NaN or infinity; every concept and latent needs a number")
    solve = require("scipy.optimize", "report").linear_sum_assignment
    return torch.as_tensor(solve(score.cpu().double().numpy(), maximize=True)[1])


@torch.no_grad()
def first_score(
    sae: SAE, rows: Float[Tensor, "n d"], labels: Float[Tensor, "n c"]
) -> Float[Tensor, "c s"]:
    """How much larger z is where a concept is than where it is not, in standard deviations."""
    z = sae.pre_activations(rows.to(sae.b_dec))
    y = labels.to(z)
    with_it = y.T @ z / y.sum(0).clamp(min=1)[:, None]
    without = (1 - y).T @ z / (1 - y).sum(0).clamp(min=1)[:, None]
    return (with_it - without) / z.std(0).clamp(min=1e-6)


def many_hot(labels: Labels, c: int) -> Float[Tensor, "n c"]:
    """Labels of either form as 0 and 1. Raises DataError for those that do not fit."""
    if labels.ndim == 1 and not labels.is_floating_point():
        if len(labels) and not (int(labels.min()) >= -1 and int(labels.max()) < c):
            raise DataError(
                f"labels must be -1 (none) to {c - 1}, as there are {c} concepts; got "
                f"{int(labels.min())} to {int(labels.max())}"
            )
        return torch.nn.functional.one_hot(labels.long() + 1, c + 1)[:, 1:].float()
    if labels.ndim == 2 and labels.shape[1] == c and bool(((labels == 0) | (labels == 1)).all()):
        return labels.float()
    raise DataError(
        f"labels must be whole numbers [n], or 0 and 1 [n {c}] for {c} concepts; got "
        f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
    )


def supervised(
    p: Pass, latents: Int[Tensor, " c"], labels: Float[Tensor, "n c"], kind: str, positive: float
) -> Float[Tensor, ""]:
    """Cross-entropy of one of the two kinds on the pre-activations of some latents."""
    z = dead_pre_activations(p, latents)
    if kind == "bce":
        weights = 1 + (positive - 1) * labels
        return binary_cross_entropy_with_logits(z, labels, weights)
    one = labels.sum(1) == 1
    if not bool(one.any()):
        return z.sum() * 0
    return cross_entropy(z[one], labels[one].argmax(1))


class _Source:
    """An iterator of labelled batches as a Source: its first rows are the sample."""

    rows = 2**62  # nobody knows

    def __init__(self, width: int, c: int, batches: Iterator[Labelled]) -> None:
        self.width, self.c = width, c
        self.held: list[tuple[Tensor, Tensor]] = []
        self.rest = (self._checked(*batch) for batch in batches)
        while sum(len(rows) for rows, _ in self.held) < SAMPLE:
            found = list(islice(self.rest, 1))
            if not found:
                break
            self.held += found
        if not self.held:
            raise DataError("there are no batches to learn from")
        self.size = len(self.held[0][0])

    def _checked(self, rows: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        if rows.ndim != 2 or rows.shape[1] != self.width or len(rows) != len(labels):
            raise DataError(
                f"a batch is rows [n {self.width}] and n labels; got {tuple(rows.shape)} and "
                f"{tuple(labels.shape)}"
            )
        return rows, many_hot(labels, self.c).to(rows.device)

    def first(self) -> tuple[Tensor, Tensor]:
        rows, labels = zip(*self.held, strict=True)
        return torch.cat(rows), torch.cat(labels)

    def batches(
        self, size: int, *, seed: int = 0, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        return islice(chain(self.held, self.rest), start, None)

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        return self.first()[0][:n]


class _Supervised(Trainer):
    """The usual training step with one more loss; a batch is (rows, labels)."""

    latents: Tensor
    labels: Tensor
    weight: float
    kind: str
    positive: float

    def train_step(self, batch: Batch, *, log: bool = False) -> dict[str, float]:
        rows, labels = batch
        self.labels = labels.to(self.sae.b_dec)
        return super().train_step(rows, log=log)

    def _terms(self, p: Pass) -> dict[str, Tensor]:
        terms = super()._terms(p)
        extra = supervised(p, self.latents, self.labels, self.kind, self.positive)
        terms["assignment"] = self.weight * extra
        terms["loss"] = terms["loss"] + terms["assignment"]
        return terms


def _check(sae: SAE, concepts: Sequence[str], loss: str, weight: float) -> None:
    if not concepts or len(set(concepts)) < len(concepts):
        raise ConfigError(f"concepts must be named, each once; got {', '.join(concepts) or 'none'}")
    if loss not in get_args(Loss):
        raise ConfigError(f"loss must be {' or '.join(get_args(Loss))}; got {loss!r}")
    if weight < 0:
        raise ConfigError(f"weight must be at least 0; got {weight}")
    if sae.config.d_out is not None:
        raise ConfigError("concepts are assigned in SAEs, not in transcoders (d_out)")


def _check_latents(latents: Tensor, sae: SAE, concepts: Sequence[str]) -> None:
    inside = bool(((latents >= 0) & (latents < sae.config.s)).all())
    if len(latents) != len(concepts) or len(latents.unique()) < len(latents) or not inside:
        raise ConfigError(
            f"{len(concepts)} concepts need as many different latents of 0 to {sae.config.s - 1}; "
            f"got {latents.tolist()}"
        )
