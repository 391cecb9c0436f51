"""Transport: pairs of prompts, the map between their codes, and what it does to a sampling."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.adapters.diffusion import TrajectoryAdapter
from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError
from vision_sae.model.hooks import capture
from vision_sae.recipes.unlearn import change, transport
from vision_sae.recipes.unlearn.apply import unlearn
from vision_sae.recipes.unlearn.choice import Choice
from vision_sae.recipes.unlearn.evidence import Evidence, nearest, observe
from vision_sae.recipes.unlearn.find import plan_for
from vision_sae.recipes.unlearn.plan import Plan
from vision_sae.recipes.unlearn.prompts import Labelled
from vision_sae.recipes.unlearn.transport import Pair, learn, pairs_of
from vision_sae.sae import SAE, SAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITES = (  # all that read the text, in the order in which they run
    "down_blocks.1.attentions.0:update",
    "mid_block.attentions.0:update",
    "up_blocks.0.attentions.0:update",
    "up_blocks.0.attentions.1:update",
)
FEW = dict.fromkeys(SITES, torch.arange(4))


def row(text: str, seed: int, **labels: str) -> Labelled:
    return Labelled(Prompt(text, seed), labels)


TABLE = [
    row(f"{letter} {look}", 10 * i + j, letter=letter, look=look)
    for i, letter in enumerate("abc")
    for j, look in enumerate(("x", "y", "x", "y"))
]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline("sd")


@pytest.fixture(scope="module")
def adapter(pipe: Any) -> TrajectoryAdapter:
    return TrajectoryAdapter(pipe, steps=3, guidance=3.0, name="tiny")


@pytest.fixture(scope="module")
def saes(pipe: Any) -> dict[str, SAE]:
    """With thresholds, and nearly all latents active."""
    found = {}
    for seed, site in enumerate(SITES):
        with capture(pipe.unet, [site]) as acts:
            pipe("a", num_inference_steps=1, output_type="latent")
        d = acts[site].shape[1]
        found[site] = SAE(SAEConfig.of(d, 2 * d, "relu"), seed=seed).eval()
    return found


@pytest.fixture(scope="module")
def evidence(adapter: TrajectoryAdapter, saes: dict[str, SAE]) -> Evidence:
    return observe(adapter, saes, TABLE, ["letter:a"], candidates=8)


# ---- pairs


def test_pairs_differ_in_the_concept_alone_and_share_seeds_in_turn() -> None:
    pairs = pairs_of(TABLE, "letter:a", "letter:b")
    assert len(pairs) == 4
    assert all(p.asked.labels["look"] == p.instead.labels["look"] for p in pairs)
    assert sorted(p.instead.prompt.seed for p in pairs) == [10, 11, 12, 13]  # none twice


def test_a_prompt_without_a_counterpart_is_left_out() -> None:
    table = [row("a x", 0, letter="a", look="x"), row("a z", 1, letter="a", look="z")]
    table.append(row("b x", 2, letter="b", look="x"))
    assert [p.asked.prompt.text for p in pairs_of(table, "letter:a", "letter:b")] == ["a x"]
    with pytest.raises(DataError, match="no prompt of letter:b is like one of letter:a"):
        pairs_of(table[1:], "letter:a", "letter:b")


@pytest.mark.parametrize("towards", ["look:x", "letter:a"])
def test_pairs_are_of_one_factor(towards: str) -> None:
    with pytest.raises(ConfigError, match=f"can be replaced by another letter; got {towards}"):
        pairs_of(TABLE, "letter:a", towards)


# ---- the map


def slow(pipe: Any, saes: dict[str, SAE], pair: Pair) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """Per step and site (x asked, x instead), by one call of the U-Net after another."""
    found: list[dict[str, tuple[Tensor, Tensor]]] = []
    embedded = {
        text: pipe.encode_prompt(text, "cpu", 1, False)[0]
        for text in (pair.asked.prompt.text, pair.instead.prompt.text)
    }

    def on_step(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        handle.remove()
        latents, time = args[0][1:], args[1]
        instead = sites(latents, time, pair.instead.prompt.text, {})
        before: dict[str, Tensor] = {}
        step = {}
        for site in SITES:  # with all earlier ones replaced
            asked = sites(latents, time, pair.asked.prompt.text, before)
            step[site] = (asked[site], instead[site])
            before[site] = instead[site]
        found.append(step)
        register()

    def sites(x: Tensor, t: Any, text: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
        from contextlib import ExitStack

        from vision_sae.model.hooks import edit

        seen: dict[str, Tensor] = {}

        def change(site: str) -> Any:
            def put(output: Tensor) -> Tensor:
                seen[site] = given.get(site, output).clone()
                return seen[site]

            return put

        with ExitStack() as stack, torch.no_grad():
            for site in SITES:
                stack.enter_context(edit(pipe.unet, site, change(site)))
            pipe.unet(x, t, encoder_hidden_states=embedded[text])
        return seen

    handle: Any = None

    def register() -> None:
        nonlocal handle
        handle = pipe.unet.register_forward_hook(on_step, with_kwargs=True)

    register()
    prompt = pair.instead.prompt
    noise = torch.Generator().manual_seed(prompt.seed)
    pipe(prompt.text, num_inference_steps=3, guidance_scale=3.0, generator=noise,
         output_type="latent")  # fmt: skip
    handle.remove()
    return found


def test_the_pairs_are_those_of_one_call_after_another(
    pipe: Any, adapter: TrajectoryAdapter, saes: dict[str, SAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[tuple[int, Tensor, Tensor]]] = {}
    add = transport._Sums.add

    def noted(self: Any, step: int, asked: Tensor, instead: Tensor) -> None:
        seen.setdefault(id(self), []).append((step, asked.clone(), instead.clone()))
        add(self, step, asked, instead)

    monkeypatch.setattr(transport._Sums, "add", noted)
    pairs = pairs_of(TABLE, "letter:a", "letter:b")[:2]
    learn(adapter, saes, FEW, pairs, rounds=1)
    for i, pair in enumerate(pairs):
        for step, of_step in enumerate(slow(pipe, saes, pair)):
            for site, noted_of in zip(SITES, seen.values(), strict=True):
                number, asked, instead = noted_of[step]
                assert number == step
                for mine, theirs in zip((asked, instead), of_step[site], strict=True):
                    flat = theirs.flatten(2).movedim(1, 2)[0]
                    torch.testing.assert_close(mine[i], flat, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("reads", ["codes", "activations"])
def test_the_second_round_is_on_the_trajectory_that_the_first_map_edits(
    evidence: Evidence, reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the sites give under the concept's prompt, before each is edited."""
    choice = Choice(
        mode="transport", towards="letter:b", count=16, where="everywhere", reads=reads, rounds=1
    )
    plan, pipe = plan_for(evidence, "letter:a", choice), evidence.adapter.pipe
    asked = pairs_of(TABLE, "letter:a", "letter:b")
    seen: list[Tensor] = []
    add = transport._Sums.add

    def noted(self: Any, step: int, asked: Tensor, instead: Tensor) -> None:
        seen.append(asked[0].clone())
        add(self, step, asked, instead)

    monkeypatch.setattr(transport._Sums, "add", noted)
    plan_for(evidence, "letter:a", replace(choice, rounds=2))
    wanted: list[Tensor] = []
    with ExitStack() as stack:
        for site in SITES:
            keep = lambda call, output: wanted.append(output[1].flatten(1).T.clone())  # noqa: E731
            stack.enter_context(capture(pipe.unet, [site], keep=keep))
        with unlearn(pipe, plan):
            drawn(pipe, asked[0].asked.prompt.text, asked[0].instead.prompt.seed)
    assert len(seen) == 2 * len(wanted) == 2 * 3 * len(SITES)
    for mine, theirs in zip(seen[len(wanted) :], wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["relu", "topk"])
