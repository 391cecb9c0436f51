"""What is added to a site's tensor: each part alone, and never a wait for the device."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vision_sae.errors import ConfigError
from vision_sae.model.adapter import fingerprint
from vision_sae.recipes.unlearn.calls import Guidance
from vision_sae.recipes.unlearn.change import (
    LAST,
    Clock,
    SiteChange,
    Tables,
    as_tokens,
    row_of,
    spread,
)
from vision_sae.recipes.unlearn.plan import TABLES, SiteEdit
from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.sae import SAE, SAEConfig

D, M, CPU = 8, 5, torch.device("cpu")
MODES = ["multiple", "zero", "clamp", "scale", "replace", "patches", "transport"]
pytest.importorskip("diffusers")


class At(Clock):
    def __init__(self, now: Any) -> None:
        self.now, self.seen = now, {}


class Guided(Guidance):
    """A pipeline that says whether it is guided."""

    def __init__(self, guided: bool) -> None:
        self.guided = guided

    def __call__(self) -> bool:
        return self.guided


def sae_of(family: str = "relu", seed: int = 0, **options: Any) -> SAE:
    return SAE(SAEConfig.of(D, 3 * D, family, **options), seed=seed).eval()


def edit_of(sae: SAE, latents: list[int] | None = None, **other: Any) -> SiteEdit:
    chosen = torch.tensor(latents or [0, 4, 9, 13, 20])
    noise, m = torch.Generator().manual_seed(3), len(chosen)
    given: dict[str, Any] = {name: torch.rand(2, m, generator=noise) for name in TABLES}
    given |= {"strengths": torch.ones(2, m), "bias": torch.full((2,), 1e6)}
    given |= {"latents": chosen, "timesteps": torch.tensor([900, 100]), "where": "everywhere"}
    given |= {"mode": "scale", "readout": Readout.of(sae, chosen)}
    if other.get("mode") == "transport":
        given |= {"write": torch.randn(2, m, D, generator=noise), "where": "image"}
        given |= {"shift": torch.randn(2, D, generator=noise)}
    return SiteEdit("mid:update", fingerprint(sae), **(given | other))


def change_of(
    *edits: SiteEdit, sae: SAE | None = None, now: Any = 500, guided: bool = False
) -> Any:
    return SiteChange(list(edits), At(now), Guided(guided), sae, CPU)


def x_of(b: int = 4) -> Tensor:
    return torch.randn(b, 6, D, generator=torch.Generator().manual_seed(0))


# ---- the identity


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["relu", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", ["none", "layer_norm", "constant_norm"])
def test_strength_0_is_the_identity_bit_for_bit(
    mode: Any, family: str, dtype: torch.dtype, rows: Any
) -> None:
    sae = sae_of(family, rows=rows, **({"k": 4} if family == "topk" else {}))
    edit = edit_of(sae, mode=mode)
    x = x_of().to(dtype)
    assert torch.equal(change_of(edit.scaled(0), sae=sae)(x), x)
    after = change_of(edit, sae=sae)(x)
    assert after.dtype == dtype and (mode == "patches" or not torch.equal(after, x))


def test_strength_is_the_share_of_the_way_to_the_target() -> None:
    for mode in ("multiple", "zero", "clamp", "scale", "replace", "transport"):
        edit = edit_of(sae_of(), mode=mode)
        whole, x = change_of(edit), x_of()
        torch.testing.assert_close(
            change_of(edit.scaled(0.25)).delta(x), 0.25 * whole.delta(x), atol=1e-5, rtol=1e-4
        )


def test_the_published_sign_acts_where_the_edit_does_alone() -> None:
    sae, x = sae_of("topk", k=4), x_of()
    edit = edit_of(sae, saeuron_sign=True, mode="zero", window=(400, 600))
    assert torch.equal(change_of(edit.scaled(0), sae=sae)(x), x)
    assert torch.equal(change_of(edit, sae=sae, now=700)(x), x)
    assert not torch.equal(change_of(edit, sae=sae)(x), x)


# ---- gates first, where asking costs no wait


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["image", "image+mask"])
@pytest.mark.parametrize("half", ["cond", "uncond", "both"])
@pytest.mark.parametrize("rows", ["none", "layer_norm"])
def test_gates_read_first_give_what_all_at_once_give(
    mode: Any, where: str, half: Any, rows: Any
) -> None:
    """A timestep on a device is the slow twin: nothing is asked, everything is computed."""
    sae, x = sae_of(rows=rows), x_of(8)
    edits = [edit_of(sae, mode=mode, where=where, half=half) for _ in range(2)]
    f = sae.encode(x.flatten(0, 1)).to_dense()[:, edits[0].latents].view(8, 6, 5).mean(1)
    weight = torch.tensor([0.0, 1.0, 0.0, -2.0, 0.5])  # two latents are edited and not read
    middle = (f @ weight)[4:].median() if half == "cond" else (f @ weight)[:4].median()
    some = {"detector": weight.expand(2, 5), "bias": (0.01 - middle).expand(2)}
    edits = [
        replace(edits[0], **some),
        replace(edits[1], **some, strengths=torch.full((2, 5), 0.3)),
    ]
    first = change_of(*edits, guided=True)(x)
    whole = change_of(*edits, guided=True, now=torch.tensor(500))(x)
    torch.testing.assert_close(first, whole, atol=1e-5, rtol=1e-4)
    touched = (first != x).flatten(1).any(1)
    assert not touched.all() and (mode == "patches" or touched.any())


def test_pictures_with_a_closed_gate_are_not_read_further(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = sae_of(), x_of()
    closed = edit_of(sae, where="image", mode="zero", bias=torch.full((2,), -1e6))
    change = change_of(closed)
    monkeypatch.setattr(change.edits[0].first.rest, "readout", None)  # must not be asked
    assert change(x) is x


# ---- no wait for the device


class NoWait(TorchDispatchMode):
    """Raises where a device would have to be waited for."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name in self.WAITS:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_a_wait() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoWait():
        float(torch.ones(1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["everywhere", "image", "image+mask", "threshold"])
def test_nothing_waits_for_the_device(mode: Any, where: str) -> None:
    if mode == "transport" and where == "threshold":
        return
    sae = sae_of()
    edit = edit_of(sae, mode=mode, where=where)
    x = x_of()
    plain = change_of(edit, guided=True)(x)
    change = change_of(edit, now=torch.tensor(500), guided=True)  # as on a GPU
    with NoWait():
        found = change(x)
    assert torch.equal(found, plain)


def test_a_row_that_is_a_tensor_is_the_same_row() -> None:
    table = torch.rand(5, 3)
    assert torch.equal(row_of(table, torch.tensor(2)), row_of(table, 2))


# ---- the clock


def denoiser(name: str = "PixArtTransformer2DModel") -> Any:
    """A module of that name, called as (sample, timestep)."""

    def forward(self: Any, sample: Any, timestep: Any) -> Any:
        return sample

    return type(name, (nn.Module,), {"forward": forward})()


@pytest.mark.parametrize(
    ("time", "row"),
    [(0, 0), (37, 37), (999, 999), (1000.0, 1000), (5000, 1000), (36.6, 37),
     (torch.tensor(41), 41), (torch.tensor([41, 41]), 41), (torch.tensor([1e4]), 1000)],
)  # fmt: skip
def test_the_clock_reads_the_timestep_of_the_call(time: Any, row: int) -> None:
    model = denoiser()
    clock = Clock(model)
    with clock.following(model):
        model(0, time)
        assert clock.now == row
        clock.now = -1
        model(sample=0, timestep=time)
        assert clock.now == row
    assert not model._forward_pre_hooks


def test_the_clock_of_flux_counts_from_0_to_1() -> None:
    model = denoiser("FluxTransformer2DModel")
    clock = Clock(model)
    with clock.following(model):
        model(0, torch.tensor([0.25]))
    assert clock.now == 250


def test_a_clock_stops_after_an_exception() -> None:
    model = denoiser()
    with pytest.raises(RuntimeError), Clock(model).following(model):
        raise RuntimeError
    assert not model._forward_pre_hooks


# ---- tables


def test_spread_is_numpys_interpolation() -> None:
    np = pytest.importorskip("numpy")
    noise = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 25):
        times = torch.randperm(1000, generator=noise)[:count]
        table = torch.rand(count, 3, generator=noise)
        order = times.argsort()
        for column in range(3):
            given = times[order].numpy(), table[order, column].numpy()
            wanted = np.interp(np.arange(LAST + 1), *given)
            found = spread(table, times)[:, column]
            torch.testing.assert_close(found, torch.tensor(wanted).float(), atol=1e-5, rtol=1e-4)


