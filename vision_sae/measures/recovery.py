"""What an SAE recovers of known features, on a synthetic world.

Shape key: s latents, f true features, q latents in question.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.measures.stability import cosines, match
from vision_sae.model.hooks import inference
from vision_sae.sae import SAE
from vision_sae.synthetic import Draw, Synthetic

RECOVERED = 0.9  # an atom with a larger |cos| to a feature is that feature


@dataclass(frozen=True)
class Recovery:
    """What an SAE found of the true features. The first five are SAELens' (6.54), definition by
    definition; |cos| is between an atom and a true direction.

    mcc: mean |cos| of the Hungarian pairs, min(s, f) of them. precision, recall, f1: each latent
    as a detector of the feature nearest to its atom (largest |cos|; several latents may share
    one), the mean over all s latents; 0 where nothing fires. uniqueness: how many features are
    nearest to some latent, by s. The last two look from the features' side and do not punish
    latents to spare: feature_f1 is the mean detection F1 of the Hungarian pairs, recovered the
    share of the f features whose pair has |cos| > 0.9.
    """

    mcc: float
    precision: float
    recall: float
    f1: float
    uniqueness: float
    feature_f1: float
    recovered: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def recovery(
    sae: SAE, world: Synthetic, *, rows: int = 2**15, batch: int = 1024, seed: int = 0
) -> Recovery:
    """Scores against the truth, over held-out rows. Raises MissingExtra without scipy."""
    directions = world.directions.to(sae.W_dec.device)
    pairs = match(sae.W_dec, directions, absolute=True)
    with torch.no_grad():
        nearest = cosines(sae.W_dec, directions).abs().argmax(1)
    every = torch.arange(len(nearest), device=nearest.device)
    latents, features = torch.cat([every, pairs.a]), torch.cat([nearest, pairs.b])
    draws = world.held_out(batch, max(1, rows // batch), seed=seed)
    precision, recall, f1 = _detection(sae, draws, latents, features)
    own, paired = slice(0, len(every)), slice(len(every), None)
    return Recovery(
        mcc=pairs.mean,
        precision=float(precision[own].mean()),
        recall=float(recall[own].mean()),
        f1=float(f1[own].mean()),
        uniqueness=len(nearest.unique()) / len(nearest),
        feature_f1=float(f1[paired].mean()),
        recovered=int((pairs.cosine > RECOVERED).sum()) / len(directions),
    )


def _detection(
    sae: SAE, draws: Iterable[Draw], latents: Int[Tensor, " q"], features: Int[Tensor, " q"]
) -> tuple[Float[Tensor, " q"], Float[Tensor, " q"], Float[Tensor, " q"]]:
    """(precision, recall, F1) of each latent as a detector of its feature."""
    both, fired, true = (torch.zeros_like(latents) for _ in range(3))
    with inference(sae):
        for draw in draws:
            codes = sae.encode(draw.x.to(latents.device))
            on = codes.to_dense()[:, latents] != 0
            present = draw.activations.to(latents.device)[:, features] > 0
            for sums, mask in ((both, on & present), (fired, on), (true, present)):
                sums += mask.sum(0)
    hits = both.double()
    f1 = 2 * hits / (fired + true).clamp(min=1)
    return hits / fired.clamp(min=1), hits / true.clamp(min=1), f1
