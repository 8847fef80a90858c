"""SoRA's gates: against the slow transcription, under accumulation, scaling and skipped steps, opened and shut."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rmlora
from rmlora.errors import MethodError
from rmlora.leaves import put_rows, take_rows
from rmlora.transforms.gate_directions import shrink
from tests import tiny, toys
from tests.reference import sora as slow

PROX = {"soft": slow.soft_threshold, "released": slow.released_threshold}
STEPS, MICRO, LR, DECAY = 12, 2, 1e-2, 0.05


def gates(handle):
    """Every module's gates, by name."""
    binding = handle._binding
    return {
        pair.name: tensors["0/gate"][row]
        for stack, tensors in zip(binding.stacks, binding.state, strict=True)
        for row, pair in enumerate(stack.pairs)
    }


def micro_batches(step):
    return [toys.batch(MICRO * step + micro) for micro in range(MICRO)]


def train_slowly(model, handle, **settings):
    """Train the transcription from where `model` stands; return its layers and head."""
    started = gates(handle)
    layers = [
        slow.SlowLayer(
            pair.layer.base_layer.weight, pair.layer.base_layer.bias, pair.A, pair.B, pair.scale, started[pair.name]
        )
        for pair in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    slow.train(layers, head, [micro_batches(step) for step in range(STEPS)], LR, DECAY, **settings)
    return layers, head


@pytest.mark.parametrize("prox", ["soft", "released"])
@pytest.mark.parametrize("weight", [0.0, 5.0])
@pytest.mark.parametrize("threshold", [0.0, 2e-2])
def test_gates_and_factors_equal_the_slow_transcription(prox, weight, threshold):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.sora(threshold, weight=weight, prox=prox))
    layers, head = train_slowly(model, handle, threshold=threshold, weight=weight, prox=PROX[prox])
    optimizer = toys.make_optimizer(model, lr=LR, weight_decay=DECAY)
    for step in range(STEPS):
        for x, y in micro_batches(step):
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(gates(handle)[pair.name], layer.gate, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)
    assert torch.equal(
        torch.cat([gate == 0 for gate in gates(handle).values()]), torch.cat([layer.gate == 0 for layer in layers])
    )
    trained = model.base_model.model[4].modules_to_save["default"]
    torch.testing.assert_close(trained.weight, head.weight, rtol=0, atol=1e-12)


@given(values=st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=9), threshold=st.floats(0.0, 0.6))
def test_both_operators_equal_the_scalar_rules(values, threshold):
    gate = torch.tensor(values, dtype=torch.float64)
    if threshold > 0:
        assert torch.equal(shrink(gate, threshold, "soft"), slow.soft_threshold(gate, threshold))
        assert torch.equal(shrink(gate, threshold, "released"), slow.released_threshold(gate, threshold))
        clear = (gate.abs() - 2 * threshold).abs() > 1e-9
        below = clear & (gate.abs() < 2 * threshold) & (gate.abs() != threshold)
        assert not shrink(gate, threshold, "released")[below].any()
    assert torch.equal(shrink(gate, 0.0), gate)