def test_a_window_holds_both_its_ends() -> None:
    strengths = Tables.of(edit_of(sae_of(), window=(300, 302)), CPU).strengths
    assert strengths.any(1).nonzero().flatten().tolist() == [300, 301, 302]


# ---- halves


def test_halves_of_a_guided_batch() -> None:
    x, sae = x_of(4), sae_of()
    for half, rows in (("cond", [2, 3]), ("uncond", [0, 1]), ("both", [0, 1, 2, 3])):
        after = change_of(edit_of(sae, half=half), guided=True)(x)
        moved = (after != x).flatten(1).any(1).nonzero().flatten().tolist()
        assert moved == rows
    before = x.clone()
    change_of(edit_of(sae), guided=True)(x)
    assert torch.equal(x, before)  # not in place


def test_an_unconditional_half_that_is_not_there() -> None:
    change = change_of(edit_of(sae_of(), half="uncond"))
    with pytest.raises(ConfigError, match="without guidance: set guidance_scale above 1, or find"):
        change(x_of())
    for half in ("cond", "both"):
        assert not torch.equal(change_of(edit_of(sae_of(), half=half))(x_of()), x_of())


# ---- layouts


@pytest.mark.parametrize("shape", [(4, D), (4, 6, D), (4, D, 2, 3), (4, 2, 3, D)])
def test_tokens_and_back(shape: tuple[int, ...]) -> None:
    output = torch.randn(shape)
    tokens, back = as_tokens(output, D)
    assert tokens.shape == (4, 1 if len(shape) == 2 else 6, D)
    assert torch.equal(back(tokens), output)
    assert torch.equal(back(tokens[2:]), output[2:])


