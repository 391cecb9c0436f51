"""Every family against an obvious dense twin: values, losses and gradients, in float64."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae import checkpoint, families, losses, nest
from vision_sae.families.jumprelu import KERNELS
from vision_sae.sae import SAE, SAEConfig
from vision_sae.sparse.codes import Codes, DenseCodes

WITHOUT_SMOOTHNESS = ("jumprelu", "gated")  # their gradients are not those of the loss, on purpose


def test_no_family_is_left_out(request: pytest.FixtureRequest) -> None:
    cases = {mark.split("-")[0] for mark in _names(request)}
    assert cases == set(families.OURS)


def _names(request: pytest.FixtureRequest) -> list[str]:
    definition = request._fixturemanager.getfixturedefs("case", request.node)
    assert definition
    return list(definition[-1].params or [])


# ---- the twins: all dense, gradients by autograd alone


def treated(sae: SAE, x: Tensor) -> Tensor:
    if sae.config.rows == "constant_norm":
        return x / x.square().sum(1, keepdim=True).sqrt() * math.sqrt(x.shape[1])
    if sae.config.rows == "layer_norm":
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().sum(1, keepdim=True) / (x.shape[1] - 1)
        return centred / (variance.sqrt() + 1e-5)
    return x


def largest(scores: Tensor, k: int) -> Tensor:
    """Which of a list are among the k largest."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[scores.argsort(descending=True)[:k]] = True
    return keep


def chosen(sae: SAE, z: Tensor, k: int | None, prefix: int | None = None) -> Tensor:
    """Which entries a family that counts them keeps, of all or of the first latents."""
    if prefix is not None:
        inside = chosen(_cut(sae, prefix), z[:, :prefix], k)
        return torch.nn.functional.pad(inside, (0, z.shape[1] - prefix))
    family: Any = sae.config.sparsity
    k = k or family.k
    scores = z.detach()
    if sae.config.rescale:
        scores = scores * sae.W_dec.detach().norm(dim=1)
    if family.kind == "batchtopk":
        return largest(scores.flatten(), k * len(z)).view_as(z)
    if family.kind == "groupmax":
        return torch.cat([torch.stack([largest(r, 1) for r in g]) for g in scores.chunk(k, 1)], 1)
    if family.kind == "abstopk":
        scores = scores.abs()
    return torch.stack([largest(row, k) for row in scores])


def _cut(sae: SAE, prefix: int) -> SAE:
    """The first latents as an SAE of their own."""
    cut = SAE(sae.config.model_copy(update={"s": prefix, "nest": None})).double()
    with torch.no_grad():
        for name, own in cut.state_dict().items():
            value = sae.state_dict()[name]
            own.copy_(value[:prefix] if own.shape[:1] == (prefix,) else value)
    return cut.train(sae.training)


def kernel_of(sae: SAE, z: Tensor) -> Tensor:
    """(1 / eps) K((z - theta) / eps), without gradient."""
    family: Any = sae.config.sparsity
    u = (z - sae.thresholds).detach() / family.bandwidth
    half, kernel = KERNELS[family.kernel]
    return torch.where(u.abs() < half, kernel(u), 0) / family.bandwidth


def slow_codes(
    sae: SAE, rows: Tensor, k: int | None = None, prefix: int | None = None
) -> tuple[Tensor, Tensor]:
    """z and f, both [n s]."""
    family: Any = sae.config.sparsity
    z = (rows - sae.b_dec if sae.config.centred else rows) @ sae.W_enc.T + sae.b_enc
    match family.kind:
        case "relu" | "panneal":
            return z, z.relu()
        case "abstopk":
            return z, z * chosen(sae, z, k, prefix)
        case "gated":
            magnitude = sae.r_mag.exp() * (z - sae.b_enc) + sae.b_mag
            return z, (z > 0) * magnitude.relu()
        case "jumprelu":
            theta = sae.thresholds
            f = z * (z > theta)
            moved = (z if family.to_input else z.detach()) - theta
            return z, f + (theta * kernel_of(sae, z)).detach() * (moved - moved.detach())
        case "mp":
            return z, slow_pursuit(sae, rows - sae.b_dec, k or family.k)
        case _:
            return z, z.relu() * chosen(sae, z, k, prefix)


