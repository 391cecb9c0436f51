"""Every setting of a training under one plain name, from flags, files and Python alike.

A dotted name is part of a group: nest.ks=[4, 8] is nest={"kind": "k", "ks": [4, 8]}; a group's name
with a word chooses its kind: nest="prefix", dead="resample".
"""

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from vision_sae import families
from vision_sae.config import Frozen, plain_error
from vision_sae.errors import ConfigError
from vision_sae.sae import SAEConfig
from vision_sae.train import TrainConfig

EVERY, TRAINING = "every SAE", "training"


class Start(Frozen):
    """What is set beside SAEConfig, the family and TrainConfig."""

    family: str = "topk"  # how codes are made sparse
    expansion: float = 16  # latents per input dimension
    s: int | None = Field(None, ge=1)  # latents, in place of expansion
    seed: int = 0  # of the first weights, and of the order of rows
    order: int | None = None  # seed of the order of rows alone


class Recipe(NamedTuple):
    """How to make an SAE of any width."""

    start: Start
    sae: dict[str, Any]
    family: dict[str, Any]
    train: TrainConfig

    def config(self, width: int, width_out: int | None = None) -> SAEConfig:
        """For these widths of inputs and targets. Raises ConfigError."""
        s = round(self.start.expansion * width) if self.start.s is None else self.start.s
        out = {} if width_out is None else {"d_out": width_out}
        return SAEConfig.of(width, s, self.start.family, **self.sae, **self.family, **out)


def recipe(settings: Mapping[str, Any]) -> Recipe:
    """Sort settings by where they belong. Raises ConfigError, with near names for unknown ones."""
    tree = _nested(settings)
    start = _checked_start({name: tree.pop(name) for name in Start.model_fields if name in tree})
    own = names_of(families.family(start.family))
    for name in tree:
        if not {EVERY, TRAINING} & set(owners(name)) and name not in own:
            raise _misplaced(name, start.family)
    parts = [{n: v for n, v in tree.items() if n in names} for names in (_SAE, own, _TRAIN)]
    order = start.seed if start.order is None else start.order
    return Recipe(start, parts[0], parts[1], TrainConfig.of(**parts[2], seed=order))


def _checked_start(values: dict[str, Any]) -> Start:
    try:
        return Start(**values)
    except ValidationError as error:
        raise ConfigError(plain_error(error)) from None


def names_of(config: type[BaseModel]) -> list[str]:
    return [name for name in config.model_fields if name != "kind"]


# what comes from elsewhere: widths from the activations, seeds and latents from Start
_SAE = [n for n in names_of(SAEConfig) if n not in ("d", "d_out", "s", "sparsity")]
_TRAIN = [n for n in names_of(TrainConfig) if n != "seed"]


def owners(name: str) -> list[str]:
    """Where a setting belongs: "every SAE", "training", or the families that have it."""
    head = name.partition(".")[0]
    return [place for place, names in places().items() if head in names]


def places() -> dict[str, list[str]]:
    """All settings: those of every SAE, those of the training, and each family's own."""
    start = {EVERY: ["family", "expansion", "s", *_SAE], TRAINING: ["seed", "order", *_TRAIN]}
    return start | {kind: names_of(families.family(kind)) for kind in families.names()}


def relevant(settings: Mapping[str, Any], kinds: Collection[str]) -> dict[str, Any]:
    """Without what only other families among `kinds` have; raises ConfigError where none has it."""
    family = settings.get("family", Start().family)
    kept = {}
    for name, value in settings.items():
        belongs = owners(name)
        if {EVERY, TRAINING, family} & set(belongs):
            kept[name] = value
        elif not set(kinds) & set(belongs):
            raise _misplaced(name, family)
    return kept


def _misplaced(name: str, family: str) -> ConfigError:
    belongs = owners(name)
    if belongs:
        has = ", ".join(names_of(families.family(family))) or "no settings"
        where = _listed(belongs)
        return ConfigError(f"{name} is a setting of {where}; the {family} family has {has}")
    known = sorted({n for names in places().values() for n in names})
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    hint = " or ".join(f"{n} ({_listed(owners(n))})" for n in near)
    advice = f"did you mean {hint}?" if near else "`vision-sae families` lists all"
    return ConfigError(f"no setting {name!r}; {advice}")


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


