"""A plan: what to change in a denoiser, at which sites and timesteps, so that a concept goes.

A plan is a small folder, plan.json and plan.safetensors, which holds no weights of the model.
Shape key: T timesteps of the tables, m latents of an edit, d width of the site.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vision_sae.errors import CheckpointError, ConfigError, MismatchError
from vision_sae.files import part, write_json, write_tensors
from vision_sae.model.sites import place_of
from vision_sae.recipes.unlearn.readout import Readout

Mode = Literal["multiple", "zero", "clamp", "scale", "replace", "patches", "transport"]
Reads = Literal["codes", "activations"]
Gate = Literal["everywhere", "threshold", "image", "mask"]
Half = Literal["cond", "uncond", "both"]
DESCRIPTION, TENSORS, FORMAT = "plan.json", "plan.safetensors", 2
SAMPLES = 256  # weights of the model that a plan remembers, to know it again
TABLES = ("strengths", "mean", "other", "theta", "detector", "bias")
MAPS = ("write", "shift")


@dataclass(frozen=True, eq=False)
class SiteEdit:
    """One concept's edit at one site: f becomes f + strength * (target - f) where the gates open.

    `target` by `mode`: "multiple" multiplier * mean * f (SAeUron), "zero" 0, "clamp" multiplier *
    mean, "scale" multiplier * f, "replace" f + other - mean. "patches" leaves the codes and puts
    undetected positions of the same map in the place of detected ones (PER, arXiv 2606.31699).
    "transport" leaves the codes and adds f write + shift to the output (see transport.py), or
    x write + shift where it `reads` activations, with a `write` for each of p parts of `timesteps`.
    `where` names gates, joined by +: "everywhere"; "threshold" where a code is above theta; "image"
    where the detector finds the concept in the token-mean codes; "mask" on tokens where any edited
    code is above theta. Tables are interpolated between `timesteps`, and constant beyond them.
    Raises ConfigError for what is not allowed.
    """

    site: str
    sae: str  # fingerprint of the SAE
    latents: Int[Tensor, " m"]
    timesteps: Int[Tensor, " T"]
    strengths: Float[Tensor, "T m"]  # 0: identity, 1: the whole way to the target
    mean: Float[Tensor, "T m"]  # of the concept's prompts
    other: Float[Tensor, "T m"]  # of the others
    theta: Float[Tensor, "T m"]
    detector: Float[Tensor, "T m"]
    bias: Float[Tensor, " T"]
    mode: str = "replace"
    where: str = "image"
    half: str = "cond"
    multiplier: float = -1.0
    window: tuple[int, int] = (0, 10**6)  # timesteps, both included
    readout: Readout | None = None  # None: the SAE itself must be at hand
    saeuron_sign: bool = False  # add the SAE's error with the published code's sign
    reads: str = "codes"
    write: Float[Tensor, "p r d"] | None = None
    shift: Float[Tensor, "T d"] | None = None

    def __post_init__(self) -> None:
        place_of(self.site)
        one_of("mode", self.mode, get_args(Mode))
        one_of("half", self.half, get_args(Half))
        for gate in self.gates:
            one_of("gate", gate, get_args(Gate))
        one_of("reads", self.reads, get_args(Reads))
        if self.mode == "transport" and (self.write is None or "threshold" in self.gates):
            raise ConfigError(
                "mode 'transport' needs a learnt map and a gate per image or position ('image', "
                f"'mask'), not per latent; got where={self.where!r}"
            )
        if self.window[0] > self.window[1]:
            raise ConfigError(f"a window is (from, to) in timesteps, from <= to; got {self.window}")

    @property
    def gates(self) -> tuple[str, ...]:
        return tuple(self.where.split("+"))

    def scaled(self, factor: float) -> "SiteEdit":
        """The same edit, `factor` times as strong."""
        return replace(self, strengths=self.strengths * factor)


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError."""
    if value not in allowed:
        raise ConfigError(f"{what} must be one of {', '.join(allowed)}; got {value!r}")


@dataclass(frozen=True, eq=False)
class TextEdit:
    """What is added to one layer of a text encoder: -strength * vector on the prompts' pass.

    On the negative prompts' pass the opposite, where `negative`. See text.py (Concept Steerers).
    """

    component: str  # of the pipeline: "text_encoder"
    layer: int
    vector: Float[Tensor, "t d"]
    strength: float
    negative: bool = True

    def scaled(self, factor: float) -> "TextEdit":
        """The same edit, `factor` times as strong."""
        return replace(self, strength=self.strength * factor)