def slow_pursuit(sae: SAE, residual: Tensor, k: int) -> Tensor:
    family: Any = sae.config.sparsity
    f = torch.zeros(len(residual), sae.config.s, dtype=residual.dtype)
    for _ in range(k):
        products = residual @ sae.W_dec.T
        best = torch.nn.functional.one_hot(products.argmax(1), sae.config.s)
        going = (residual.norm(dim=1, keepdim=True) > family.residual).to(f.dtype)
        strength = going * best * (products.relu() if family.rectified else products)
        f = f + strength
        residual = residual - strength @ sae.W_dec
    return f


def slow_decode(sae: SAE, f: Tensor, rows: Tensor) -> Tensor:
    skipped = 0 if sae.W_skip is None else rows @ sae.W_skip.T
    return f @ sae.W_dec + sae.b_dec + skipped


def slow_loss(sae: SAE, x: Tensor, target: Tensor | None) -> Tensor:
    """Reconstruction (nested where asked), penalty and Multi-TopK."""
    rows = treated(sae, x)
    goal = rows if target is None else target
    family: Any = sae.config.sparsity
    z, f = slow_codes(sae, rows)
    spread = (goal - goal.mean(0)).square().sum()
    unit = spread if family.loss == "fvu" else len(x)
    errors, weights = slow_errors(sae, f, z, goal, rows)
    loss = errors @ weights
    if isinstance(sae.config.nest, nest.Both):
        share, prefix = sae.config.nest.prefix_weight, sae.config.nest.drawn(sae.config.s, 0)
        alone = slow_codes(sae, rows, prefix=prefix)[1] * (torch.arange(sae.config.s) < prefix)
        more, same = slow_errors(sae, alone, z, goal, rows, prefix)
        if sae.levels is None:
            loss = loss * (1 - share) + more @ same * share
        else:  # one k in every other step
            level = sae.config.nest.drawn_level(0)
            one = 2 * len(errors) * weights[level] * more[level]
            loss = loss * (1 - share) + one * share
    loss = loss / unit + slow_penalty(sae, z, f, goal)
    if getattr(family, "multi", None):
        more = slow_codes(sae, rows, family.multi * family.k)[1]
        loss = loss + (goal - slow_decode(sae, more, rows)).square().sum() / spread / 8
    return loss


def slow_errors(
    sae: SAE, f: Tensor, z: Tensor, goal: Tensor, rows: Tensor, prefix: int | None = None
) -> tuple[Tensor, Tensor]:
    """The squared errors of all nested reconstructions, and what each counts."""
    parts, weights = slow_parts(sae, f)
    if sae.levels is not None:
        parts = [*slow_levels(sae, z, chosen(sae, z, None, prefix)), f]
    errors = torch.stack([(goal - slow_decode(sae, part, rows)).square().sum() for part in parts])
    if isinstance(sae.config.nest, nest.Ks) and sae.config.nest.weighting == "balanced":
        return errors, 1 / errors.detach() / (1 / errors.detach()).sum()
    return errors, errors.new_tensor(weights)


def slow_levels(sae: SAE, z: Tensor, among: Tensor) -> list[Tensor]:
    """What each k but the largest reads among the entries of the largest."""
    found = []
    for i, k in enumerate(sae.levels.ks):  # type: ignore[union-attr]
        read = z * sae.levels.gain[:, i] + sae.levels.shift[:, i]  # type: ignore[union-attr]
        inside = read.detach().masked_fill(among == 0, -torch.inf)
        found.append(read.relu() * torch.stack([largest(row, k) for row in inside]))
    return found