# ---- several edits of one site


@pytest.mark.parametrize("family", ["relu", "topk"])
def test_edits_together_add_what_each_adds_alone(family: str) -> None:
    """Also where they share latents, and whatever their modes."""
    sae, x = sae_of(family, **({"k": 6} if family == "topk" else {})), x_of()
    edits = [
        edit_of(sae, [1, 2, 3], mode="zero"),
        edit_of(sae, [3, 2, 17], mode="replace", where="mask"),
        edit_of(sae, [3, 8], mode="patches", where="mask"),
        edit_of(sae, [5, 6, 1], mode="transport"),
    ]
    alone = [change_of(edit, sae=sae).delta(x) for edit in edits]
    together = change_of(*edits, sae=sae).delta(x)
    wanted = torch.stack(alone).sum(0)
    assert wanted.any()
    torch.testing.assert_close(together, wanted, atol=1e-5, rtol=1e-4)


def test_the_fast_way_adds_what_the_slow_one_does() -> None:
    """Encoder rows of the chosen latents against the whole SAE."""
    for rows in ("none", "layer_norm", "constant_norm"):
        sae, x = sae_of(rows=rows), x_of()
        for mode in MODES:
            fast = edit_of(sae, mode=mode)
            slow = edit_of(sae, mode=mode, readout=None)
            torch.testing.assert_close(
                change_of(fast).delta(x), change_of(slow, sae=sae).delta(x), atol=1e-5, rtol=1e-4
            )


def test_a_difference_of_treated_rows_is_undone() -> None:
    """What is added is the decoder's difference times each row's deviation."""
    sae, x = sae_of(rows="layer_norm"), x_of()
    edit = edit_of(sae, mode="zero")
    with torch.no_grad():
        codes = sae.encode(x.reshape(-1, D)).to_dense()[:, edit.latents]
        wanted = -(codes @ sae.W_dec[edit.latents]).view_as(x) * x.std(2, keepdim=True)
    torch.testing.assert_close(change_of(edit).delta(x), wanted, atol=1e-5, rtol=1e-4)


def test_plans_of_one_site_must_treat_rows_alike() -> None:
    a, b = edit_of(sae_of()), edit_of(sae_of(rows="layer_norm"))
    with pytest.raises(ConfigError, match=r"treat rows differently \(layer_norm, none\)"):
        change_of(a, b)


def test_a_map_where_every_position_is_detected_stays() -> None:
    edit = edit_of(sae_of(), mode="patches", where="mask", theta=torch.full((2, M), -1.0))
    assert torch.equal(change_of(edit)(x_of()), x_of())


def test_the_image_gate_reads_the_mean_of_the_codes() -> None:
    sae, x = sae_of(), x_of(6)
    edit = edit_of(sae, where="image", detector=torch.randn(2, M), bias=torch.zeros(2))
    weight = spread(edit.detector, edit.timesteps)[500]
    with torch.no_grad():
        codes = sae.encode(x.reshape(-1, D)).to_dense()[:, edit.latents].view(6, 6, M)
    least = float((codes.mean(1) @ weight).median())
    edit = edit_of(sae, where="image", detector=edit.detector, bias=torch.full((2,), -least - 1e-6))
    found = codes.mean(1) @ weight > least + 1e-6
    moved = cast(Tensor, change_of(edit)(x) != x).flatten(1).any(1)
    assert torch.equal(moved, found) and 0 < int(found.sum()) < 6
