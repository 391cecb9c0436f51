"""Plans at work: what they change, what they leave, and that nothing stays behind."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from vision_sae.errors import ConfigError, MismatchError, UnknownName
from vision_sae.model.adapter import fingerprint
from vision_sae.model.hooks import capture, edit
from vision_sae.recipes.unlearn.apply import unlearn
from vision_sae.recipes.unlearn.calls import Guidance
from vision_sae.recipes.unlearn.change import Clock, SiteChange, as_tokens, spread
from vision_sae.recipes.unlearn.plan import TABLES, Mode, Plan, SiteEdit, sample_of, schedule_of
from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.sae import SAE, SAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITE = "mid_block.attentions.0:update"
D = 16  # width of the site
MODES = [mode for mode in get_args(Mode) if mode != "transport"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline("sd")


def sae_of(family: str = "relu", seed: int = 0, **options: Any) -> SAE:
    return SAE(SAEConfig.of(D, 3 * D, family, **options), seed=seed).eval()


def edit_of(sae: SAE, m: int = 6, **other: Any) -> SiteEdit:
    torch.manual_seed(1)
    latents = torch.randperm(sae.config.s)[:m].sort().values
    given: dict[str, Any] = {name: torch.rand(2, m) * 0.1 for name in TABLES}
    given |= {"bias": torch.zeros(2), "strengths": torch.ones(2, m)}
    given |= {"latents": latents, "timesteps": torch.tensor([900, 100])}
    given |= {"where": "everywhere", "mode": "scale", "multiplier": -1.0}
    given |= {"readout": Readout.of(sae, latents)} | other
    return SiteEdit(SITE, fingerprint(sae), **given)


def plan_of(pipe: Any, *edits: SiteEdit, concept: str = "object:cat") -> Plan:
    return Plan(concept, edits, "tiny", sample_of(pipe.unet), schedule_of(pipe))


def draw(pipe: Any, prompt: Any = "a b", steps: int = 3, **options: Any) -> Tensor:
    count = 1 if isinstance(prompt, str) else len(prompt)
    given = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "latent"}
    given["generator"] = [torch.Generator().manual_seed(i) for i in range(count)]
    found: Tensor = pipe(prompt, **(given | options)).images
    return found


def hooks_of(pipe: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


# ---- identity, and nothing left


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("site", [SITE, "mid_block.attentions.0", "mid_block"])
def test_strength_0_changes_no_bit(pipe: Any, mode: Any, site: str) -> None:
    sae = sae_of()
    one = replace(edit_of(sae, mode=mode), site=site)
    plain = draw(pipe, ["a b", "c"])
    with unlearn(pipe, plan_of(pipe, one).scaled(0)):
        assert torch.equal(plain, draw(pipe, ["a b", "c"]))
    with unlearn(pipe, plan_of(pipe, one)):
        changed = draw(pipe, ["a b", "c"])
    assert mode == "patches" or not torch.equal(plain, changed)
    assert torch.equal(plain, draw(pipe, ["a b", "c"])) and hooks_of(pipe) == 0


def test_an_exception_while_sampling_leaves_nothing(pipe: Any) -> None:
    plan = plan_of(pipe, edit_of(sae_of()))

    def stop(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), unlearn(pipe, plan):
        draw(pipe, callback_on_step_end=stop)
    assert hooks_of(pipe) == 0
    with unlearn(pipe, plan):  # the site is free again
        pass


# ---- what is changed


def changed_tokens(pipe: Any, plan: Plan, saes: Any = None, **options: Any) -> tuple[Any, Any]:
    """The site's tensor of one call without and with the plan, [rows t d]."""
    torch.manual_seed(0)
    latents, states = torch.randn(4, 4, 16, 16), torch.randn(4, 8, 8)
    found = []
    pipe._guidance_scale = options.get("guidance", 3.0)
    for plans in (None, plan):
        seen: list[Tensor] = []
        with capture_after(pipe, plans, saes, seen), torch.no_grad():
            pipe.unet(latents, options.get("time", 500), encoder_hidden_states=states)
        found.append(as_tokens(seen[0], D)[0])
    return found[0], found[1]