@dataclass(frozen=True, eq=False)
class Plan:
    """The edits that remove one concept from one model: of its denoiser, of its text encoders.

    `weights` is a sample of the denoiser's weights and `schedule` says how its timesteps count:
    by these `check` tells whether a plan belongs to a pipeline.
    """

    concept: str
    edits: tuple[SiteEdit, ...]
    model: str  # the adapter's name
    weights: Float[Tensor, " samples"]
    schedule: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    text: tuple[TextEdit, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(edit.site for edit in self.edits)

    def scaled(self, factor: float) -> "Plan":
        """The same plan, `factor` times as strong; 0 is the identity."""
        edits = tuple(edit.scaled(factor) for edit in self.edits)
        return replace(self, edits=edits, text=tuple(edit.scaled(factor) for edit in self.text))

    def save(self, folder: str | Path) -> Path:
        """Write plan.json and plan.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"weights": self.weights}
        for i, edit in enumerate(self.edits):
            tensors |= {f"{i}.{name}": tensor.clone() for name, tensor in _tensors(edit).items()}
        tensors |= {f"text.{i}": edit.vector for i, edit in enumerate(self.text)}
        write_tensors(folder / TENSORS, tensors)
        write_json(folder / DESCRIPTION, self.describe())
        return folder

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "format": FORMAT, "concept": self.concept, "model": self.model,
            "schedule": dict(self.schedule), "edits": [_settings(edit) for edit in self.edits],
            "text": [_text_settings(edit) for edit in self.text], "about": dict(self.about),
        }  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> "Plan":
        """Raises CheckpointError for what is not a plan, or of a later format."""
        folder = Path(folder)
        try:
            told = json.loads((folder / DESCRIPTION).read_text())
            tensors = load_file(folder / TENSORS)
            if told["format"] != FORMAT:
                raise CheckpointError(f"{folder}: plan format {told['format']}; known: {FORMAT}")
            edits = [_edit(s, part(tensors, f"{i}.")) for i, s in enumerate(told["edits"])]
            text = [TextEdit(vector=tensors[f"text.{i}"], **s) for i, s in enumerate(told["text"])]
            return cls(
                told["concept"], tuple(edits), told["model"], tensors["weights"],
                told["schedule"], told["about"], tuple(text),
            )  # fmt: skip
        except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder} is no plan ({DESCRIPTION} and {TENSORS}): {type(error).__name__} {error}"
            ) from None

    def check(self, pipe: Any, denoiser: nn.Module) -> None:
        """Raises MismatchError when this plan was made for another model or schedule."""
        here = sample_of(denoiser)
        if here.shape != self.weights.shape or _distance(here, self.weights) > 0.02:
            raise MismatchError(
                f"the plan for {self.concept!r} was made for {self.model}, whose weights differ "
                f"from those of this {type(denoiser).__name__}; make a plan with this one"
            )
        schedule = schedule_of(pipe)
        if schedule != dict(self.schedule):
            raise MismatchError(
                f"the plan for {self.concept!r} was made for the schedule {dict(self.schedule)}; "
                f"this pipeline's {type(pipe.scheduler).__name__} has {schedule}"
            )


def _distance(a: Tensor, b: Tensor) -> float:
    """Relative; half precision moves it by a thousandth."""
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


def sample_of(model: nn.Module) -> Float[Tensor, " samples"]:
    """Some weights of a model, evenly over its parameters, in float32."""
    parameters = [p.detach().flatten() for _, p in sorted(model.named_parameters())]
    chosen = parameters[:: max(1, len(parameters) // SAMPLES)]
    return torch.stack([p[len(p) // 2] for p in chosen]).float().cpu()


def schedule_of(pipe: Any) -> dict[str, Any]:
    """How a scheduler counts its timesteps and what the denoiser predicts."""
    config = pipe.scheduler.config
    return {
        "timesteps": config.get("num_train_timesteps"),
        "prediction": config.get("prediction_type", "flow"),
    }


def _tensors(edit: SiteEdit) -> dict[str, Tensor]:
    found = {name: getattr(edit, name) for name in ("latents", "timesteps", *TABLES)}
    found |= {n: t for n in MAPS if (t := getattr(edit, n)) is not None}
    if edit.readout:
        found |= {f"readout.{name}": t for name, t in edit.readout.tensors().items()}
    return found


def _settings(edit: SiteEdit) -> dict[str, Any]:
    apart = {"latents", "timesteps", "readout", *TABLES, *MAPS}
    settings = {f.name: getattr(edit, f.name) for f in fields(edit) if f.name not in apart}
    return settings | {"rows": edit.readout.rows if edit.readout else None}


def _text_settings(edit: TextEdit) -> dict[str, Any]:
    return {f.name: getattr(edit, f.name) for f in fields(edit) if f.name != "vector"}


def _edit(settings: dict[str, Any], tensors: dict[str, Tensor]) -> SiteEdit:
    rest = dict(settings)
    rows, rest["window"] = rest.pop("rows"), tuple(rest["window"])
    readout = Readout(**part(tensors, "readout."), rows=rows) if rows else None
    tables = {n: t for n, t in tensors.items() if not n.startswith("readout.")}
    given: dict[str, Any] = rest | tables
    return SiteEdit(**given, readout=readout)
