"""RAC-LoRA: the chain against runs that are really merged; what freezes stays bit-identical."""

import copy

import pytest
import torch

import rmlora
from rmlora.errors import MethodError
from rmlora.transforms import draw_sketch
from tests import toys
from tests.reference import rac_lora as slow

LR, DECAY = 1e-2, 0.05
BLOCKS, BLOCK_STEPS, STEPS = 3, 4, 14


def knobs(side="left", **changes):
    return {"side": side, "blocks": BLOCKS, "block_steps": BLOCK_STEPS} | changes


def sketch_and_zero(pair, side, block, seed=0):
    keys = torch.tensor([pair.words])
    A, B = torch.zeros_like(pair.A), torch.zeros_like(pair.B)
    if side == "left":
        return A, draw_sketch(keys, *B.shape, seed, block)[0]
    return draw_sketch(keys, *A.shape, seed, block)[0], B


@pytest.mark.parametrize("side", ["left", "right"])
def test_factors_and_total_weights_equal_runs_that_are_merged_one_after_another(side):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.rac_lora(**knobs(side)))
    layers = [
        slow.SlowLayer(pair.layer.base_layer.weight, pair.layer.base_layer.bias, pair.scale, side)
        for pair in handle.pairs
    ]
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    sketches = [[sketch_and_zero(pair, side, block) for pair in handle.pairs] for block in range(BLOCKS)]
    slow.train(layers, head, sketches, [[toys.batch(step)] for step in range(STEPS)], LR, DECAY, BLOCK_STEPS)
    toys.train(model, toys.make_optimizer(model, lr=LR, weight_decay=DECAY), steps=STEPS)
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)
        A, B = handle.fold()[pair.name]
        assert len(A) == BLOCKS * pair.r
        total = pair.layer.base_layer.weight + pair.scale * B @ A
        torch.testing.assert_close(total, layer.weight + layer.scale * layer.B @ layer.A, rtol=0, atol=1e-12)
    assert handle.metrics()["frozen_blocks"] == 2 * (BLOCKS - 1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_sketches_and_frozen_blocks_stay_bit_identical(side, optimizer):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.rac_lora(**knobs(side)), seed=5)
    momentum = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.5, **momentum)
    for step in range(STEPS):
        block = min(step // BLOCK_STEPS, BLOCKS - 1)
        for pair in handle.pairs:
            frozen, expected = (pair.B, 1) if side == "left" else (pair.A, 0)
            assert torch.equal(frozen, sketch_and_zero(pair, side, block, seed=5)[expected]), step
        outputs = toys.outputs(model)
        finished = [value[0][: 8 * block] for value in (t["0/A"] for t in handle._binding.state)]
        toys.train(model, optimizer, steps=1, start=step)
        for before, tensors in zip(finished, handle._binding.state, strict=True):
            assert torch.equal(before, tensors["0/A"][0][: 8 * block])
        assert not torch.equal(outputs, toys.outputs(model))


def test_it_starts_as_the_base_model_and_outputs_do_not_jump_where_a_block_ends():
    model, plain = toys.make_model(), toys.make_model()
    handle = rmlora.attach(model, rmlora.rac_lora(**knobs(block_steps=1)))
    assert torch.equal(toys.outputs(model), toys.outputs(plain))
    x, _ = toys.batch(3)
    optimizer = toys.make_optimizer(model, lr=LR)
    toys.compute_gradients(model, 0)
    optimizer.step()
    pair = handle.pairs[0]
    assert not pair.A.any(), "the new block starts from zero"
    A, B = handle.fold()["0"]
    weight = pair.layer.base_layer.weight + pair.scale * B @ A
    torch.testing.assert_close(pair.layer.eval()(x), x @ weight.T + pair.layer.base_layer.bias, rtol=0, atol=1e-12)
    assert (B @ A).any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("stop", [BLOCK_STEPS - 1, BLOCK_STEPS, BLOCK_STEPS + 1])
@pytest.mark.parametrize("load_first", [True, False])
def test_resuming_around_the_end_of_a_block_is_bit_exact(side, stop, load_first):
    straight = toys.make_model()
    rmlora.attach(straight, rmlora.rac_lora(**knobs(side)))
    toys.train(straight, steps=STEPS)
    first = toys.make_model()
    rmlora.attach(first, rmlora.rac_lora(**knobs(side)))
    optimizer = toys.make_optimizer(first)
    toys.train(first, optimizer, steps=stop)
    weights, state = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
    second = toys.make_model(seed=9)
    if load_first:
        second.load_state_dict(weights)
    handle = rmlora.attach(second, rmlora.rac_lora(**knobs(side)))
    if not load_first:
        second.load_state_dict(weights)
    optimizer = toys.make_optimizer(second)
    optimizer.load_state_dict(state)
    toys.train(second, optimizer, steps=STEPS - stop, start=stop)
    assert handle.step == STEPS
    toys.assert_equal_weights(toys.weights(straight), toys.weights(second))
    assert torch.equal(toys.outputs(straight), toys.outputs(second))


def test_a_pair_without_gradient_in_the_last_step_of_a_block_keeps_it():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.rac_lora(**knobs(block_steps=2)))
    optimizer = toys.make_optimizer(model)

    def forget(step):
        for parameter in handle.pairs[0].parameters if step == 1 else ():
            parameter.grad = None

    toys.train(model, optimizer, steps=2, watch=forget)
    assert [values["frozen_blocks"] for values in handle.metrics()["modules"].values()] == [0, 1]
    assert optimizer.state[handle.pairs[0].parameters[0]]["step"] == 1
    assert optimizer.state[handle.pairs[1].parameters[0]]["step"] == 0
    toys.train(model, optimizer, steps=4, start=2)
    assert [values["frozen_blocks"] for values in handle.metrics()["modules"].values()] == [2, 2]


def test_a_chain_of_one_block_is_plain_in_the_forward_pass():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.rac_lora(blocks=1, block_steps=2))
    before = handle.pairs[0].B.detach().clone()
    toys.train(model, steps=5)
    assert torch.equal(handle.pairs[0].B, before)
    assert handle.pairs[0].A.any()
    live = toys.outputs(model)
    handle.detach()
    assert torch.equal(toys.outputs(model), live)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"side": "both"}, 'side="both" is not one of'),
        ({"blocks": 0}, "0 blocks make no chain"),
        ({"block_steps": 0}, "block_steps=0; it counts optimizer steps"),
    ],
)
def test_values_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(MethodError, match=message):
        rmlora.rac_lora(**wrong)
