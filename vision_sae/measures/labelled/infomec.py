"""Does each latent know one factor, and each factor one latent? InfoMEC (Hsu et al. 2023).

"Disentanglement via Latent Quantization" (arXiv 2305.18378), on the codes of SAEs: latents are
binned, only the m most informative are counted, and the bias of mutual information is taken off.
"""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import require
from vision_sae.measures.labelled.rows import columns, live
from vision_sae.measures.labelled.task import Task
from vision_sae.sparse.codes import Codes

SHUFFLES = 5
BINS = 10  # off, and nine of equally many active values
RANGE = 1 / 20  # latents whose range is at most this share of the largest are left out


@dataclass(frozen=True)
class InfoMEC:
    """Modularity, explicitness and compactness, 1 at best; NaN where not defined, with a reason.

    latents: how many were counted. factors: the sources. left_out: factors that are none, and why.
    n: images that mutual information was estimated on.
    """

    modularity: float
    explicitness: float
    compactness: float
    latents: int
    factors: list[str]
    left_out: dict[str, str]
    n: int
    reason: str = ""


def infomec(codes: Codes, task: Task, *, m: int | None = 50, seed: int = 0) -> InfoMEC:
    """NMI_ij = (I(s_i; z_j) - shuffled) / H(s_i), over sources i and latents j.

    InfoM = (mean_j max_i NMI_ij / sum_i NMI_ij - 1/n_s) / (1 - 1/n_s); InfoC the same over j for
    each source, with n_z; InfoE = mean_i (H_null - H_pred) / H_null, cross entropies on the test
    images of a class-balanced logistic regression on the latents and of a constant. Its penalty is
    scikit-learn's usual C = 1: on sparse codes the unpenalised one has no optimum.

    A source is a factor with one value per image, `(none)` where an image has none. A factor that
    determines another (a subcategory its category) is left out, since sources shall be independent.
    The estimate of I with shuffled labels is subtracted, and what falls below 0 is 0. `m` latents
    of the largest NMI count, None for all.
    """
    table = _table(codes, task, m, seed)
    if table.reason:
        nan, n = math.nan, len(codes)
        return InfoMEC(nan, nan, nan, 0, list(table.sources), table.left_out, n, table.reason)
    explicit = [_explicitness(codes, table.latents, s, task) for s in table.sources.values()]
    found = _modularity(table)
    return InfoMEC(
        modularity=found.value,
        explicitness=sum(explicit) / len(explicit),
        compactness=_concentration(table.nmi[table.nmi.sum(1) > 0]),
        latents=found.latents,
        factors=list(table.sources),
        left_out=table.left_out,
        n=len(codes),
        reason=found.reason,
    )


class Modularity(NamedTuple):
    value: float
    latents: int
    reason: str


def modularity(codes: Codes, task: Task, *, m: int | None = None, seed: int = 0) -> Modularity:
    """InfoM alone, by default over all latents."""
    table = _table(codes, task, m, seed)
    return Modularity(math.nan, 0, table.reason) if table.reason else _modularity(table)


@dataclass(frozen=True)
class _Table:
    """NMI of the latents that count, largest first."""

    nmi: Float[Tensor, "f m"]
    latents: Int[Tensor, " m"]
    sources: dict[str, Int[Tensor, " n"]]
    left_out: dict[str, str]
    reason: str = ""


def _table(codes: Codes, task: Task, m: int | None, seed: int) -> _Table:
    sources, left_out = _sources(task)
    alive = _wide(codes)
    why = "no latent fires" if not len(alive) else ""
    why = why or (f"2 factors are needed, there are {len(sources)}" if len(sources) < 2 else "")
    if why:
        return _Table(torch.zeros(0, len(alive)), alive, sources, left_out, why)
    nmi = torch.stack([_nmi(codes, s, seed)[alive] for s in sources.values()])
    chosen = nmi.amax(0).argsort(descending=True, stable=True)[: m or len(alive)]
    return _Table(nmi[:, chosen].float(), alive[chosen], sources, left_out)


def _modularity(table: _Table) -> Modularity:
    knowing = table.nmi[:, table.nmi.sum(0) > 0]
    count = knowing.shape[1]
    why = "" if count else "no latent tells more of a factor than chance"
    return Modularity(_concentration(knowing.T), count, why)


def _concentration(shares: Float[Tensor, "a b"]) -> float:
    """Mean over rows of max / sum, rescaled so that an even row counts 0 and a single entry 1."""
    if not shares.numel() or shares.shape[1] < 2:
        return math.nan
    even = 1 / shares.shape[1]
    return float(((shares.amax(1) / shares.sum(1)).mean() - even) / (1 - even))


