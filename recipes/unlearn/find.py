"""Find the latents of a concept, and make the plan that removes it.

`observe` looks once at the prompts of all concepts; `plan_for` then makes a plan in milliseconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vision_sae.errors import ConfigError
from vision_sae.model.adapter import fingerprint
from vision_sae.recipes.unlearn import detect
from vision_sae.recipes.unlearn.choice import Choice, choice_of
from vision_sae.recipes.unlearn.evidence import Evidence, nearest, observe
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit
from vision_sae.recipes.unlearn.prompts import Labelled, check, holds
from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.recipes.unlearn.scores import SCORES
from vision_sae.recipes.unlearn.statistics import Contrast, Tell
from vision_sae.recipes.unlearn.transport import Transport, learn, pairs_of
from vision_sae.sae import SAE


def find(
    adapter: Any,
    saes: Mapping[str, SAE],
    prompts: Sequence[Labelled],
    concept: str,
    *,
    compat: str | None = None,
    batch_size: int = 64,
    tell: Tell = lambda prompts: None,
    **choice: Any,
) -> Plan:
    """`observe` and `plan_for` for one concept; `choice` are Choice's settings, BEST by default.

    plan = find(load_adapter("emoji-diffusion"), saes, read("prompts.csv"), "object:pizza")
    """
    wanted = choice_of(choice, compat)
    evidence = observe(
        adapter, saes, prompts, [concept],
        candidates=wanted.detectors, batch_size=batch_size, tell=tell,
    )  # fmt: skip
    return plan_for(evidence, concept, wanted, tell=tell)


def plan_for(
    evidence: Evidence,
    concept: str,
    choice: Choice | None = None,
    *,
    latents: Mapping[str, Sequence[int]] | None = None,
    tell: Tell = lambda pairs: None,
) -> Plan:
    """The plan that removes a concept, at every site that was observed.

    `latents`, by site, are edited in place of those that `choice` would take. In milliseconds, but
    "transport" samples: `tell` is told how many more pairs are done. Raises what `check` does, and
    ConfigError for latents that are not there.
    """
    check(evidence.prompts, concept)
    choice, given = choice or Choice(), _checked(evidence, latents)
    if choice.towards == "nearest":
        choice = replace(choice, towards=nearest(evidence, concept))
    chosen = {site: _chosen(evidence, site, concept, choice, given) for site in evidence.saes}
    learnt = {}
    if choice.mode == "transport":
        learnt = _learnt(evidence, concept, choice, chosen, tell)
    edits = [
        _site_edit(evidence, concept, choice, some, learnt.get(site))
        for site, some in chosen.items()
    ]
    about = _about(evidence, concept, choice)
    about |= {f"explained at {site}": round(each.explained, 3) for site, each in learnt.items()}
    return Plan(concept, tuple(edits), evidence.model, evidence.weights, evidence.schedule, about)


def _about(evidence: Evidence, concept: str, choice: Choice) -> dict[str, Any]:
    own = sum(holds(row, concept) for row in evidence.prompts)
    told = {"prompts": len(evidence.prompts), "of the concept": own, "score": choice.score}
    return told | ({"towards": choice.towards} if choice.towards else {})


class _Chosen(NamedTuple):
    """The latents of a site: those edited at each timestep, those watched, and both."""

    site: str
    contrast: Contrast
    edited: Bool[Tensor, "T s"]
    watched: Int[Tensor, " w"]
    latents: Int[Tensor, " m"]


def _checked(evidence: Evidence, latents: Mapping[str, Sequence[int]] | None) -> dict[str, Tensor]:
    """Given latents as masks over all of a site's."""
    if latents is None:
        return {}
    if set(latents) != set(evidence.saes):
        raise ConfigError(
            f"latents are given for {', '.join(latents) or 'no site'}; the evidence is of "
            f"{', '.join(evidence.saes)}"
        )
    masks = {}
    for site, some in latents.items():
        s = evidence.saes[site].config.s
        wrong = [i for i in some if not 0 <= i < s]
        if wrong or not some:
            raise ConfigError(f"{site} has latents 0 to {s - 1}; got {wrong or 'none'}")
        masks[site] = torch.zeros(s, dtype=torch.bool)
        masks[site][list(some)] = True
    return masks


