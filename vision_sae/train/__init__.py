"""Training: one loop for every family, one SAE or many, one process or several."""

from vision_sae.train.config import TrainConfig
from vision_sae.train.loop import OnLog, Run, train, train_all
from vision_sae.train.trainer import Trainer

__all__ = ["OnLog", "Run", "TrainConfig", "Trainer", "train", "train_all"]