def test_ones_start_as_plain_lora_and_normal_gates_depend_on_seed_and_module():
    plain, model = toys.make_model(), toys.make_model()
    with torch.no_grad():
        for name, parameter in [*plain.named_parameters(), *model.named_parameters()]:
            if "lora_B" in name:
                parameter.fill_(0.1)
    rmlora.attach(model, rmlora.sora(start="ones"))
    x, _ = toys.batch(0)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    drawn = [gates(rmlora.attach(toys.make_model(), rmlora.sora(), seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0]["0"], drawn[1]["0"])
    assert not torch.equal(drawn[0]["0"], drawn[2]["0"])
    assert not torch.equal(drawn[0]["0"], drawn[0]["2"])
    many = gates(rmlora.attach(toys.make_model(r=512), rmlora.sora()))["0"]
    assert abs(many.mean().item()) < 0.15
    assert abs(many.std().item() - 1.0) < 0.1


def train_with_scaler(fused, scale, steps, bad=()):
    """Train in float32 under a scaler (None: without one); steps in `bad` have an infinite loss."""
    model = toys.make_model(dtype=torch.float32, dropout=0.0)
    handle = rmlora.attach(model, rmlora.sora(1e-3, weight=1.0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for step in steps:
        x, y = toys.batch(abs(step), torch.float32)
        loss = nn.functional.cross_entropy(model(x), y) * (float("inf") if step in bad else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return handle


@pytest.mark.parametrize("fused", [False, True])
def test_gates_move_the_same_under_a_loss_scale(fused):
    plain, scaled = (train_with_scaler(fused, scale, range(6)) for scale in (None, 2.0**14))
    for name, gate in gates(plain).items():
        torch.testing.assert_close(gates(scaled)[name], gate, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_leaves_no_trace_on_the_gates(fused):
    straight = train_with_scaler(fused, 1024.0, [0, 1, 2, 3])
    skipping = train_with_scaler(fused, 1024.0, [0, 1, -7, 2, 3], bad=[-7])
    assert straight.step == skipping.step == 4
    for name, gate in gates(straight).items():
        assert torch.equal(gates(skipping)[name], gate)


def test_gates_of_modules_without_gradient_stand_still():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.sora(1e-3))
    optimizer = toys.make_optimizer(model)
    toys.train(model, optimizer, steps=2)
    before = {name: gate.detach().clone() for name, gate in gates(handle).items()}
    toys.compute_gradients(model, 2)
    for parameter in handle.pairs[0].parameters:
        parameter.grad = None
    optimizer.step()
    optimizer.zero_grad()
    assert torch.equal(gates(handle)["0"], before["0"])
    assert not torch.equal(gates(handle)["2"], before["2"])
    toys.train(model, optimizer, steps=1, start=3)
    assert not torch.equal(gates(handle)["0"], before["0"]), "it learns again"


def test_rows_of_leaves_keep_their_gradients():
    leaf = torch.arange(6.0).view(3, 2).requires_grad_()
    leaf.square().sum().backward()
    part = take_rows(leaf, [2, 0])
    assert part.is_leaf
    assert torch.equal(part.grad, leaf.grad[[2, 0]])
    back = put_rows(leaf, part, [2, 0], 3)
    assert back.is_leaf
    assert torch.equal(back.grad, leaf.grad)
    assert torch.equal(back, leaf)
    assert put_rows(leaf, take_rows(torch.zeros(3, 2, requires_grad=True), [1]), [1], 3).grad[1].sum() == 0


def test_a_shut_gate_opens_again_under_the_soft_operator_and_not_under_the_released_one():
    opened = {}
    for prox in ("soft", "released"):
        model = toys.make_model(dropout=0.0)
        handle = rmlora.attach(model, rmlora.sora(lambda step: 10.0 if step == 1 else 6e-3, prox=prox))
        optimizer = toys.make_optimizer(model, lr=1e-2)
        toys.train(model, optimizer, steps=2)
        assert handle.metrics()["open"] == 0
        assert handle.metrics()["silent"] == 2
        toys.train(model, optimizer, steps=8, start=2)
        opened[prox] = handle.metrics()["open"]
    assert opened["soft"] > opened["released"]


def test_convolutions_carry_their_gates_on_channels():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]), autocast_adapter_dtype=False).double()
    handle = rmlora.attach(model, rmlora.sora(1e-3))
    optimizer = toys.make_optimizer(model)
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    gated = model.eval()(x)
    handle.detach()
    torch.testing.assert_close(model(x), gated, rtol=0, atol=1e-12)


def test_gates_learn_under_checkpointing_as_without():
    ends = []
    for checkpointed in (False, True):
        model = tiny.adapted("bert", dtype=torch.float64, base={"hidden_dropout_prob": 0.0})
        handle = rmlora.attach(model, rmlora.sora(1e-3))
        if checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        tiny.train(model, "bert", tiny.adamw(model), range(3))
        ends.append({name: gate.detach() for name, gate in gates(handle).items()})
    assert tiny.distance(*ends) <= 1e-9


def test_deep_copies_learn_gates_of_their_own():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.sora(1e-3))
    toys.train(model, steps=2)
    copied = copy.deepcopy(model)
    before = {name: gate.detach().clone() for name, gate in gates(handle).items()}
    toys.train(copied, steps=2)
    assert all(torch.equal(gates(handle)[name], gate) for name, gate in before.items())
    assert not torch.equal(gates(rmlora.attached(copied)[0])["0"], before["0"])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"threshold": -1.0}, "threshold=-1.0; it must be >= 0"),
        ({"weight": float("nan")}, "weight=nan; it must be >= 0"),
        ({"prox": "hard"}, 'prox="hard" is not one of'),
        ({"start": "zeros"}, 'start="zeros" is not one of'),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message.replace("(", r"\(")):
        rmlora.sora(**knobs)
