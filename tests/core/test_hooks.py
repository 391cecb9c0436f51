"""What capture, edit and inference promise: the right tensors, and nothing left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vision_sae.errors import DataError, UnknownName
from vision_sae.model.hooks import capture, edit, find_module, inference


class Net(nn.Module):
    """Sites that give a tensor, a tuple, and text; one that never runs; one with two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.relu = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.text = Text()
        self.idle = nn.Linear(1, 1)
        self.again = self.first
        self.ran = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        y, extra = self.pair(x)
        self.text(y)
        self.ran += 1
        return y + extra  # type: ignore[no-any-return]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, x + 1


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


X = torch.linspace(-1, 1, 6).view(2, 3)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_capture_gives_what_the_module_gave(net: Net) -> None:
    with capture(net, ["first", "pair"]) as acts:
        net(X)
    first = net.first(X)
    assert torch.equal(acts["first"], first) and torch.equal(acts["pair"], 2 * first.relu())
    assert not acts["first"].requires_grad
    assert hooks(net) == 0


def test_a_later_in_place_change_does_not_reach_what_was_captured(net: Net) -> None:
    with capture(net, ["first"]) as acts:
        net(X)
    assert bool((acts["first"] < 0).any())


def test_stopping_early_gives_the_same_and_stops(net: Net) -> None:
    with capture(net, ["first"]) as whole:
        net(X)
    with capture(net, ["first"], stop_early=True) as early:
        net(X)
    assert torch.equal(early["first"], whole["first"])
    assert net.ran == 1 and hooks(net) == 0


@pytest.mark.parametrize("paths", [["first", "pair"], ["pair", "pair"]])
def test_stopping_early_waits_for_every_path(net: Net, paths: list[str]) -> None:
    with capture(net, paths, stop_early=True) as acts:
        net(X)
    assert set(acts) == set(paths) and net.ran == 0


def test_a_shared_module_is_found_by_each_of_its_paths(net: Net) -> None:
    assert find_module(net, "again") is net.first


def test_an_unknown_path_names_near_ones(net: Net) -> None:
    with pytest.raises(UnknownName, match="no site 'frist'; did you mean first"):
        find_module(net, "frist")
    with pytest.raises(UnknownName, match="no site ''"):
        find_module(net, "")


@pytest.mark.parametrize("block", [lambda n: capture(n, ["text"]), lambda n: edit(n, "text", abs)])
def test_an_output_that_is_no_tensor_is_refused(net: Net, block: Callable[[Any], Any]) -> None:
    with pytest.raises(DataError, match="'text' gives str, not a tensor"), block(net):
        net(X)
    assert hooks(net) == 0


def test_edit_changes_the_output_and_keeps_the_rest_of_a_tuple(net: Net) -> None:
    with edit(net, "pair", torch.zeros_like):
        edited = net(X)
    assert torch.equal(edited, net.first(X).relu() + 1)
    assert hooks(net) == 0


def test_an_edit_to_itself_changes_no_bit(net: Net) -> None:
    plain = net(X)
    with edit(net, "first", lambda x: x):
        assert torch.equal(net(X), plain)


@pytest.mark.parametrize(
    "block", [lambda n: capture(n, ["first"]), lambda n: edit(n, "first", abs)]
)
def test_no_hook_is_left_after_an_exception(net: Net, block: Callable[[Any], Any]) -> None:
    with pytest.raises(ZeroDivisionError), block(net):
        raise ZeroDivisionError
    assert hooks(net) == 0


def test_no_hook_is_left_when_one_of_several_paths_is_unknown(net: Net) -> None:
    with pytest.raises(UnknownName), capture(net, ["first", "nowhere"]):
        pass
    assert hooks(net) == 0


def test_inference_puts_back_the_training_flag_of_every_module(net: Net) -> None:
    net.train()
    net.pair.eval()  # as one freezes a batch norm
    with pytest.raises(ZeroDivisionError), inference(net):
        assert not any(m.training for m in net.modules())
        assert not net(X).requires_grad
        raise ZeroDivisionError
    assert net.training and net.first.training and not net.pair.training
    assert torch.is_grad_enabled()
