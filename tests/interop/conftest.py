"""Random SAEs of any config, and a way to import other libraries whose imports warn."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vision_sae.sae import SAE, SAEConfig


def _random_sae(config: SAEConfig) -> SAE:
    """All parameters random and of some size, thresholds in reach of the codes."""
    sae, generator = SAE(config), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, value in sae.named_parameters():
            size = 0.5 if value.ndim > 1 else 0.3
            value.copy_(torch.randn(value.shape, generator=generator) * size)
            if name == "thresholds":
                value.abs_().add_(0.3)
        if config.atoms == "unit":
            sae.normalise_decoder()
        if config.sparsity.kind == "batchtopk":
            sae.threshold.fill_(0.6)
    return sae.eval()


@pytest.fixture
def random_sae() -> Callable[[SAEConfig], SAE]:
    return _random_sae


@pytest.fixture
def peer() -> Callable[[str], Any]:
    """Import another library, or skip; what it warns about at import is its own affair."""

    def find(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name.startswith("overcomplete"):
                _old_matplotlib()
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError:
                pytest.skip(f"{name} is not installed")

    return find


def _old_matplotlib() -> None:
    """overcomplete 0.3.0 asks matplotlib for a function that 3.9 took out."""
    matplotlib = pytest.importorskip("matplotlib")

    pytest.importorskip("matplotlib.cm")
    if not hasattr(matplotlib.cm, "get_cmap"):
        matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap  # type: ignore[attr-defined]