class capture_after:
    """Reads what the module after the site is given: the site's edited output."""

    def __init__(self, pipe: Any, plan: Plan | None, saes: Any, seen: list[Tensor]) -> None:
        self.pipe, self.plan, self.saes, self.seen = pipe, plan, saes, seen

    def __enter__(self) -> None:
        from contextlib import ExitStack

        self.stack = ExitStack()
        if self.plan is not None:
            self.stack.enter_context(unlearn(self.pipe, self.plan, saes=self.saes))

        def note(output: Tensor) -> Tensor:
            self.seen.append(output.clone())
            return output

        self.stack.enter_context(edit(self.pipe.unet, SITE, note))

    def __exit__(self, *error: Any) -> None:
        self.stack.close()


@pytest.mark.parametrize("half", ["cond", "uncond", "both"])
def test_the_asked_half_is_changed_alone(pipe: Any, half: Any) -> None:
    before, after = changed_tokens(pipe, plan_of(pipe, edit_of(sae_of(), half=half)))
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert (
        moved
        == {
            "cond": [False, False, True, True],
            "uncond": [True, True, False, False],
            "both": [True] * 4,
        }[half]
    )


@pytest.mark.parametrize("mode", ["multiple", "zero", "clamp", "scale", "replace"])
@pytest.mark.parametrize("family", ["relu", "topk"])
def test_the_difference_of_edited_codes_is_added(pipe: Any, mode: Any, family: str) -> None:
    """Against the slow way: all codes, the whole decoder."""
    options = {"k": 8} if family == "topk" else {}
    sae = sae_of(family, **options)
    one = edit_of(sae, mode=mode, multiplier=-0.7, half="both")
    saes = {SITE: sae}
    before, after = changed_tokens(pipe, plan_of(pipe, one), saes)
    row = 500
    mean, other = (spread(t, one.timesteps)[row] for t in (one.mean, one.other))
    with torch.no_grad():
        rows = before.reshape(-1, D)
        codes = sae.encode(rows).to_dense()
        edited, f = codes.clone(), codes[:, one.latents]
        edited[:, one.latents] = {
            "multiple": -0.7 * mean * f, "zero": 0 * f, "clamp": (-0.7 * mean).expand_as(f),
            "scale": -0.7 * f, "replace": f + other - mean,
        }[mode]  # fmt: skip
        wanted = rows + (edited - codes) @ sae.W_dec
    torch.testing.assert_close(after.reshape(-1, D), wanted, atol=1e-5, rtol=1e-4)


def test_gates(pipe: Any) -> None:
    sae = sae_of()
    never = {"theta": torch.full((2, 6), 1e6)}
    for where, other, moves in (
        ("threshold", never, False),
        ("mask", never, False),
        ("threshold", {"theta": torch.zeros(2, 6)}, True),
        ("image", {"bias": torch.full((2,), -1e6)}, False),
        ("image", {"bias": torch.full((2,), 1e6)}, True),
        ("image+mask", never | {"bias": torch.full((2,), 1e6)}, False),
    ):
        one = edit_of(sae, where=where, **other)
        before, after = changed_tokens(pipe, plan_of(pipe, one))
        assert torch.equal(before, after) != moves, where


def test_the_threshold_gate_acts_on_codes_above_it_alone(pipe: Any) -> None:
    sae = sae_of()
    theta = torch.full((2, 6), 0.03)
    one = edit_of(sae, where="threshold", mode="zero", theta=theta, half="both")
    before, after = changed_tokens(pipe, plan_of(pipe, one))
    with torch.no_grad():
        f = sae.encode(before.reshape(-1, D)).to_dense()[:, one.latents]
        assert (f > 0.03).any() and ((f > 0) & (f <= 0.03)).any()
        wanted = before.reshape(-1, D) - (f * (f > 0.03)) @ sae.W_dec[one.latents]
    torch.testing.assert_close(after.reshape(-1, D), wanted, atol=1e-5, rtol=1e-4)