@pytest.mark.parametrize("phases", [1, 2])
def test_the_map_is_that_of_plain_least_squares(
    family: str, phases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PHASES", phases)
    torch.manual_seed(0)
    sae = SAE(SAEConfig.of(6, 12, family, **({"k": 5} if family == "topk" else {}))).eval()
    latents = torch.tensor([1, 4, 7, 9])
    sums = transport._Sums(sae, latents, 2, whole=False)
    sums.codes.append([])
    x = torch.randn(2, 50, 3, 6)
    other = x @ torch.randn(6, 6) + torch.randn(2, 1, 1, 6)
    for step in range(2):
        sums.add(step, x[step], other[step])
    found = sums.solved(1e-6)
    f = sae.encode(x.reshape(-1, 6)).to_dense()[:, latents].view(2, 150, 4).double()
    codes = f.flatten(0, 1) if phases == 1 else torch.block_diag(*f)  # a map for each step
    design = torch.cat([codes, torch.eye(2).double().repeat_interleave(150, 0)], 1)
    moved = (other - x).reshape(-1, 6).double()
    best = torch.linalg.lstsq(design, moved).solution
    write, shift = best[:-2].view(phases, 4, 6).float(), best[-2:].float()
    torch.testing.assert_close(found.write, write, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.shift, shift, atol=1e-3, rtol=1e-3)
    left = (design @ best - moved).square().sum() / moved.square().sum()
    assert found.explained == pytest.approx(1 - float(left), abs=1e-3)
    token_means = sae.encode(x.reshape(-1, 6)).to_dense().view(2, 50, 3, 12).mean(2)
    torch.testing.assert_close(found.codes, token_means.movedim(0, 1)[..., latents])


def test_a_timestep_takes_the_map_of_the_nearest_that_was_sampled() -> None:
    found = change._phases(torch.tensor([800, 600, 400, 200]), 2)
    assert found[[1000, 700, 501, 499, 300, 0]].tolist() == [0, 0, 0, 1, 1, 1]


def test_an_adapter_of_the_other_half_is_refused(pipe: Any, saes: dict[str, SAE]) -> None:
    other = TrajectoryAdapter(pipe, steps=3, guidance=3.0, half="uncond", name="tiny")
    pairs = pairs_of(TABLE, "letter:a", "letter:b")
    with pytest.raises(ConfigError, match="compared in the conditional half; got half='uncond'"):
        learn(other, saes, FEW, pairs)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart", "sd3", "flux"])
@pytest.mark.parametrize("which", [0, 1])
def test_equal_unconditional_rows_are_run_once_and_change_nothing(kind: str, which: int) -> None:
    """Against a denoiser that runs every row, on the latents of the first or the second prompts."""
    adapter = TrajectoryAdapter(pipeline(kind), steps=2, guidance=3.0, name="tiny")
    batch = adapter.prepare([Prompt(text, seed) for seed, text in enumerate(("a", "b", "c", "d"))])
    ran: list[int] = []

    def every_row(module: Any, args: Any, kwargs: Any) -> Any:
        name = "sample" if "sample" in kwargs else "hidden_states"
        x = (args[0] if args else kwargs[name]).unflatten(0, (-1, 2, 2))
        x = x[:, [which, which]].flatten(0, 2)
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {name: x})

    handle = adapter.model.register_forward_pre_hook(every_row, with_kwargs=True)
    wanted = adapter.run(batch)
    handle.remove()
    with transport._same_latents(adapter.model, 2, which):
        note = lambda module, args, kwargs: ran.append(  # noqa: E731
            len(args[0] if args else kwargs["hidden_states"])
        )
        handle = adapter.model.register_forward_pre_hook(note, with_kwargs=True)
        torch.testing.assert_close(adapter.run(batch), wanted)
        handle.remove()
    assert set(ran) == {4 if kind == "flux" else 6}  # Flux runs no unconditional half


