"""One contract for every adapter: ours, a user's own module, those of each library."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from adapter_cases import CASES, Conv, feature_map, tokens
from PIL import Image
from torch import Tensor, nn

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.toy import to_input
from vision_sae.data import IndexedSource, Item
from vision_sae.data.prompts import Prompt
from vision_sae.errors import DataError
from vision_sae.extract import activations, describe
from vision_sae.model.adapter import Adapter, StepAdapter, TextImageAdapter, fingerprint
from vision_sae.model.hooks import capture, edit, inference
from vision_sae.model.probing import probe_site
from vision_sae.model.sites import Site, from_tokens, place_of, select_tokens, to_tokens
from vision_sae.provenance import Tokens

PAIRS = [
    pytest.param(name, site, id=f"{name}-{site.name}")
    for name, case in CASES.items()
    for site in case.sites
]
every_adapter = pytest.mark.parametrize("name", CASES)
every_site = pytest.mark.parametrize(("name", "site"), PAIRS)


# diffusers' schedulers give numpy tensors in a way that numpy 2 will not take for ever
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """diffusers and transformers say a lot about tiny models."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adapter]:
    made: dict[str, Adapter] = {}

    def get(name: str) -> Adapter:
        if name not in made:
            torch.manual_seed(0)
            made[name] = CASES[name].make(tmp_path_factory.mktemp("model"))
        return made[name]

    return get


Get = Callable[[str], Adapter]


def pictures(n: int) -> list[Image.Image]:
    noise = torch.randint(0, 256, (n, 12, 20, 3), generator=torch.Generator().manual_seed(3))
    return [Image.fromarray(image.to(torch.uint8).numpy()) for image in noise]


def items(adapter: Adapter, n: int) -> list[Any]:
    texts = ["a red heart", "dog", "a photo of a blue dog"]
    return pictures(n) if adapter.reads == "images" else texts[:n]


def prepared(adapter: Adapter, n: int) -> Any:
    return adapter.prepare(items(adapter, n))


def slots(adapter: Adapter) -> int:
    """How many times one image's tokens are kept: timesteps, and halves of each."""
    if not isinstance(adapter, StepAdapter):
        return 1
    return len(adapter.timesteps) * (2 if adapter.half == "both" else 1)


def stepwise(adapter: Adapter, calls: list[Tensor]) -> list[Tensor]:
    """A site's outputs of all calls as one per slot, by the adapter's own say."""
    if not isinstance(adapter, StepAdapter):
        return calls[-1:]
    kept = [part for i, call in enumerate(calls) if (part := adapter.keep(i, call)) is not None]
    return list(adapter.steps_of(kept).unbind(1))


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


# ---- the contract