def slow_parts(sae: SAE, f: Tensor) -> tuple[list[Tensor], list[float]]:
    """The nested codes, and what the error of each counts."""
    s, n = sae.config.s, sae.config.nest
    if n is None:
        return [f], [1.0]
    if isinstance(n, nest.Ks):
        more = not hasattr(sae.config.sparsity, "k") or int((f != 0).sum(1).max()) > max(n.ks)
        whole = [s] if more else []
        ks = [*n.ks, *whole]  # what is past the largest k counts with all of them together
        parts = [f * torch.stack([largest(row.abs(), k) for row in f.detach()]) for k in ks]
        raw = list(range(len(parts), 0, -1)) if n.weighting == "reversed" else [1] * len(parts)
        raw = n.weighting if isinstance(n.weighting, tuple) else raw
        return parts, [w / sum(raw) for w in raw]
    if isinstance(n, nest.Prefixes):
        bounds = [round(share * s) for share in n.shares]
    else:
        bounds = n.groups(DenseCodes(f), 0, s)
    parts = [f * (torch.arange(s) < m) for m in bounds]
    return parts, [1.0 if n.reduction == "sum" else 1 / len(parts)] * len(parts)


def slow_penalty(sae: SAE, z: Tensor, f: Tensor, goal: Tensor) -> Tensor | float:
    family: Any = sae.config.sparsity
    norms = sae.W_dec.norm(dim=1) if sae.config.atoms == "free" else torch.ones(())
    n = len(f)
    match family.kind:
        case "relu" if family.p == 1:
            return family.coefficient * (f * norms).sum() / n
        case "relu" | "panneal":
            p = family.p if family.kind == "relu" else family.p_end
            return family.coefficient * ((f * norms + 1e-3) ** p - 1e-3**p).sum() / n
        case "gated":
            gate = z.relu()
            guess = gate @ sae.W_dec.detach() + sae.b_dec.detach()
            both = family.coefficient * (gate * norms).sum() + (goal - guess).square().sum()
            return both / n
        case "jumprelu" if family.mode == "tanh":
            return family.coefficient * torch.tanh(family.c * f * norms).sum() / n
        case "jumprelu":
            theta = sae.thresholds
            step = (z > theta).to(z.dtype) - kernel_of(sae, z) * (theta - theta.detach())
            l0 = step.sum() / n
            if family.mode == "target":
                l0 = sae.config.width_out * (l0 / family.target - 1) ** 2
            return family.coefficient * l0
    return 0.0


# ---- the comparison


def fast_loss(sae: SAE, x: Tensor, target: Tensor | None) -> tuple[losses.Pass, Tensor]:
    p = losses.forward(sae, x, target)
    p = replace(p, state=sae.config.sparsity.training_state())
    terms = (losses.reconstruction(p), sae.config.sparsity.penalty(p), losses.multi_topk(p))
    return p, torch.stack([term for term in terms if term is not None]).sum()


def gradients(loss: Tensor, sae: SAE, x: Tensor) -> dict[str, Tensor]:
    loss.backward()
    named = {"x": x, **dict(sae.named_parameters())}
    return {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in named.items()}


@pytest.mark.parametrize("through_x", [True, False])
def test_a_step_equals_the_dense_twin(case: Any, form: str, through_x: bool) -> None:
    sae, twin = case.sae(), case.sae()
    x, x_twin = (case.rows().requires_grad_(through_x) for _ in range(2))
    p, loss = fast_loss(sae, x, case.target())
    has_density = type(sae.config.sparsity).density is not families.Family.density
    assert isinstance(p.codes, DenseCodes if has_density and form == "dense" else Codes)
    codes = p.codes.to_dense() if isinstance(p.codes, Codes) else p.codes.values
    rows = treated(twin, x_twin)
    f = slow_codes(twin, rows)[1]
    assert 0 < f.count_nonzero() < f.numel()
    torch.testing.assert_close(codes, f)
    torch.testing.assert_close(p.x_hat, slow_decode(twin, f, rows))
    assert torch.equal(p.codes.l0, (f != 0).sum(1))
    assert torch.equal(p.codes.fired(), (f != 0).any(0))
    slow = slow_loss(twin, x_twin, case.target())
    torch.testing.assert_close(loss, slow)
    mine, theirs = gradients(loss, sae, x), gradients(slow, twin, x_twin)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], msg=lambda text, n=name: f"{n}: {text}")


