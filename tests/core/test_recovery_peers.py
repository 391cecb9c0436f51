"""Our scores of a trained SAE are those of SAELens, number by number."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.interop import save
from vision_sae.recovery import recovery
from vision_sae.sae import SAE, SAEConfig
from vision_sae.synthetic import Draw, Synthetic, SyntheticConfig
from vision_sae.train import TrainConfig, train