def _chosen(
    evidence: Evidence, site: str, concept: str, choice: Choice, given: Mapping[str, Tensor]
) -> _Chosen:
    stats = evidence.statistics[site]
    contrast = stats.contrast(concept, choice.towards)
    edited = chosen_latents(contrast, evidence.saes[site].W_dec.detach(), choice)
    if given:
        edited = given[site].expand_as(edited)
    watched = _watched(evidence, site, stats.contrast(concept), choice)
    if choice.reads == "activations" and len(watched):  # the gate alone reads codes
        edited = torch.zeros_like(edited)
    latents = torch.cat([edited.any(0).nonzero()[:, 0], watched]).unique()
    return _Chosen(site, contrast, edited, watched, latents)


def _learnt(
    evidence: Evidence,
    concept: str,
    choice: Choice,
    chosen: Mapping[str, _Chosen],
    tell: Tell,
) -> dict[str, Transport]:
    """Maps of "transport"."""
    if evidence.adapter is None:
        raise ConfigError("mode 'transport' samples pairs of prompts: the evidence has no adapter")
    pairs = pairs_of(evidence.prompts, concept, str(choice.towards))
    read = {site: each.latents for site, each in chosen.items()}
    whole = choice.reads == "activations"
    batch = max(1, evidence.batch_size // 2)  # both prompts of a pair are in it
    return learn(
        evidence.adapter, evidence.saes, read, pairs,
        whole=whole, rounds=choice.rounds, batch_size=batch, tell=tell,
    )  # fmt: skip


def _site_edit(
    evidence: Evidence,
    concept: str,
    choice: Choice,
    chosen: _Chosen,
    learnt: Transport | None,
) -> SiteEdit:
    site, latents, contrast = chosen.site, chosen.latents, chosen.contrast
    sae, stats = evidence.saes[site], evidence.statistics[site]
    strengths = torch.ones_like(contrast.mean) if learnt else chosen.edited.float()
    return SiteEdit(
        site=site, sae=fingerprint(sae), latents=latents,
        timesteps=torch.tensor(stats.timesteps),
        strengths=choice.strength * strengths[:, latents],
        mean=contrast.mean[:, latents], other=contrast.other[:, latents],
        theta=stats.published_threshold[:, latents],
        **_gate(evidence, concept, chosen, learnt),
        mode=choice.mode, where=choice.where, half=choice.half, multiplier=choice.multiplier,
        window=choice.window, readout=Readout.of(sae, latents), saeuron_sign=choice.saeuron_sign,
        reads=choice.reads, write=learnt.write if learnt else None,
        shift=learnt.shift if learnt else None,
    )  # fmt: skip


def chosen_latents(
    contrast: Contrast, atoms: Float[Tensor, "s d"], choice: Choice
) -> Bool[Tensor, "T s"]:
    """Which latents are edited at which timestep."""
    scores = SCORES[choice.score](contrast, atoms)
    if not choice.per_step:
        scores = scores.mean(0, keepdim=True)
    if choice.percentile is not None:
        above = scores > scores.quantile(choice.percentile / 100, 1, keepdim=True)
    else:
        best = scores.topk(min(choice.count, scores.shape[1]), 1).indices
        above = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
    return above.expand(len(contrast.mean), -1)


def _watched(
    evidence: Evidence, site: str, contrast: Contrast, choice: Choice
) -> Int[Tensor, " w"]:
    """The candidates that the image gate reads; none where there is no such gate."""
    if "image" not in choice.where.split("+"):
        return torch.zeros(0, dtype=torch.int64)
    known, atoms = evidence.candidates[site], evidence.saes[site].W_dec.detach()
    sizes = SCORES["difference"](contrast, atoms).abs().mean(0)[known]
    return known[sizes.topk(min(choice.detectors, len(known))).indices.sort().values]


def _gate(
    evidence: Evidence, concept: str, chosen: _Chosen, learnt: Transport | None
) -> dict[str, Tensor]:
    """The detector's tables over all latents of the edit: 0 for those that it does not read."""
    codes, watch = evidence.codes[chosen.site], chosen.watched
    weight = torch.zeros(codes.shape[1], len(chosen.latents))
    bias = torch.zeros(codes.shape[1])
    if len(watch):
        truth = torch.tensor([holds(row, concept) for row in evidence.prompts])
        columns = torch.searchsorted(chosen.latents, watch)
        seen = codes[..., torch.searchsorted(evidence.candidates[chosen.site], watch)]
        if learnt:  # the concept as it looks while it is being replaced
            seen = torch.cat([seen, learnt.codes[..., columns]])
            truth = torch.cat([truth, torch.ones(len(learnt.codes), dtype=torch.bool)])
        found = detect.fit(seen, truth)
        weight[:, columns] = found.weight
        bias = found.bias
    return {"detector": weight, "bias": bias}
