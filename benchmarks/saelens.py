"""SAELens' own training classes and trainer, on our batches; the result is one of our SAEs.

Its settings are its defaults (decoder of norm 0.1 at the start, free atoms, latents that compete by
z times norm, gradients clipped at norm 1, AuxK with weight 1), but for what is made the same for
both libraries: rows and their order, steps, learning rate with warm-up and decay, the warm-up of
the penalty, and after how many rows a latent counts as dead.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_sae.interop import load
from vision_sae.sae import SAE
from vision_sae.synthetic import Synthetic
from vision_sae.train import TrainConfig
from vision_sae.train.inputs import unit_scale


@dataclass(frozen=True)
class Peer:
    """An architecture of SAELens; `knob` is its coefficient, tuned from `start`.

    `scaled`: inputs of mean norm sqrt(d), the units of Anthropic's settings; folded at the end.
    """

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    knob: str = ""
    start: float | None = None
    scaled: bool = False
    library: str = "SAELens"

    def trained(
        self, args: argparse.Namespace, world: Synthetic, coefficient: float | None, seed: int
    ) -> SAE:
        from sae_lens.registry import get_sae_training_class

        steps = TrainConfig(steps=args.steps, batch_size=args.batch, lr=args.lr, seed=seed)
        make, settings = get_sae_training_class(self.architecture)
        torch.manual_seed(seed)
        sae = make(settings(**self.config(args, coefficient, steps), device=args.device))
        trainer = self.trainer(sae, world.batches(args.batch, seed=seed), steps, args.device)
        if self.scaled:
            sample = world.sample(2**14, seed=seed)
            factor = unit_scale(sample, torch.zeros_like(sample[0]))
            trainer.activation_scaler.scaling_factor = float(factor)
        with redirect_stderr(io.StringIO()):  # a progress bar
            trainer.fit()
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            return load(Path(folder)).to(args.device)

    def config(
        self, args: argparse.Namespace, coefficient: float | None, steps: TrainConfig
    ) -> dict[str, Any]:
        config = {"d_in": args.d, "d_sae": args.latents, **self.options}
        if self.architecture == "matryoshka_batchtopk":
            config["matryoshka_widths"] = [round(args.latents * share) for share in args.nest]
        if not self.knob:
            return {**config, "k": args.l0}
        warm_up = round(steps.sparsity_warmup * steps.steps)
        return {**config, f"{self.knob}_coefficient": coefficient,
                f"{self.knob}_warm_up_steps": warm_up}  # fmt: skip

    def trainer(self, sae: Any, rows: Iterator[Tensor], steps: TrainConfig, device: str) -> Any:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        lr = steps.learning_rate(sae.cfg.d_sae)
        config = SAETrainerConfig(
            total_training_samples=steps.steps * steps.batch_size,
            train_batch_size_samples=steps.batch_size,
            lr=lr,
            lr_end=lr,  # constant between warm-up and decay
            lr_warm_up_steps=round(steps.warmup * steps.steps),
            lr_decay_steps=round(steps.decay * steps.steps),
            dead_feature_window=steps.rows_until_dead() // steps.batch_size,
            device=device,
        )
        return SAETrainer(config, sae, rows)


PEERS = {
    "saelens standard": Peer("standard", knob="l1", start=1),
    "saelens gated": Peer("gated", knob="l1", start=1),
    "saelens topk": Peer("topk"),
    "saelens batchtopk": Peer("batchtopk"),
    "saelens matryoshka": Peer("matryoshka_batchtopk"),
    "saelens jumprelu": Peer("jumprelu", knob="l0", start=0.1),
    "saelens jumprelu, tanh": Peer(  # Anthropic's settings, which its documentation names
        "jumprelu",
        {
            "jumprelu_sparsity_loss_mode": "tanh",
            "jumprelu_ste_to_input": True,
            "jumprelu_init_threshold": 0.1,
            "jumprelu_bandwidth": 2.0,
            "pre_act_loss_coefficient": 3e-6,
            "normalize_activations": "expected_average_only_in",
        },
        knob="l0",
        start=0.4,
        scaled=True,
    ),
}