def _sources(task: Task) -> tuple[dict[str, Int[Tensor, " n"]], dict[str, str]]:
    found: dict[str, Int[Tensor, " n"]] = {}
    left_out: dict[str, str] = {}
    for factor in task.factors:
        members = task.members[:, task.columns(factor)]
        if bool((members.sum(1) > 1).any()):
            left_out[factor] = "images have several values of it"
            continue
        classes = task.classes(factor)
        found[factor] = classes + 1 if bool((classes < 0).any()) else classes  # 0: (none)
    for factor in list(found):
        for other in found:
            if other != factor and _determines(found[factor], found[other]):
                left_out[factor] = f"it determines {other}"
                break
    return {f: s for f, s in found.items() if f not in left_out}, left_out


def _determines(a: Int[Tensor, " n"], b: Int[Tensor, " n"]) -> bool:
    """Whether each value of a comes with one value of b, where a has more values than b."""
    pairs = torch.stack([a, b], 1).unique(dim=0)
    return len(pairs) == len(a.unique()) > len(b.unique())


def _wide(codes: Codes) -> Int[Tensor, " l"]:
    """Latents whose values range over more than a twentieth of what the widest does."""
    alive = live(codes)
    values = codes.values.float()
    high, low = torch.zeros(2, codes.width).unbind(0)
    high = high.scatter_reduce(0, codes.indices, values, "amax")
    low = low.scatter_reduce(0, codes.indices, values, "amin")
    spread = (high - low)[alive]
    return alive[spread > RANGE * spread.max()] if len(alive) else alive


def binned(codes: Codes, bins: int = BINS) -> Int[Tensor, " e"]:
    """The bin of each entry, 1 to bins - 1: quantiles of its latent's active values; 0 is off."""
    by_value = codes.values.argsort(stable=True)
    order = by_value[codes.indices[by_value].argsort(stable=True)]
    start = codes.support.by_latent.start
    rank = torch.arange(len(order)) - start[codes.indices[order]]
    size = start.diff()[codes.indices[order]]
    out = torch.empty_like(order)
    out[order] = 1 + (rank * (bins - 1)).div(size, rounding_mode="floor")
    return out


def _nmi(codes: Codes, source: Int[Tensor, " n"], seed: int) -> Float[Tensor, " s"]:
    bins = binned(codes)
    generator = torch.Generator().manual_seed(seed)
    mixed = [source[torch.randperm(len(source), generator=generator)] for _ in range(SHUFFLES)]
    counts = torch.bincount(source).double()
    p = counts[counts > 0] / len(source)
    chance = torch.stack([mutual_information(codes, bins, one) for one in mixed]).mean(0)
    gain = mutual_information(codes, bins, source) - chance
    return gain.clamp(min=0) / -(p * p.log()).sum()


def mutual_information(
    codes: Codes, bins: Int[Tensor, " e"], source: Int[Tensor, " n"]
) -> Float[Tensor, " s"]:
    """I(source; bin) of each latent in nats, from counts of the entries alone; off is the rest."""
    n, values, cells = len(codes), int(source.max()) + 1, int(bins.max()) + 1
    place = (codes.indices * cells + bins) * values + source[codes.rows]
    joint = torch.bincount(place, minlength=codes.width * cells * values)
    joint = joint.view(codes.width, cells, values).double()
    joint[:, 0] = torch.bincount(source, minlength=values) - joint[:, 1:].sum(1)
    p = joint / n
    return _h(p.sum(2)) + _h(p.sum(1)) - _h(p.flatten(1))


def _h(p: Float[Tensor, "s c"]) -> Float[Tensor, " s"]:
    """Entropy in nats."""
    return -(p * p.clamp(min=1e-300).log()).sum(1)


def _explicitness(codes: Codes, latents: Tensor, source: Int[Tensor, " n"], task: Task) -> float:
    sklearn = require("sklearn.linear_model", "report")
    z = columns(codes, latents)
    z = (z / z[task.train].std(0).clamp(min=1e-8)).double()
    model = sklearn.LogisticRegression(class_weight="balanced", max_iter=60, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: what is left to gain is small
        model.fit(z[task.train].numpy(), source[task.train].numpy())
    odds = torch.from_numpy(model.predict_log_proba(z[task.test].numpy()))
    number = {int(c): i for i, c in enumerate(model.classes_)}
    truth = torch.tensor([number[c] for c in source[task.test].tolist()])
    counts = torch.bincount(truth, minlength=len(number))
    own = -odds[torch.arange(len(truth)), truth]
    seen = counts > 0
    mean = torch.zeros(len(number), dtype=torch.float64).index_add(0, truth, own)[seen]
    return 1 - float((mean / counts[seen]).mean()) / math.log(len(number))