def test_a_window_is_of_timesteps(pipe: Any) -> None:
    plan = plan_of(pipe, edit_of(sae_of(), window=(400, 600)))
    for time, moves in ((399, False), (400, True), (600, True), (601, False)):
        before, after = changed_tokens(pipe, plan, time=time)
        assert torch.equal(before, after) != moves


@torch.no_grad()
def test_patches_move_detected_positions_to_others_of_the_same_map() -> None:
    sae = sae_of()
    x = torch.randn(2, 10, D, generator=torch.Generator().manual_seed(3))
    codes = sae.encode(x.reshape(-1, D)).to_dense()[:, edit_of(sae).latents].view(2, 10, 6)
    least = float(codes.amax(2).median())
    theta = torch.full((2, 6), least)
    one = edit_of(sae, mode="patches", where="mask", theta=theta, half="both")
    change = SiteChange([one], _At(500), Guidance(None), None, torch.device("cpu"))
    after, found = change(x), (codes > least).any(2)
    assert 0 < found.sum() < found.numel()
    for image in range(2):
        for place in range(10):
            same = (after[image, place] - x[image]).abs().amax(1) < 1e-5
            source = int(same.nonzero()[0, 0])
            assert not found[image, source]
            assert found[image, place] or source == place


class _At(Clock):
    def __init__(self, now: int) -> None:
        self.now, self.seen = now, {}


def test_the_published_sign_of_the_error(pipe: Any) -> None:
    """The published code adds x_hat - x where x - x_hat keeps the error."""
    sae = sae_of("topk", k=4)
    one = edit_of(sae, mode="zero", saeuron_sign=True, half="both")
    before, after = changed_tokens(pipe, plan_of(pipe, one), {SITE: sae})
    with torch.no_grad():
        rows = before.reshape(-1, D)
        codes = sae.encode(rows).to_dense()
        edited = codes.clone()
        edited[:, one.latents] = 0
        x_hat = sae(rows).x_hat
        wanted = x_hat + (edited - codes) @ sae.W_dec + (x_hat - rows)
    torch.testing.assert_close(after.reshape(-1, D), wanted, atol=1e-5, rtol=1e-4)


# ---- tables over timesteps


def test_tables_are_interpolated_between_timesteps_and_constant_beyond() -> None:
    table = torch.tensor([[1.0], [3.0]])
    found = spread(table, torch.tensor([600, 200]))
    assert found.shape == (1001, 1)
    assert [float(found[t]) for t in (0, 200, 300, 400, 600, 1000)] == [3, 3, 2.5, 2, 1, 1]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps(pipe: Any, steps: int) -> None:
    with unlearn(pipe, plan_of(pipe, edit_of(sae_of()))):
        assert draw(pipe, steps=steps).isfinite().all()


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
@pytest.mark.filterwarnings("ignore")
def test_other_schedulers(name: str) -> None:
    import diffusers

    pipe = pipeline("sd")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    plain = draw(pipe)
    with unlearn(pipe, plan_of(pipe, edit_of(sae_of()))):
        assert not torch.equal(plain, draw(pipe))


# ---- batches and precision