def test_gradients_are_those_of_finite_differences(case: Any, form: str) -> None:
    sae = case.sae()
    if sae.config.sparsity.kind in WITHOUT_SMOOTHNESS:
        pytest.skip("trained by a surrogate")
    if getattr(sae.config.nest, "weighting", None) == "balanced":
        pytest.skip("the weights of its losses have no gradient")
    x = case.rows(6)
    target = case.target(6)
    parameters = tuple(p for p in sae.parameters() if p is not sae.b_enc or not sae.config.tied)

    def loss(*_: Tensor) -> Tensor:
        return fast_loss(sae, x, target)[1]

    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True)


def test_row_gradients_are_the_gradients(case: Any) -> None:
    """Row-sparse gradients hold the same numbers as dense ones."""
    if case.config.dictionary:
        pytest.skip("its atoms are no parameter")
    sae, twin = case.sae(), case.sae()
    sae.row_gradients = True
    for one in (sae, twin):
        fast_loss(one, case.rows(), case.target())[1].backward()
    for (name, p), q in zip(sae.named_parameters(), twin.parameters(), strict=True):
        if q.grad is not None:
            dense = p.grad.to_dense() if p.grad.is_sparse else p.grad
            torch.testing.assert_close(dense, q.grad, msg=name)


# ---- shapes, configs, files


def test_leading_axes_are_rows(case: Any) -> None:
    for sae in (case.sae(), case.sae().eval()):
        x = case.rows(6)
        codes, x_hat = sae(x.view(2, 3, -1))
        assert codes.to_dense().shape == (6, sae.config.s)
        assert x_hat.shape == (6, sae.config.width_out)
        assert torch.equal(x_hat, sae(x).x_hat)
        assert torch.equal(sae.encode(x.view(3, 2, -1)).to_dense(), codes.to_dense())
        assert sae.pre_activations(x.view(2, 3, -1)).shape == (2, 3, sae.config.s)


def test_a_single_row_and_no_row_are_read(case: Any) -> None:
    sae = case.sae().eval()
    alone, none = sae(case.rows(1)[0]), sae(case.rows(0))
    assert alone.x_hat.shape == (1, sae.config.width_out)
    assert none.x_hat.shape == (0, sae.config.width_out) and len(none.codes) == 0


def test_rows_are_read_alone_at_inference(case: Any) -> None:
    sae, x = case.sae().eval(), case.rows(5)
    together, alone = sae(x).x_hat, torch.cat([sae(row).x_hat for row in x])
    torch.testing.assert_close(together, alone)


def test_without_gradient_the_result_is_the_same(case: Any) -> None:
    sae = case.sae().eval()
    with torch.no_grad():
        quiet = sae(case.rows())
    torch.testing.assert_close(quiet.x_hat, sae(case.rows()).x_hat)
    assert not quiet.x_hat.requires_grad


def test_a_config_goes_through_json(case: Any) -> None:
    again = SAEConfig.model_validate_json(case.config.model_dump_json())
    assert again == case.config
    assert type(again.sparsity) is families.family(again.sparsity.kind)
    assert again.sparsity.describe().startswith(again.sparsity.kind)


def test_a_saved_sae_is_the_same_bit_for_bit(case: Any, tmp_path: Path) -> None:
    sae = case.sae().float().eval()
    sae.scale.fill_(3.5)
    checkpoint.save(sae, tmp_path / "sae")
    again = checkpoint.load(tmp_path / "sae")
    assert again.config == sae.config and not again.training
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again(case.rows().float()).x_hat, sae(case.rows().float()).x_hat)
    if sae.config.tied:
        assert again.W_dec is again.W_enc
