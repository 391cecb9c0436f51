"""What every golden script shares: inputs, fixed weights, and how a case is laid out."""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

D, S, D_OUT, ROWS, K = 8, 24, 6, 12, 4
GOLDEN = Path(__file__).resolve().parents[1]


def inputs() -> Tensor:
    """[12 8], off centre and with rows of different size."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, D, generator=generator)
    return x * torch.linspace(0.5, 3.0, ROWS)[:, None] + torch.linspace(-1, 1, D)


def normal(shape: tuple[int, ...], seed: int, scale: float) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@torch.no_grad()
def fill(module: nn.Module, *, positive: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> None:
    """Give every parameter fixed random values; `positive` ones end up in 0.3 to 0.7."""
    for seed, (name, value) in enumerate(sorted(module.named_parameters())):
        if name in skip:
            continue
        noise = normal(tuple(value.shape), seed + 1, 0.5 if value.ndim == 2 else 0.3)
        value.copy_(0.5 + 0.2 * noise.tanh() if name in positive else noise)


def case(name: str, format: str, path: str = "checkpoint", **settings: object) -> Path:
    """An empty folder for a checkpoint, with case.json beside it."""
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoint").mkdir(parents=True)
    text = json.dumps({"format": format, "path": path, "settings": settings}, indent=1)
    (folder / "case.json").write_text(text + "\n")
    return folder / "checkpoint"


def expect(checkpoint: Path, x: Tensor, codes: Tensor, x_hat: Tensor) -> None:
    """Store what the library gives beside the checkpoint; refuses a case that tests nothing."""
    l0 = (codes != 0).sum(1).float().mean().item()
    if not 0 < l0 < codes.shape[1]:
        raise SystemExit(f"{checkpoint}: the mean L0 is {l0}, which tests nothing")
    tensors = {"x": x, "codes": codes, "x_hat": x_hat}
    save_file(
        {key: value.detach().float().contiguous() for key, value in tensors.items()},
        checkpoint.parent / "expected.safetensors",
    )
    sys.stdout.write(f"{checkpoint.parent.name}: mean L0 {l0:.2f}\n")