# ---- groups


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in sorted(settings):  # a group's own name comes before its parts
        head, _, rest = name.partition(".")
        if not rest:
            tree[head] = settings[name]
            continue
        group = tree.get(head)
        tree[head] = ({"kind": group} if isinstance(group, str) else dict(group or {})) | {
            rest: settings[name]
        }
    return {name: _with_kind(name, value) for name, value in tree.items()}


def _with_kind(name: str, value: Any) -> Any:
    """A group as data with its kind, which is found from its parts where they tell."""
    kinds = _kinds(name)
    if kinds and isinstance(value, str):
        return {"kind": value}
    if not kinds or not isinstance(value, dict) or "kind" in value:
        return value
    fit = _plainest({k: c for k, c in kinds.items() if set(value) <= set(c.model_fields)}, value)
    if len(fit) == 1:
        return {"kind": fit[0], **value}
    parts = " and ".join(f"{name}.{part}" for part in value)
    if fit:
        raise ConfigError(f"{parts} is of several kinds; set {name} to {' or '.join(fit)}")
    known = ", ".join(f"{kind} ({', '.join(names_of(c))})" for kind, c in kinds.items())
    raise ConfigError(f"no setting {parts}; {name} may be {known}")


def _plainest(kinds: dict[str, type[BaseModel]], given: dict[str, Any]) -> list[str]:
    """Of the kinds that have all the given parts, the one that needs no other and that the rest
    extend; all of them when there is none.
    """
    complete = {
        kind: config
        for kind, config in kinds.items()
        if all(n in given or not field.is_required() for n, field in config.model_fields.items())
    }
    configs = complete.values()
    base = [kind for kind, c in complete.items() if all(issubclass(d, c) for d in configs)]
    return base or list(kinds)


def _kinds(name: str) -> dict[str, type[BaseModel]]:
    """The kinds of a group of settings, by name; empty for a plain setting."""
    config = SAEConfig if name in _SAE else TrainConfig
    field = config.model_fields.get(name)
    found = _models(field.annotation) if field else []
    return {model.model_fields["kind"].default: model for model in found}


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


# ---- what there is


class Setting(NamedTuple):
    """One setting, in words."""

    name: str
    default: Any
    values: str
    about: str


def settings_of(place: str) -> list[Setting]:
    """The settings of "every SAE", of "training" or of a family."""
    configs: dict[str, type[BaseModel]] = {EVERY: SAEConfig, TRAINING: TrainConfig}
    own: list[type[BaseModel]] = [Start, configs[place]] if place in configs else []
    found: dict[str, Setting] = {}
    for config in own or [families.family(place)]:
        found = {s.name: s for s in _settings(config)} | found
    return [found[name] for name in places()[place]]


def _settings(config: type[BaseModel]) -> Iterator[Setting]:
    comments = _comments(config)
    for name, field in config.model_fields.items():
        about = comments.get(name, "")
        yield Setting(name, _default(name, field), _values(field.annotation), about)


def _default(name: str, field: FieldInfo) -> Any:
    if field.is_required():
        return 16 if name == "k" else "required"
    return field.get_default(call_default_factory=True, validated_data={})


def _values(annotation: Any) -> str:
    """What a setting may be."""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if annotation is NoneType:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = ", ".join(names_of(annotation))
        kind = str(annotation.model_fields["kind"].default)
        return f"{kind} ({inner})" if inner else kind
    if get_origin(annotation) is tuple:
        return "list"
    if isinstance(annotation, type):
        return annotation.__name__
    if hasattr(annotation, "__metadata__"):
        return _values(get_args(annotation)[0])
    return " | ".join(dict.fromkeys(_values(inner) for inner in get_args(annotation)))


def _comments(config: type[BaseModel]) -> dict[str, str]:
    """The comments behind the fields, in the source where there is one."""
    found: dict[str, str] = {}
    for parent in reversed(config.__mro__):
        if not issubclass(parent, Frozen) or parent is Frozen:
            continue
        try:
            source = inspect.getsource(parent)
        except (OSError, TypeError):
            continue
        found |= dict(re.findall(r"^    (\w+): .*#\s+(.+)$", source, re.MULTILINE))
    return found
