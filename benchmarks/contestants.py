"""Ways to train one TopK or BatchTopK SAE, ours and other libraries', behind one function each.

A contestant takes a `Task` and gives `step(rows)`, one whole training step as that library's own
trainer does it, and `reconstruct(rows)`. All start from the same unit atoms (encoder = decoder,
biases 0), use Adam with the same learning rate, and see the same rows.
"""

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    family: str  # topk or batchtopk
    d: int
    s: int
    k: int
    batch: int
    lr: float
    steps: int

    def atoms(self) -> Tensor:
        atoms = torch.randn(self.s, self.d, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.normalize(atoms, dim=1)


@dataclass
class Contestant:
    step: Callable[[Tensor], Any]
    reconstruct: Callable[[Tensor], Tensor]


def ours(task: Task, nest: dict[str, Any] | None = None, **settings: Any) -> Contestant:
    from vision_sae.sae import SAE, SAEConfig
    from vision_sae.store import MemoryStore
    from vision_sae.train import TrainConfig, Trainer

    sae = SAE(SAEConfig.of(task.d, task.s, task.family, task.k, nest=nest))
    with torch.no_grad():
        sae.W_dec.copy_(task.atoms())
        sae.W_enc.copy_(task.atoms())
    # rows come scaled already, and the learning rate is constant, as for everyone here
    config = TrainConfig(
        steps=task.steps, batch_size=task.batch, lr=task.lr, warmup=0, decay=0, inputs="none",
        centre="zero", dead_after=2**62, **settings,
    )  # fmt: skip
    trainer = Trainer(sae, MemoryStore(torch.zeros(2, task.d)), config)

    def step(rows: Tensor) -> None:
        trainer.train_step(rows)
        trainer.step += 1

    def reconstruct(rows: Tensor) -> Tensor:
        sae.train()  # BatchTopK by its budget, as the others
        with torch.no_grad():
            return sae(rows).x_hat

    return Contestant(step, reconstruct)


def ours_screened(task: Task) -> Contestant:
    return ours(task, precision="screened")


def dense(task: Task) -> Contestant:
    """The obvious way: matrices throughout."""
    W_enc, W_dec = (torch.nn.Parameter(task.atoms()) for _ in range(2))
    b_enc, b_dec = torch.nn.Parameter(torch.zeros(task.s)), torch.nn.Parameter(torch.zeros(task.d))
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=task.lr, fused=True)

    def forward(x: Tensor) -> Tensor:
        z = torch.relu((x - b_dec) @ W_enc.T + b_enc)
        if task.family == "topk":
            cut = z.topk(task.k, dim=1, sorted=False).values.amin(1, keepdim=True)
        else:
            cut = z.flatten().topk(task.k * len(z), sorted=False).values.amin()
        return (z * (z >= cut)) @ W_dec + b_dec

    def step(x: Tensor) -> None:
        adam.zero_grad()
        ((x - forward(x)).square().sum() / (x - x.mean(0)).square().sum()).backward()
        adam.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return Contestant(step, lambda x: forward(x).detach())


def sae_lens(task: Task) -> Contestant:
    import sae_lens
    from sae_lens.saes.sae import TrainStepInput

    name = {"topk": "TopK", "batchtopk": "BatchTopK"}[task.family]
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=task.d, d_sae=task.s, k=task.k)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    with torch.no_grad():
        sae.W_dec.copy_(task.atoms())
        sae.W_enc.copy_(task.atoms().T)
    adam = torch.optim.Adam(sae.parameters(), lr=task.lr)
    alive = torch.zeros(task.s, dtype=torch.bool)

    def step(x: Tensor) -> None:  # what its trainer does, without the bookkeeping of frequencies
        sae.train()
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=alive, n_training_steps=1,
            is_logging_step=False,
        )  # fmt: skip
        adam.zero_grad()
        sae.training_forward_pass(step_input=given).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()

    def reconstruct(x: Tensor) -> Tensor:
        with torch.no_grad():
            return sae.decode(sae.encode_with_hidden_pre(x)[0])

    return Contestant(step, reconstruct)


def sparsify(task: Task) -> Contestant:
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "0" if torch.cuda.is_available() else "1")
    from sparsify import SparseCoder, SparseCoderConfig

    if task.family != "topk":
        raise ImportError("sparsify has no BatchTopK")
    sae = SparseCoder(task.d, SparseCoderConfig(num_latents=task.s, k=task.k))
    with torch.no_grad():
        sae.W_dec.copy_(task.atoms())
        sae.encoder.weight.copy_(task.atoms())
    adam = torch.optim.Adam(sae.parameters(), lr=task.lr, fused=True)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        adam.zero_grad()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()

    def reconstruct(x: Tensor) -> Tensor:
        with torch.no_grad():
            return sae(x).sae_out

    return Contestant(step, reconstruct)


def dictionary_learning(task: Task) -> Contestant:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kind = TopKTrainer if task.family == "topk" else BatchTopKTrainer
    trainer = kind(
        steps=10**9, activation_dim=task.d, dict_size=task.s, k=task.k, layer=0, lm_name="none",
        lr=task.lr, warmup_steps=0, decay_start=None, threshold_start_step=10**9, device="cpu",
    )  # fmt: skip
    with torch.no_grad():
        trainer.ae.decoder.weight.copy_(task.atoms().T)
        trainer.ae.encoder.weight.copy_(task.atoms())
    count = iter(range(1, 10**9))  # step 0 moves b_dec to the rows' geometric median

    def reconstruct(x: Tensor) -> Tensor:
        with torch.no_grad():
            return trainer.ae.decode(trainer.ae.encode(x, use_threshold=False))

    return Contestant(lambda x: trainer.update(next(count), x), reconstruct)


def overcomplete(task: Task) -> Contestant:
    import matplotlib

    if not hasattr(matplotlib.cm, "get_cmap"):  # overcomplete 0.3.0 calls what 3.9 took away
        matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap
    from overcomplete.sae import BatchTopKSAE, TopKSAE

    kind, total = (TopKSAE, 1) if task.family == "topk" else (BatchTopKSAE, task.batch)
    sae = kind(task.d, nb_concepts=task.s, top_k=task.k * total)
    with torch.no_grad():
        sae.dictionary._weights.copy_(task.atoms())
        encoder = [m for m in sae.encoder.modules() if isinstance(m, torch.nn.Linear)][-1]
        encoder.weight.copy_(task.atoms())
    adam = torch.optim.Adam(sae.parameters(), lr=task.lr)

    def step(x: Tensor) -> None:
        sae.train()
        adam.zero_grad()
        _, z, x_hat = sae(x)
        (x - x_hat).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()

    def reconstruct(x: Tensor) -> Tensor:
        with torch.no_grad():
            return sae(x)[2]

    return Contestant(step, reconstruct)


CONTESTANTS: dict[str, Callable[[Task], Contestant]] = {
    "vision_sae": ours,
    "vision_sae screened": ours_screened,
    "plain dense": dense,
    "eai-sparsify": sparsify,
    "overcomplete": overcomplete,
    "dictionary-learning": dictionary_learning,
    "sae-lens": sae_lens,
}


def version(name: str) -> str:
    """Of the library behind a contestant."""
    if name.startswith("vision_sae") or name == "plain dense":
        return f"torch {torch.__version__}"
    return importlib.metadata.version(name)