def test_all_rows_are_run_where_another_hook_counts_on_the_halves(pipe: Any) -> None:
    adapter = TrajectoryAdapter(pipe, steps=2, guidance=3.0, name="tiny")
    batch = adapter.prepare([Prompt(text, seed) for seed, text in enumerate(("a", "b", "c", "d"))])
    ran: list[int] = []
    with (
        capture(pipe.unet, [SITES[0]], keep=lambda call, output: ran.append(len(output))),
        transport._same_latents(pipe.unet, 2, 0),
    ):
        adapter.run(batch)
    assert set(ran) == {8}


def test_nothing_is_left_on_the_model(adapter: TrajectoryAdapter, saes: dict[str, SAE]) -> None:
    learn(adapter, saes, FEW, pairs_of(TABLE, "letter:a", "letter:b")[:1])
    for module in adapter.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


# ---- plans


@pytest.fixture(params=["codes", "activations"])
def choice(request: pytest.FixtureRequest) -> Iterator[Choice]:
    yield Choice(
        mode="transport", towards="letter:b", count=16, reads=request.param, where="everywhere"
    )


def drawn(pipe: Any, text: str, seed: int = 11) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    found: Tensor = pipe(
        text, num_inference_steps=3, guidance_scale=3.0, generator=noise, output_type="latent"
    ).images
    return found