@every_site
def test_a_declared_site_is_what_a_forward_pass_gives(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    batch = prepared(adapter, 3)
    assert probe_site(adapter, site.name, prepared(adapter, 1)) == site
    shape = (3, slots(adapter) * site.tokens, site.width)
    assert activations(adapter, batch, site).shape == shape


@every_site
def test_tokens_go_there_and_back(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    with inference(adapter.model), capture(adapter.model, [site.name]) as acts:
        adapter.run(prepared(adapter, 2))
    output = acts[site.name]
    assert torch.equal(from_tokens(to_tokens(output, site), site), output)


@every_site
def test_chosen_tokens_are_those_tokens(adapters: Get, name: str, site: Site) -> None:
    rows = torch.arange(2 * site.tokens).view(2, -1, 1).expand(-1, -1, site.width).float()
    assert torch.equal(select_tokens(rows, site, "all"), rows)
    patches = rows[:, site.prefix :]
    pooled = select_tokens(rows, site, "pooled")
    assert torch.equal(pooled, patches.mean(1, keepdim=True))
    if site.layout == "vector":
        with pytest.raises(DataError, match="one vector per image"):
            select_tokens(rows, site, "patches")
    else:
        assert torch.equal(select_tokens(rows, site, "patches"), patches)
    classes = site.prefix - site.registers
    if classes:
        assert torch.equal(select_tokens(rows, site, "cls"), rows[:, :1])
    else:
        with pytest.raises(DataError, match="no class token; choose .*patches, pooled or all"):
            select_tokens(rows, site, "cls")
    if site.registers:
        assert torch.equal(select_tokens(rows, site, "registers"), rows[:, classes : site.prefix])
    else:
        with pytest.raises(DataError, match="no registers"):
            select_tokens(rows, site, "registers")


@every_site
def test_a_store_foretells_its_rows(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    for which in get_args(Tokens):
        try:
            chosen = select_tokens(torch.zeros(1, site.tokens, site.width), site, which)
        except DataError:
            continue  # no such tokens
        index = describe(adapter, Nothing(), site, which, "float32")
        assert index.tokens_per_image == slots(adapter) * chosen.shape[1]
        assert index.width == site.width and index.provenance.tokens == which
        assert index.provenance.timesteps == getattr(adapter, "timesteps", ())
        assert index.provenance.half == getattr(adapter, "half", "none")


class Nothing(IndexedSource):
    name = "nothing"

    def __len__(self) -> int:
        return 0

    def item(self, i: int) -> Item:
        raise IndexError


@every_site
def test_activations_are_what_plain_hooks_see(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    batch = prepared(adapter, 2)
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        entered = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        left = output[place_of(site.name).part or 0] if isinstance(output, tuple) else output
        seen.append((entered.clone(), left.clone()))

    module = adapter.model.get_submodule(site.module)
    handle = module.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        adapter.run(batch)
    handle.remove()
    entered, left = (stepwise(adapter, [pair[i] for pair in seen]) for i in (0, 1))
    parts = activations(adapter, batch, site).split(site.tokens, dim=1)
    for acts, x, y in zip((from_tokens(part, site) for part in parts), entered, left, strict=True):
        if site.kind == "heads":
            torch.testing.assert_close(projected(module, acts), y)
        elif site.kind == "update":
            assert torch.equal(acts, y - x)
        else:
            assert torch.equal(acts, y if site.kind == "output" else x)


@torch.inference_mode()
def projected(attention: nn.Module, heads: Tensor) -> Tensor:
    """What the module makes of its heads, as matrix algebra: heads W^T + b."""
    names = ("proj", "out_proj", "o_proj", "o", "to_out")
    linear: Any = next(getattr(attention, name) for name in names if hasattr(attention, name))
    linear = linear[0] if isinstance(linear, nn.ModuleList) else linear  # then a dropout
    out: Tensor = heads @ linear.weight.T
    return out if linear.bias is None else out + linear.bias


@every_site
def test_runs_agree_with_each_other(adapters: Get, name: str, site: Site) -> None:
    """Twice the same; alone or in a batch; stopping early or not."""
    adapter = adapters(name)
    batch = prepared(adapter, 3)
    acts = activations(adapter, batch, site)
    assert torch.equal(activations(adapter, batch, site), acts)
    alone = [adapter.prepare([item]) for item in items(adapter, 3)]
    single = torch.cat([activations(adapter, one, site) for one in alone])
    torch.testing.assert_close(single, acts, rtol=1e-4, atol=1e-4)
    everything = lambda call, tensor: tensor  # noqa: E731
    with inference(adapter.model), capture(adapter.model, [site.name], keep=everything) as whole:
        adapter.run(batch)
    outputs = stepwise(adapter, whole.calls[site.name])
    assert torch.equal(torch.cat([to_tokens(output, site) for output in outputs], 1), acts)


@every_site
def test_an_edit_that_changes_nothing_changes_nothing(adapters: Get, name: str, site: Site) -> None:
    adapter = adapters(name)
    batch, last = prepared(adapter, 2), CASES[name].sites[0].module
    with inference(adapter.model), capture(adapter.model, [last]) as plain:
        adapter.run(batch)
    changed = []
    with (
        inference(adapter.model),
        capture(adapter.model, [last]) as edited,
        edit(adapter.model, site.name, lambda tensor: changed.append(1) or tensor.clone()),
    ):
        adapter.run(batch)
    assert changed
    torch.testing.assert_close(edited[last], plain[last])


@every_adapter
def test_nothing_is_left_behind(adapters: Get, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, site = adapters(name), CASES[name].sites[0]
    batch = prepared(adapter, 1)
    before = fingerprint(adapter.model)
    for training in (False, True):
        adapter.model.train(training)
        probe_site(adapter, site.name, batch)
        activations(adapter, batch, site)
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(adapter, "run", lambda batch: 1 // 0)
            activations(adapter, batch, site)
        assert hooks(adapter.model) == 0
        assert all(m.training == training for m in adapter.model.modules())
    adapter.model.eval()
    assert fingerprint(adapter.model) == before


@every_adapter
def test_the_fingerprint_is_that_of_the_weights(adapters: Get, name: str) -> None:
    model = adapters(name).model
    before = fingerprint(model)
    assert fingerprint(model) == before and len(before) == 16
    for weight in (next(model.parameters()), list(model.parameters())[-1]):
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += 1e-3
            assert fingerprint(model) != before
            weight.copy_(kept)
        assert fingerprint(model) == before


@every_adapter
def test_a_batch_is_prepared_from_pictures_of_any_mode(adapters: Get, name: str) -> None:
    adapter = adapters(name)
    if adapter.reads == "texts":
        pytest.skip("reads texts")
    rgb, grey = pictures(1)[0], pictures(1)[0].convert("L")
    batch = parts(adapter.prepare([rgb, grey.convert("RGB")]))
    assert len(batch[0]) == 2 and batch[0].dtype == torch.float32
    assert all(
        torch.equal(a[0], b[0]) for a, b in zip(parts(adapter.prepare([rgb])), batch, strict=True)
    )


def parts(batch: Any) -> list[Tensor]:
    return list(batch.values()) if isinstance(batch, dict) else [batch]


@every_adapter
def test_a_prompt_is_read_as_its_text(adapters: Get, name: str) -> None:
    adapter = adapters(name)
    if adapter.reads == "images":
        pytest.skip("reads images")
    with pytest.raises(DataError, match="reads texts"):
        adapter.prepare(pictures(1))
    if isinstance(adapter, StepAdapter):
        assert adapter.prepare(["dog"]) == adapter.prepare([Prompt("dog", seed=0)])
        return
    prompts = [Prompt(text, seed=2) for text in items(adapter, 3)]
    pairs = zip(parts(adapter.prepare(prompts)), parts(prepared(adapter, 3)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@every_adapter
def test_texts_and_images_are_embedded_as_unit_vectors(adapters: Get, name: str) -> None:
    adapter = adapters(name)
    assert isinstance(adapter, TextImageAdapter) == CASES[name].embeds
    if isinstance(adapter, TextImageAdapter):
        images = adapter.embed_images(prepared(adapter, 3))
        texts = adapter.embed_texts(["red", "blue"])
        assert images.shape[1] == texts.shape[1] and len(texts) == 2
        for rows in (images, texts):
            torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))


# ---- shapes that are no site


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        ("b d", False), ("b t d", False), ("t b d", False), ("b d h w", False), ("b h h d", False),
        ("d b", True), ("t d b", True), ("d b h w", True), ("d", True), ("b", True),
        ("b t d h w", True), ("b b d", True),
    ],
)  # fmt: skip
def test_only_outputs_with_the_batch_in_its_place_are_sites(shape: str, refused: bool) -> None:
    sizes = {"t": 5, "d": 7, "h": 4, "w": 6}

    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            sizes["b"] = len(images)
            return self.site(torch.zeros([sizes[axis] for axis in shape.split()]))  # type: ignore[no-any-return]

    adapter = ModuleAdapter(Shaped(), to_input, name="shaped")
    example = torch.zeros(1, 3, 16, 16)
    if refused:
        with pytest.raises(DataError, match="'site' gives shapes .* for batches of 2 and 3"):
            probe_site(adapter, "site", example)
    else:
        assert probe_site(adapter, "site", example).width == 7


@pytest.mark.parametrize(
    ("prefix", "count", "grid"), [(1, 17, (4, 4)), (5, 21, (4, 4)), (0, 17, None)]
)
def test_patches_form_a_square_or_no_grid(prefix: int, count: int, grid: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, count * 2), nn.Unflatten(1, (count, 2)))
    adapter = ModuleAdapter(model, to_input, name="m", prefix_tokens=prefix)
    site = probe_site(adapter, "2", torch.zeros(1, 3, 16, 16))
    assert site == replace(tokens("2", 2, 4, 1), tokens=count, prefix=prefix, grid=grid)


def test_a_batch_goes_where_the_weights_are() -> None:
    adapter = ModuleAdapter(Conv().to("meta"), to_input, name="elsewhere")
    assert probe_site(adapter, "norm", torch.zeros(1, 3, 16, 16)) == feature_map("norm", 5, 4)
