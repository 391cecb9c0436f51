"""What adapters share, and the adapter for a model that you have already loaded."""

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.adapters.pictures import Transform, stacked
from vision_sae.errors import ConfigError


class ModuleAdapter:
    """Any nn.Module that takes [b c h w]: `transform` turns one PIL image into [c h w].

    `prefix_tokens` counts class tokens and, behind them, register tokens that stand before the
    patches; `registers` says how many of them are registers.

        adapter = ModuleAdapter(my_model, my_transform, name="my-model", prefix_tokens=1)
        adapter = ModuleAdapter(dinov2_reg4, transform, name="d", prefix_tokens=5, registers=4)
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Transform,
        *,
        name: str,
        prefix_tokens: int = 0,
        registers: int = 0,
    ) -> None:
        if not 0 <= registers <= prefix_tokens:
            raise ConfigError(
                f"registers are some of the {prefix_tokens} prefix tokens; got {registers}"
            )
        self.model, self.transform, self.name = model, transform, name
        self.prefix_tokens, self.registers = prefix_tokens, registers
        self.reads: Literal["images", "texts"] = "images"

    def prepare(self, items: Sequence[Any]) -> Any:
        return stacked(self.transform, items)

    def run(self, batch: Float[Tensor, "b c h w"]) -> Any:
        return self.model(batch)

    def probe(self, batch: Any) -> Any:
        return self.run(batch)