def test_a_picture_does_not_depend_on_its_batch(pipe: Any) -> None:
    plan = plan_of(pipe, edit_of(sae_of(), where="image"))
    with unlearn(pipe, plan):
        together = draw(pipe, ["a b", "c"])
        alone = draw(pipe, ["a b"])
        twice = draw(
            pipe, ["a b"], num_images_per_prompt=2,
            generator=[torch.Generator().manual_seed(i) for i in (0, 0)],
        )  # fmt: skip
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(twice[0], twice[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(twice[:1], alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    plan = plan_of(pipeline("sd"), edit_of(sae_of(), m=40))
    pipe = pipeline("sd").to(dtype)
    plain = draw(pipe)
    with unlearn(pipe, plan):
        edited = draw(pipe)
    assert edited.dtype == dtype and edited.isfinite().all() and not torch.equal(plain, edited)


# ---- guidance


def test_without_guidance_the_only_half_is_the_conditional(pipe: Any) -> None:
    plan = plan_of(pipe, edit_of(sae_of()))
    plain = draw(pipe, guidance_scale=1.0)
    with unlearn(pipe, plan):
        assert not torch.equal(plain, draw(pipe, guidance_scale=1.0))
    other = plan_of(pipe, edit_of(sae_of(), half="uncond"))
    with (
        pytest.raises(ConfigError, match="edits the unconditional half .* without guidance: set"),
        unlearn(pipe, other),
    ):
        draw(pipe, guidance_scale=1.0)
    assert hooks_of(pipe) == 0


@pytest.mark.parametrize("kind", ["pixart", "sdxl", "sd3", "flux"])
def test_other_pipelines(kind: str) -> None:
    """A guided batch is known as such also where the pipeline does not say so."""
    pipe = pipeline(kind)
    model = pipe.unet if hasattr(pipe, "unet") and pipe.unet is not None else pipe.transformer
    unet = "unet" in pipe.components
    site = "mid_block.attentions.0:update" if unet else "transformer_blocks.0"
    given = {"use_resolution_binning": False} if kind == "pixart" else {}
    with capture(model, [site]) as acts:
        draw(pipe, steps=2, guidance_scale=1.0, **given)
    guided = kind != "flux"
    width = acts[site].shape[1 if acts[site].ndim == 4 else 2]
    sae = SAE(SAEConfig.of(width, 2 * width, "relu"), seed=0).eval()
    half: Any = "uncond" if guided else "cond"
    one = replace(edit_of(sae, half=half), site=site)
    plan = Plan("object:cat", (one,), "tiny", sample_of(model), schedule_of(pipe))
    plain = draw(pipe, steps=2, **given)
    with unlearn(pipe, plan):
        assert not torch.equal(plain, draw(pipe, steps=2, **given))


@pytest.mark.parametrize("half", ["cond", "uncond"])
def test_halves_where_the_pipeline_does_not_say_so(half: Any) -> None:
    """PixArt: the asked half of what its transformer is given."""
    pipe = pipeline("pixart")
    site = "transformer_blocks.0"
    sae = sae_of()
    one = replace(edit_of(sae, half=half), site=site)
    plan = Plan("object:cat", (one,), "tiny", sample_of(pipe.transformer), schedule_of(pipe))
    plain, edited = ([], [])  # type: tuple[list[Tensor], list[Tensor]]
    for seen, plans in ((plain, []), (edited, [plan])):

        def note(output: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(output.clone())
            return output

        with unlearn(pipe, plans), edit(pipe.transformer, site, note):
            for guidance in (3.0, 1.0) if half == "cond" else (3.0,):
                draw(pipe, steps=2, guidance_scale=guidance, use_resolution_binning=False)
    moved = [
        [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        for before, after in zip(plain[::2], edited[::2], strict=True)  # first steps
    ]
    assert moved == ([[False, True], [True]] if half == "cond" else [[True, False]])
    assert "encode_prompt" not in vars(pipe)


def test_halves_of_a_dit_are_refused() -> None:
    pipe = pipeline("dit")
    one = replace(edit_of(sae_of()), site="transformer_blocks.0")
    plan = Plan("object:cat", (one,), "tiny", sample_of(pipe.transformer), schedule_of(pipe))
    with pytest.raises(ConfigError, match="do not tell their halves; .* edits 'cond', use half"):
        unlearn(pipe, plan).__enter__()
    with unlearn(pipe, replace(plan, edits=(replace(one, half="both"),))):
        pass


# ---- several plans


def test_plans_of_one_site_are_summed(pipe: Any) -> None:
    sae = sae_of()
    a, b = edit_of(sae), edit_of(sae, multiplier=0.3)
    before, one = changed_tokens(pipe, plan_of(pipe, a))
    _, two = changed_tokens(pipe, plan_of(pipe, b))
    _, both = changed_tokens(pipe, plan_of(pipe, a, b))
    torch.testing.assert_close(both - before, one - before + two - before, atol=1e-5, rtol=1e-4)


def test_a_site_is_edited_by_one_block_at_a_time(pipe: Any) -> None:
    plan = plan_of(pipe, edit_of(sae_of()))
    other = plan_of(pipe, edit_of(sae_of()), concept="style:neon")
    message = "is being edited already, to remove object:cat; pass the plans together"
    with unlearn(pipe, plan):
        with pytest.raises(ConfigError, match=message), unlearn(pipe, other):
            pass
        assert not torch.equal(draw(pipe), torch.zeros(1))  # the first is still at work
    with unlearn(pipe, other):
        pass
    with unlearn(pipe, [plan, other]):
        draw(pipe)


def test_plans_of_different_halves_do_not_agree(pipe: Any) -> None:
    a, b = edit_of(sae_of()), edit_of(sae_of(), half="both")
    with (
        pytest.raises(ConfigError, match="different halves of the guided batch .both, cond."),
        unlearn(pipe, [plan_of(pipe, a), plan_of(pipe, b)]),
    ):
        pass


# ---- what does not fit


def test_a_site_that_is_not_there(pipe: Any) -> None:
    one = replace(edit_of(sae_of()), site="mid_block.attention.0:update")
    with (
        pytest.raises(UnknownName, match="did you mean mid_block.attentions.0"),
        unlearn(pipe, plan_of(pipe, one)),
    ):
        pass
    assert hooks_of(pipe) == 0


def test_an_sae_without_thresholds_must_be_given(pipe: Any) -> None:
    sae = sae_of("topk", k=4)
    plan = plan_of(pipe, edit_of(sae))
    with pytest.raises(ConfigError, match="compete with all others .*: pass the SAE"):
        unlearn(pipe, plan).__enter__()
    with pytest.raises(MismatchError, match="the SAE given for .* is .*; the plan was made with"):
        unlearn(pipe, plan, saes={SITE: sae_of("topk", seed=1, k=4)}).__enter__()


def test_the_published_sign_needs_the_sae(pipe: Any) -> None:
    plan = plan_of(pipe, edit_of(sae_of(), saeuron_sign=True))
    with pytest.raises(ConfigError, match="add the SAE's error with the published sign: pass the"):
        unlearn(pipe, plan).__enter__()
    with pytest.raises(MismatchError, match="the plan was made with"):
        unlearn(pipe, plan, saes={SITE: sae_of(seed=1)}).__enter__()
    assert hooks_of(pipe) == 0


def test_an_sae_that_reads_for_all_plans_must_be_theirs(pipe: Any) -> None:
    """Latents of a plan with a readout of its own are not another SAE's."""
    topk = sae_of("topk", k=4)
    plans = [plan_of(pipe, edit_of(topk)), plan_of(pipe, edit_of(sae_of(seed=2)))]
    with pytest.raises(MismatchError, match="the SAE given for .* the plan was made with"):
        unlearn(pipe, plans, saes={SITE: topk}).__enter__()


def test_a_plan_of_another_model(pipe: Any) -> None:
    plan = replace(plan_of(pipe, edit_of(sae_of())), weights=torch.ones(3))
    with pytest.raises(MismatchError, match="the plan for 'object:cat' was made for tiny"):
        unlearn(pipe, plan).__enter__()


# ---- reading chosen latents alone


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("relu", {}),
        ("relu", {"rows": "layer_norm"}),
        ("batchtopk", {"k": 4}),
        ("batchtopk", {"k": 4, "atoms": "free"}),
        ("jumprelu", {}),
    ],
)
def test_chosen_latents_are_read_as_the_whole_sae_reads_them(
    family: str, options: dict[str, Any]
) -> None:
    sae = sae_of(family, **options)
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(0))
    latents = torch.tensor([0, 5, 17, 31])
    with torch.no_grad():
        if family == "batchtopk":
            sae.config.sparsity.calibrate(sae, x)
        readout = Readout.of(sae, latents)
        assert readout is not None
        from vision_sae.rows import treat_rows

        mine = readout.codes(treat_rows(x, sae.config.rows)[0])
        whole = sae.encode(x).to_dense()[:, latents]
    assert (whole > 0).any()
    torch.testing.assert_close(mine, whole, atol=1e-5, rtol=1e-4)


def test_latents_that_compete_have_no_readout() -> None:
    assert Readout.of(sae_of("topk", k=4), torch.tensor([0])) is None