def test_a_transported_sampling_comes_near_to_the_other_prompts(
    pipe: Any, evidence: Evidence, choice: Choice
) -> None:
    plan = plan_for(evidence, "letter:a", choice)
    wanted, before = drawn(pipe, "b y"), drawn(pipe, "a y")
    with unlearn(pipe, plan):
        after = drawn(pipe, "a y")
    assert (after - wanted).norm() < 0.7 * (before - wanted).norm()


def test_a_plan_of_it_survives_its_file(
    pipe: Any, evidence: Evidence, choice: Choice, tmp_path: Path
) -> None:
    plan = plan_for(evidence, "letter:a", choice)
    again = Plan.load(plan.save(tmp_path))
    with unlearn(pipe, plan):
        one = drawn(pipe, "a y")
    with unlearn(pipe, again):
        assert torch.equal(one, drawn(pipe, "a y"))
    with unlearn(pipe, again.scaled(0)):
        assert torch.equal(drawn(pipe, "a y"), drawn(pipe, "a y"))


def test_strength_0_is_the_identity(pipe: Any, evidence: Evidence, choice: Choice) -> None:
    plain = drawn(pipe, "a y")
    with unlearn(pipe, plan_for(evidence, "letter:a", choice).scaled(0)):
        assert torch.equal(plain, drawn(pipe, "a y"))


def test_the_nearest_concept_is_of_the_same_factor_and_can_be_kept_away(
    evidence: Evidence,
) -> None:
    near = nearest(evidence, "letter:a")
    assert near in ("letter:b", "letter:c")
    other = nearest(evidence, "letter:a", avoid=[near])
    assert {near, other} == {"letter:b", "letter:c"}
    with pytest.raises(DataError, match="no letter that could stand in for letter:a"):
        nearest(evidence, "letter:a", avoid=["letter:b", "letter:c"])
    plan = plan_for(evidence, "letter:a", Choice(mode="transport", towards="nearest", count=4))
    assert plan.about["towards"] == near


def test_transport_says_what_it_needs(evidence: Evidence) -> None:
    with pytest.raises(ConfigError, match="leads to another concept: give towards="):
        Choice(mode="transport")
    with pytest.raises(ConfigError, match="a gate per image or position"):
        plan_for(
            evidence, "letter:a",
            Choice(mode="transport", towards="letter:b", count=4, where="threshold"),
        )  # fmt: skip
