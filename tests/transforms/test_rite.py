"""LoRA-RITE: against the slow transcription, invariant, getting going from B = 0, under scaling and refusals."""

import copy

import pytest
import torch
from torch import nn

import rmlora
from rmlora.errors import MethodError
from tests import toys
from tests.reference.lora_rite import SlowRite
from tests.reference.sora import SlowLayer

LR = 1e-2


def train(model, optimizer, steps, start=0, scale=None):
    """Batches larger than r, so that no second moment is singular."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    dtype = next(model.parameters()).dtype
    for step in range(start, start + steps):
        x, y = toys.batch(step, dtype, size=40)
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def slow_layer(pair):
    base = pair.layer.base_layer
    return SlowLayer(base.weight, base.bias, pair.A, pair.B, pair.scale, torch.ones(pair.r))


def spread_B(handle, size=0.1):
    """B away from zero, so that every direction counts."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for pair in handle.pairs:
            B = pair.parameters[1]
            B.copy_(size * torch.randn(B.shape, generator=generator, dtype=B.dtype))


@pytest.mark.parametrize("from_zero", [True, False])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"escaped_mass": True, "weight_decay": 0.1, "beta_2": 0.9},
        {"max_norm": 1e-2, "epsilon": 1e-3},
        {"max_rms": 2e-2, "max_norm": None},
        {"max_rms": None, "beta_1": 0.5},
    ],
    ids=str,
)
def test_factors_equal_the_slow_transcription(knobs, from_zero):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.lora_rite(**knobs))
    if not from_zero:
        spread_B(handle)
    layers = [slow_layer(pair) for pair in handle.pairs]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    slow = SlowRite([(layer.A, layer.B) for layer in layers], LR, **knobs)
    ordinary = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=0.05)
    slow_model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), head)
    for step in range(8):
        x, y = toys.batch(step, size=40)
        nn.functional.cross_entropy(slow_model(x), y).backward()
        slow.step()
        ordinary.step()
        slow_model.zero_grad()
    train(model, toys.make_optimizer(model, lr=LR), 8)
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)


@pytest.mark.parametrize("knobs", [{}, {"escaped_mass": True, "weight_decay": 0.1, "max_norm": 1e-2}], ids=str)
def test_training_does_not_depend_on_how_the_product_is_split(knobs):
    ends = []
    for turned in (False, True):
        model = toys.make_model(dropout=0.0)
        handle = rmlora.attach(model, rmlora.lora_rite(**knobs))
        spread_B(handle)
        generator = torch.Generator().manual_seed(9)
        for pair in handle.pairs if turned else ():
            R = torch.eye(8, dtype=torch.float64) + 0.15 * torch.randn(8, 8, generator=generator, dtype=torch.float64)
            assert torch.linalg.cond(R) < 50
            A, B = pair.parameters
            with torch.no_grad():
                A.copy_(3.0 * R @ A)
                B.copy_(torch.linalg.solve(3.0 * R, B, left=False))
        optimizer = toys.make_optimizer(model, lr=LR)
        train(model, optimizer, 10)
        ends.append([pair.B @ pair.A for pair in handle.pairs])
    for first, second in zip(*ends, strict=True):
        assert (first - second).norm() <= 1e-6 * first.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_both_paths_train_the_same_where_B_is_not_zero(dtype, tolerance):
    ends = []
    for fast in (True, False):
        model = toys.make_model(dtype=dtype, dropout=0.0)
        handle = rmlora.attach(model, rmlora.lora_rite(), fast=fast)
        spread_B(handle)
        train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR), 6)
        assert {how.startswith("reference") for how in handle.paths().values()} == {not fast}
        ends.append([parameter for pair in handle.pairs for parameter in pair.parameters])
    for first, second in zip(*ends, strict=True):
        assert (first - second).norm() <= tolerance * first.norm()


def test_training_gets_going_from_zero_B_and_A_follows():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.lora_rite())
    optimizer = toys.make_optimizer(model)
    starts = [pair.A.clone() for pair in handle.pairs]
    train(model, optimizer, 1)
    assert all(pair.B.any() for pair in handle.pairs)
    assert all(torch.equal(pair.A, A) for pair, A in zip(handle.pairs, starts, strict=True))
    train(model, optimizer, 1, start=1)
    assert all(not torch.equal(pair.A, A) for pair, A in zip(handle.pairs, starts, strict=True))
    assert all(value.isfinite().all() for pair in handle.pairs for value in pair.parameters)


