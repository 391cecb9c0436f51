"""Sites by kind: what is read is what the module got and gave, and edits reach what follows."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vision_sae.errors import ConfigError, DataError
from vision_sae.model.hooks import capture, edit
from vision_sae.model.sites import place_of


class Block(nn.Module):
    """Attention and an MLP with residuals; the MLP works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
        self.both = Both()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, x, x, need_weights=False)[0]
        x = x + self.mlp(x)
        one, two = self.both(x=x)
        return one + two


class Both(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


def read(net: nn.Module, *sites: str) -> dict[str, Tensor]:
    with torch.inference_mode(), capture(net, sites) as found:
        net(X)
    return found


def test_an_update_is_the_output_minus_the_input(net: nn.Sequential) -> None:
    found = read(net, "1", "1:input", "1:update", "0")
    torch.testing.assert_close(found["1:update"], found["1"] - found["1:input"])
    assert torch.equal(found["1:input"], found["0"])


def test_heads_times_the_projection_are_the_attention_s_output(net: nn.Sequential) -> None:
    found = read(net, "0.attn:heads", "0.attn")
    projection = net.get_submodule("0.attn.out_proj")
    with torch.inference_mode():
        torch.testing.assert_close(projection(found["0.attn:heads"]), found["0.attn"])


def test_another_of_several_tensors(net: nn.Sequential) -> None:
    found = read(net, "0.both", "0.both[1]")
    torch.testing.assert_close(found["0.both[1]"], 2 * found["0.both"])


@pytest.mark.parametrize(
    "site",
    ["0", "0:update", "0:input", "0.attn:heads", "0.mlp:update", "0.both[1]", "0.both:input"],
)
def test_an_edit_that_changes_nothing_changes_nothing(net: nn.Sequential, site: str) -> None:
    with torch.inference_mode():
        want = net(X)
        with edit(net, site, lambda t: t.clone()):
            torch.testing.assert_close(net(X), want)
        with edit(net, site, lambda t: t + 1):
            assert not torch.allclose(net(X), want)
        assert torch.equal(net(X), want)


def test_an_update_without_effect_is_the_input(net: nn.Sequential) -> None:
    with torch.inference_mode(), edit(net, "0:update", torch.zeros_like), capture(net, ["0"]) as at:
        net(X)
    torch.testing.assert_close(at["0"], X)


def test_what_is_kept_of_each_call(net: nn.Sequential) -> None:
    def keep(call: int, tensor: Tensor) -> Tensor | None:
        return tensor[:1] if call % 2 else None

    with torch.inference_mode(), capture(net, ["0"], stop_early=True, calls=4, keep=keep) as found:
        for i in range(9):
            net(X + i)
    assert found.ran["0"] == 4 and len(found.calls["0"]) == 2
    assert not net[0]._forward_hooks
    with torch.inference_mode():
        torch.testing.assert_close(found.calls["0"][1], net[0](X[:1] + 3))


def test_a_wrapped_model_is_read_by_the_paths_inside(net: nn.Sequential) -> None:
    assert torch.equal(read(nn.DataParallel(net), "0")["0"], read(net, "0")["0"])


def test_a_model_in_ddp_is_read_and_edited_by_the_paths_inside(net: nn.Sequential) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        assert torch.equal(read(wrapped, "0:update")["0:update"], read(net, "0:update")["0:update"])
        with torch.inference_mode(), edit(wrapped, "0", torch.zeros_like):
            zeros = wrapped(X)
        with torch.inference_mode():
            assert torch.equal(zeros, net[1](torch.zeros_like(X)))
        assert not net[0]._forward_hooks
    finally:
        dist.destroy_process_group()


def test_a_compiled_model_is_refused(net: nn.Sequential) -> None:
    compiled = torch.compile(net)
    with pytest.raises(ConfigError, match="the model is compiled.*model._orig_mod"):
        read(compiled, "0")  # type: ignore[arg-type]
    net[1].compile()
    with pytest.raises(ConfigError, match="module '1' is compiled"):
        read(net, "0")


@pytest.mark.parametrize("site", ["0:upd", "0[x]", "", ":heads", "0:"])
def test_a_kind_that_there_is_not(net: nn.Sequential, site: str) -> None:
    with pytest.raises(ConfigError, match="a site is a module's path, as in blocks.3, with one of"):
        read(net, site)


def test_no_update_and_no_heads(net: nn.Sequential) -> None:
    wide = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(DataError, match=r"has no update: it turns \(3, 5, 8\) into \(3, 5, 4\)"):
        read(wide, "0:update")
    with pytest.raises(ConfigError, match="Sequential has no output projection that is known"):
        read(net, "0.mlp:heads")


@given(
    path=st.from_regex(r"[a-z_]\w{0,5}(\.\w{1,5}){0,3}", fullmatch=True),
    part=st.none() | st.integers(0, 9),
    kind=st.sampled_from(["output", "update", "input", "heads"]),
)
def test_names_are_parsed(path: str, part: int | None, kind: str) -> None:
    name = path + (f"[{part}]" if part is not None else "") + f":{kind}"
    assert place_of(name) == (path, part, kind)
    assert place_of(path) == (path, None, "output")
