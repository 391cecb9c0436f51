"""Groups of one process, the environment that torchrun sets, and what latents refuse."""

import pytest
import torch

from vision_sae import parallel, sharded
from vision_sae.errors import ConfigError
from vision_sae.parallel import ALONE, Group
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, Trainer

TWO = Group(1, 2, "latents")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in parallel.TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def sae(s: int = 12, family: str = "topk", **options: object) -> SAE:
    k = 2 if family in ("topk", "groupmax") else None
    return SAE(SAEConfig.of(4, s, family, k, **options))


# ---- alone


def test_without_torchrun_a_process_is_alone() -> None:
    with parallel.join() as group:
        assert group is ALONE
    with parallel.join("latents") as group:
        assert group is ALONE


def test_alone_nothing_is_copied() -> None:
    x = torch.arange(3.0)
    for method in (ALONE.sum, ALONE.largest, ALONE.least, ALONE.gather, ALONE.joined):
        assert method(x) is x
    assert ALONE.part_of(x) is x and ALONE.in_order(x) is x and ALONE.least(None) is None
    assert ALONE.total(7) == 7 and ALONE.either(True, False) == [True, False]
    assert ALONE.rows is ALONE and ALONE.latents is ALONE
    ALONE.same([x])
    ALONE.sum_all([x])
    assert torch.equal(x, torch.arange(3.0))


def test_alone_rows_are_picked_by_number() -> None:
    x = torch.randn(5, 2)
    assert torch.equal(ALONE.pick(x, torch.tensor([3, 0])), x[[3, 0]])


def test_the_best_of_a_row_are_marked() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [-3.0, -1.0, -2.0]])
    assert ALONE.best(scores, 2).tolist() == [[True, False, True], [False, True, True]]
    assert bool(ALONE.best(scores, 7).all())
    assert ALONE.best(scores[:, :0], 2).shape == (2, 0)


def test_a_group_is_one_of_rows_or_of_latents() -> None:
    rows = Group(1, 2, "rows")
    assert rows.rows is rows and rows.latents is ALONE
    assert TWO.latents is TWO and TWO.rows is ALONE


def test_a_part_of_a_number_has_its_whole_gradient() -> None:
    x = torch.tensor(6.0, requires_grad=True)
    part = TWO.part_of(x * 2)
    part.backward()
    assert float(part.detach()) == 6 and x.grad is not None and float(x.grad) == 2


# ---- torchrun's environment


def test_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="share rows or latents; got 'both'"):  # noqa: SIM117
        with parallel.join("both"):
            pass


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 4, but LOCAL_RANK, MASTER_ADDR"):  # noqa: SIM117
        with parallel.join():
            pass


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert parallel._claim_device(1) == "cuda:1" and chosen == [1]
    with pytest.raises(ConfigError, match="2 GPUs are here, but process 3 wants one"):
        parallel._claim_device(2)


# ---- refusals


def test_latents_must_be_dealt_evenly() -> None:
    with pytest.raises(ConfigError, match="a multiple of the 2 processes that share them; got 13"):
        sharded.check(sae(13).config, TWO)
    sharded.check(sae(13).config, Group(0, 2, "rows"))
    sharded.check(sae(13).config, ALONE)


def test_groups_stay_whole() -> None:
    message = "a multiple of the 2 processes that share them; got 3"
    with pytest.raises(ConfigError, match=message):
        sharded.check(SAEConfig.of(4, 12, "groupmax", 3), TWO)
    sharded.check(SAEConfig.of(4, 12, "groupmax", 4), TWO)


@pytest.mark.parametrize(
    ("family", "options", "named"),
    [
        ("mp", {}, "the mp family"),
        ("topk", {"nest": {"kind": "k", "ks": (1, 2)}}, "nest='k'"),
        ("topk", {"dictionary": {"points": 3}}, "an archetypal dictionary"),
    ],
)
def test_what_cannot_share_latents_says_so(
    family: str, options: dict[str, object], named: str
) -> None:
    config = SAEConfig.of(4, 12, family, 2, **options)
    with pytest.raises(ConfigError, match=f"^{named} cannot have its latents on several"):
        sharded.check(config, TWO)


@pytest.mark.parametrize("group", [Group(0, 2, "rows"), TWO])
def test_one_moment_per_row_is_for_one_process(group: Group) -> None:
    config = TrainConfig(optimizer="rows")
    with pytest.raises(ConfigError, match="optimizer='rows' is for one process"):
        Trainer(sae(), MemoryStore(torch.randn(20, 4)), config, group=group)


def test_a_batch_must_be_enough_for_all() -> None:
    config, source = TrainConfig(batch_size=7, pieces=2), MemoryStore(torch.randn(20, 4))
    with pytest.raises(ConfigError, match="7 rows cannot be dealt to 4 processes in 2 pieces each"):
        Trainer(sae(), source, config, group=Group(0, 4))


# ---- cutting up


def test_each_process_has_its_own_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "same", lambda self, tensors: None)
    whole = sae(12, "jumprelu")
    parts = [sharded.spread_out(whole, Group(rank, 3, "latents")) for rank in range(3)]
    names = sharded.latent_names(whole, parts[0])
    assert names == {"W_enc", "W_dec", "b_enc", "thresholds"}
    for name in names:
        together = torch.cat([part.state_dict()[name] for part in parts])
        assert torch.equal(together, whole.state_dict()[name])
    assert all(part.config.s == 4 and torch.equal(part.b_dec, whole.b_dec) for part in parts)


def test_the_encoder_reads_the_same_b_dec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "same", lambda self, tensors: None)
    part = sharded.spread_out(sae(), TWO)
    assert part.b_in is not None
    with torch.no_grad():
        part.b_dec.copy_(torch.arange(4.0))
    assert torch.equal(part.b_in, part.b_dec)


def test_latents_of_one_width_are_not_taken_for_b_dec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight latents for two processes of width 4: b_dec [4] looks like a share of b_enc."""
    monkeypatch.setattr(Group, "same", lambda self, tensors: None)
    whole = sae(8)
    assert "b_dec" not in sharded.latent_names(whole, sharded.spread_out(whole, TWO))


def test_what_runs_in_one_process_is_refused_under_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parallel.refuse("a suite", "train can")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a suite runs in one process, not under torchrun; train"):
        parallel.refuse("a suite", "train can")