def test_a_batch_of_fewer_rows_than_directions_makes_no_steps_of_noise():
    model = toys.make_model(dtype=torch.float32, dropout=0.0)
    handle = rmlora.attach(model, rmlora.lora_rite())
    sizes = [pair.A.norm() for pair in handle.pairs]
    toys.train(model, steps=10, dtype=torch.float32)
    assert all(pair.A.norm() < 10 * size for pair, size in zip(handle.pairs, sizes, strict=True))


def test_a_rank_above_the_width_of_a_module_is_fine():
    model = toys.make_model(dropout=0.0, r=14)
    handle = rmlora.attach(model, rmlora.lora_rite())
    train(model, toys.make_optimizer(model), 6)
    assert all(value.isfinite().all() for pair in handle.pairs for value in pair.parameters)


def test_the_step_has_each_factors_own_rate_and_the_optimizers_decay_does_not_reach_it():
    ends = {}
    for decay in (0.0, 0.5):
        model = toys.make_model(dropout=0.0)
        handle = rmlora.attach(model, rmlora.lora_rite())
        spread_B(handle)
        sides = list(zip(*(pair.parameters for pair in handle.pairs), strict=True))
        groups = [{"params": list(sides[0]), "lr": 0.0}, {"params": list(sides[1]), "lr": LR}]
        started = [A.detach().clone() for A in sides[0]]
        train(model, torch.optim.AdamW(groups, weight_decay=decay), 2)
        assert all(torch.equal(A, start) for A, start in zip(sides[0], started, strict=True))
        ends[decay] = [B.detach().clone() for B in sides[1]]
    assert all(torch.equal(a, b) for a, b in zip(*ends.values(), strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_the_limits_are_in_gradients_free_of_the_loss_scale(fused):
    ends = []
    for scale in (None, 2.0**12):
        model = toys.make_model(dtype=torch.float32, dropout=0.0)
        handle = rmlora.attach(model, rmlora.lora_rite(epsilon=1e-3))
        spread_B(handle)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, fused=fused)
        train(model, optimizer, 4, scale=scale)
        ends.append([pair.B @ pair.A for pair in handle.pairs])
    for first, second in zip(*ends, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.lora_rite(max_rms=None))
    optimizer = toys.make_optimizer(model)
    toys.compute_gradients(model, 0)
    _, B = handle.pairs[0].parameters
    start = B.detach().clone()
    B.grad[0, 0] = float("nan")
    optimizer.step()
    assert torch.equal(B, start)
    assert handle.pairs[1].B.any()


def test_modules_without_gradient_keep_their_moments_and_nothing_of_the_gradients_stays():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.lora_rite())
    optimizer = toys.make_optimizer(model)
    train(model, optimizer, 2)
    toys.compute_gradients(model, 2)
    for parameter in handle.pairs[0].parameters:
        parameter.grad = None
    optimizer.step()
    assert [tensors["0/steps"].tolist() for tensors in handle._binding.state] == [[2], [3]]
    assert not [key for tensors in handle._binding.state for key in tensors if "gradient" in key]


@pytest.mark.parametrize(
    "make",
    [
        lambda rite: rmlora.chain(rmlora.gm_lora(4), rite),
        lambda rite: rmlora.chain(rmlora.MaskDirections(4, act_in="step"), rite),
        lambda rite: rmlora.chain(rite, rmlora.only("0", rmlora.rm_lora(1e-3, 4))),
    ],
)
def test_a_mask_beside_it_is_refused_before_anything_is_attached(make):
    with pytest.raises(MethodError, match="rank coordinates rotate") as caught:
        make(rmlora.lora_rite())
    assert "\n" not in str(caught.value)


def test_links_that_change_gradients_stand_in_front():
    assert len(rmlora.chain(rmlora.r_lora(1e-3), rmlora.lora_rite()).links) == 2
    with pytest.raises(MethodError, match="AddOrthogonality changes gradients after PreconditionFactors has computed"):
        rmlora.chain(rmlora.lora_rite(), rmlora.r_lora(1e-3))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"beta_1": 1.0}, "beta_1=1.0; a decay lies in"),
        ({"beta_2": -0.1}, "beta_2=-0.1; a decay lies in"),
        ({"epsilon": 0.0}, "epsilon=0.0; it must be > 0"),
        ({"max_rms": 0.0}, "max_rms=0.0; it must be > 0"),
        ({"max_norm": -1.0}, "max_norm=-1.0; it must be > 0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan; it must be >= 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.lora_rite(**knobs)
