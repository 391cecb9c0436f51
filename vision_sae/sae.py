"""The sparse autoencoder.

    z = (x - b_dec) W_enc' + b_enc,  f = family(z),  x_hat = f W_dec + b_dec

Shape key: n rows, d input width, o output width (d unless it is a transcoder), s latents. Weights
have one row per latent.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vision_sae import families
from vision_sae import nest as nested
from vision_sae.config import Frozen, plain_error
from vision_sae.dictionary import Archetypal, Archetypes
from vision_sae.errors import ConfigError, DataError
from vision_sae.families import BatchTopK, Encoded, Family, TopK
from vision_sae.levels import Levels
from vision_sae.nest import Both, Ks, Nest
from vision_sae.parallel import ALONE, Group
from vision_sae.provenance import Provenance
from vision_sae.rows import RowNorm, RowTreatment, treat_rows
from vision_sae.sparse import kernels
from vision_sae.sparse.codes import AnyCodes, Codes, Support

Sparsity = Annotated[SerializeAsAny[Family], BeforeValidator(families.parse)]


class SAEConfig(Frozen):
    """What an SAE is: input width `d`, latents `s`, and how codes are made sparse.

    With `d_out` it is a transcoder: it reads x and writes y of that width; `skip` adds a linear
    path. `centred`: b_dec is taken off the input. `rows`: what is done to each row alone before
    encoding, undone on the output.

    `atoms`: unit norm held in training, or free, as `of` chooses for JumpReLU, BatchTopK,
    transcoders and archetypal dictionaries. In the worlds of benchmarks/synthetic.py BatchTopK has
    MCC .89 and F1 .52 with free atoms, .81 and .42 with unit ones (nested in prefixes .82 and .46,
    .61 and .24); on activations of emoji-clip FVU .1775 and .1800. Tied weights keep unit norm.
    With free atoms a code alone does not say how much a latent adds: that is the code times the
    norm of its atom. `fold_norms` (for BatchTopK after `fold_threshold`) makes codes that.

    `rescale`: latents compete by z times their atom's norm. Then a norm changes the units of codes
    only, neither the choice nor the reconstruction, so `of` keeps unit atoms, with which it does
    nothing; `rescale=True, atoms="free"` is what SAELens trains.
    """

    d: int = Field(ge=1)
    s: int = Field(ge=1)
    sparsity: Sparsity
    d_out: int | None = Field(None, ge=1)
    skip: bool = False  # of a transcoder: a linear path beside it
    tied: bool = False  # the decoder is the encoder, transposed
    centred: bool = True  # b_dec is taken off the input
    atoms: Literal["unit", "free"] = "unit"  # their norm in training; jumprelu, batchtopk: free
    rescale: bool = False  # latents compete by z times their atom's norm
    rows: RowNorm = "none"  # done to each row before encoding, undone after
    nest: Nest | None = None  # Matryoshka losses, over prefixes or over k
    dictionary: Archetypal | None = None  # atoms near mixtures of data points

    @model_validator(mode="after")
    def _fits(self) -> "SAEConfig":
        wrong = self.sparsity.check(self.s) or self._contradiction()
        if wrong:
            raise ValueError(wrong)
        return self

    def _contradiction(self) -> str | None:
        if self.d_out is not None and (self.tied or self.centred or self.rows != "none"):
            return "a transcoder (d_out) has tied=False, centred=False and rows='none'"
        if self.rescale and not self.sparsity.competes:
            return f"rescale is for families whose latents compete; {self.sparsity.kind} is none"
        if isinstance(self.nest, Both) and self.sparsity.kind in ("groupmax", "mp"):
            return f"nest='both' is not for {self.sparsity.kind}, which cannot choose in a prefix"
        if isinstance(self.nest, Ks) and self.nest.own:
            k = self.sparsity.k if isinstance(self.sparsity, TopK) else None
            if k != max(self.nest.ks):
                return (
                    "nest.own=True is for topk with the largest k of the nest; got "
                    f"{self.sparsity.kind}, k={k}, nest.ks={list(self.nest.ks)}"
                )
        if self.skip and self.d_out is None:
            return "skip is for transcoders: set d_out"
        if self.dictionary and (self.tied or self.atoms == "unit"):
            return "an archetypal dictionary has tied=False and atoms='free'"
        if self.sparsity.kind == "mp" and not (self.tied and self.centred and self.atoms == "unit"):
            return "matching pursuit has tied=True, centred=True and atoms='unit'"
        return None

    @property
    def width_out(self) -> int:
        return self.d_out or self.d

    @classmethod
    def of(
        cls, d: int, s: int, family: str = "topk", k: int | None = None, **options: Any
    ) -> "SAEConfig":
        """A config from plain values; options not of the SAE are the family's.

        `k` is 16, or what fits, where the family needs one. Raises ConfigError for what is not
        allowed, and says what is.
        """
        kind = families.family(family)
        mine = {name: value for name, value in options.items() if name in cls.model_fields}
        theirs = {name: value for name, value in options.items() if name not in mine}
        if "k" in kind.model_fields:
            theirs["k"] = kind.usual_k(s) if k is None else k
        elif k is not None:
            raise ConfigError(f"the {family} family has no k; it has {_fields(kind)}")
        try:
            return cls(d=d, s=s, sparsity=kind(**theirs), **(_usual(family, mine) | mine))
        except ValidationError as error:
            raise ConfigError(plain_error(error)) from None


def _fields(kind: type[Family]) -> str:
    return ", ".join(name for name in kind.model_fields if name != "kind")


def _usual(family: str, options: dict[str, Any]) -> dict[str, Any]:
    """The settings that a family or another setting asks for."""
    if options.get("d_out"):
        return {"centred": False, "atoms": "free"}
    if options.get("dictionary"):
        return {"atoms": "free"}
    if options.get("tied"):
        return {}
    if family == "mp":
        return {"tied": True}
    free = family == "jumprelu" or (family == "batchtopk" and not options.get("rescale"))
    return {"atoms": "free"} if free else {}


class Output(NamedTuple):
    """What a forward pass gives: the codes and the reconstruction."""

    codes: Codes
    x_hat: Float[Tensor, "n o"]


class SAE(nn.Module):
    """A sparse autoencoder, the encoder started as the decoder's transpose.

    A BatchTopK's `threshold_choice` says which of its two thresholds is in use. `scale` records
    the factor that inputs had in training; it is folded into the weights already. `provenance` says
    which model, site and images it was trained on, where that is known.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    W_skip: Tensor | None
    threshold: Tensor
    threshold_ema: Tensor
    thresholds: nn.Parameter
    r_mag: nn.Parameter
    b_mag: nn.Parameter
    scale: Tensor
    provenance: Provenance | None = None
    threshold_choice: Literal["calibrated", "running"] = "calibrated"

    # set by training, not saved
    group: Group = ALONE
    b_in: Tensor | None = None  # b_dec as the encoder reads it, when latents are shared
    row_gradients = False  # gradients of the weights cover only the rows of active latents
    screened = False  # look for the largest in low precision first

    def __init__(self, config: SAEConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        s, d, o = config.s, config.d, config.width_out
        atoms = _unit_rows(s, d, seed)
        norm = 1.0 if config.tied else config.sparsity.start_norm
        self.W_enc = nn.Parameter(atoms * norm)  # [s d]
        self.b_enc = nn.Parameter(torch.zeros(s))
        self.b_dec = nn.Parameter(torch.zeros(o))
        self._start_decoder(atoms, seed)
        self.W_skip = nn.Parameter(torch.zeros(o, d)) if config.skip else None
        own = set(config.nest.ks) if isinstance(config.nest, Ks) and config.nest.own else set()
        self.levels = Levels(own, s) if len(own) > 1 else None
        config.sparsity.attach(self)
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float64))

    def _start_decoder(self, atoms: Float[Tensor, "s d"], seed: int) -> None:
        c = self.config
        if c.dictionary:
            self.W_dec = nn.Parameter(Archetypes.start(c.s, c.dictionary.points))
            shape = Archetypes(c.dictionary, c.s, c.width_out)
            parametrize.register_parametrization(self, "W_dec", shape, unsafe=True)
        elif c.tied:
            self.W_dec = self.W_enc
        elif c.d_out is None:
            self.W_dec = nn.Parameter(atoms if c.atoms == "unit" else self.W_enc.clone())  # [s d]
        elif c.atoms == "free" and not c.rescale:  # a transcoder starts at zero (sparsify)
            self.W_dec = nn.Parameter(torch.zeros(c.s, c.d_out))
        else:
            self.W_dec = nn.Parameter(_unit_rows(c.s, c.d_out, seed + 1))

    def read(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "m d"]:
        """Rows as the encoder sees them: treated one by one, and centred if so configured."""
        return self._centred(self.treated(x).rows)

    def treated(self, x: Float[Tensor, "*n d"]) -> RowTreatment:
        """Rows after the treatment of each by itself, and the way back. Raises DataError."""
        self._check_width(x)
        return treat_rows(x.reshape(-1, self.config.d), self.config.rows)

    def _centred(self, rows: Tensor) -> Tensor:
        return rows - self._offset if self.config.centred else rows

    @property
    def _offset(self) -> Tensor:
        return self.b_dec if self.b_in is None else self.b_in

    def pre_activations(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n s"]:
        """z, dense. Raises DataError when the width is another one."""
        pre = torch.addmm(self.b_enc, self.read(x), self.W_enc.T)
        return pre.view(*x.shape[:-1], self.config.s)

    def encode(
        self, x: Float[Tensor, "*n d"], *, k: int | None = None, prefix: int | None = None
    ) -> Codes:
        """Sparse codes; leading axes are flattened to rows.

        `k` in place of the family's own; of an SAE nested over k, any that it was trained for.
        `prefix`: the first latents only, as a dictionary of their own, of an SAE nested over
        prefixes. Raises DataError on another width, ConfigError for a k or prefix that the SAE does
        not serve.
        """
        family, nest = self.config.sparsity, self.config.nest
        nested.check(nest, self.config.s, k, prefix, own=getattr(family, "k", 0))
        over_k = isinstance(nest, Ks)
        alone = prefix if isinstance(nest, Both) and family.competes else None
        found = self.encoded(x, k=None if over_k else k, prefix=alone)
        if self.levels is not None and k is not None:
            return self.levels.codes(found, k)
        codes = _sparse(found.codes)
        if prefix is not None and alone is None:
            codes = _sparse(nested.first(codes, prefix))
        return codes if k is None or not over_k else nested.strongest(codes, k)

    def encoded(
        self, x: Float[Tensor, "*n d"], *, k: int | None = None, prefix: int | None = None
    ) -> Encoded:
        """Codes in whichever form is faster to train on, with the pre-activations behind them.

        With `prefix` only the first latents compete with each other.
        """
        return self._encoded(self.treated(x).rows, k, prefix)

    def _encoded(self, rows: Tensor, k: int | None = None, prefix: int | None = None) -> Encoded:
        family = self.config.sparsity
        if rows.requires_grad or not self.config.centred:
            return family.encode(self, self._centred(rows), k=k, prefix=prefix)
        with torch.no_grad():  # b_dec's gradient comes from the codes, without one for all rows
            centred = self._centred(rows)
        return family.encode(self, centred, k=k, prefix=prefix, centre=self._offset)

    def level(self, x: Float[Tensor, "*n d"], k: int, prefix: int | None = None) -> Codes:
        """Codes as one k reads them (`vision_sae.levels`), with gradients at its entries only."""
        assert self.levels is not None
        rows = self.treated(x).rows
        with torch.no_grad():
            found = self._encoded(rows, prefix=prefix)
            support, z = found.codes.support, found.z.view(len(rows), -1)  # type: ignore[union-attr]
            place = self.levels.places(support, z, k)
            latents = support.indices.view(z.shape).gather(1, place)
            chosen, known = Support.even(latents, support.width), z.gather(1, place).flatten()
            chosen = replace(chosen, row_gradients=support.row_gradients)
        alone = self.config.centred and not rows.requires_grad  # as in `_encoded`
        with torch.set_grad_enabled(torch.is_grad_enabled() and not alone):
            centred = self._centred(rows)
        centre = self._offset if alone else None
        z = kernels.project(centred, self.W_enc, self.b_enc, chosen, known, centre)
        return Codes(self.levels.loud(z.view(place.shape), latents, k).relu().flatten(), chosen)

    def decode(self, codes: AnyCodes) -> Float[Tensor, "n o"]:
        """Codes times atoms, plus b_dec (and no skip path)."""
        return self.group.latents.joined(kernels.decode(codes, self.W_dec)) + self.b_dec

    def forward(self, x: Float[Tensor, "*n d"]) -> Output:
        rows, undo = self.treated(x)
        codes = _sparse(self._encoded(rows).codes)
        return Output(codes, undo(self.decode(codes) + self.skipped(rows)))

    def skipped(self, rows: Float[Tensor, "n d"]) -> Tensor | float:
        """What the linear path of a skip transcoder adds."""
        return 0.0 if self.W_skip is None else rows @ self.W_skip.T

    def _check_width(self, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.config.d:
            raise DataError(
                f"this SAE reads vectors of width {self.config.d}; got shape {tuple(x.shape)}"
            )

    def competing_norms(self) -> Float[Tensor, " s"] | None:
        """The factors by which latents compete, where they do not by z itself."""
        return self.W_dec.detach().norm(dim=1) if self.config.rescale else None

    def inference_threshold(self) -> Float[Tensor, ""]:
        """Of a BatchTopK SAE. Raises ConfigError without one."""
        if not isinstance(self.config.sparsity, BatchTopK):
            raise ConfigError(f"the {self.config.sparsity.kind} family has no single threshold")
        return self.config.sparsity.threshold(self)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Atoms back to unit norm; after row-sparse gradients, those that moved."""
        grad = self.W_dec.grad
        if grad is not None and grad.is_sparse:
            rows = grad.coalesce().indices()[0]
            self.W_dec[rows] = nn.functional.normalize(self.W_dec[rows], dim=1)
            return
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take the part along each atom off its gradient, so that the step keeps its norm."""
        grad = self.W_dec.grad
        if grad is not None and grad.is_sparse:
            self.W_dec.grad = grad = grad.coalesce()
            atoms, values = self.W_dec[grad.indices()[0]], grad.values()
            values.addcmul_((values * atoms).sum(1, keepdim=True), atoms, value=-1)
        elif grad is not None:
            grad.addcmul_((grad * self.W_dec).sum(1, keepdim=True), self.W_dec, value=-1)


def _unit_rows(s: int, d: int, seed: int) -> Float[Tensor, "s d"]:
    atoms = torch.randn(s, d, generator=torch.Generator().manual_seed(seed))
    atoms /= atoms.norm(dim=1, keepdim=True)
    return atoms


def _sparse(codes: AnyCodes) -> Codes:
    return codes if isinstance(codes, Codes) else codes.sparse()
