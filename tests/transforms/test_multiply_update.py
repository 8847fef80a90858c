"""LoRA+: against PEFT's own optimizer, against the slow transcription, and beside masks."""

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

import rmlora
from rmlora.errors import MethodError
from tests import toys
from tests.reference import lora_plus as slow

STEPS, LR, RATIO, DECAY = 8, 1e-2, 5.0, 0.1


def without_head_bias(model):
    """PEFT's optimizer gives one-dimensional parameters the rate of B, ours does not; leave none to learn."""
    model.base_model.model[4].modules_to_save["default"].bias.requires_grad_(False)
    return model


def test_it_equals_pefts_optimizer_under_adamw_with_decay():
    theirs = without_head_bias(toys.make_model())
    settings = {"lr": LR, "loraplus_lr_ratio": RATIO, "loraplus_weight_decay": DECAY}
    toys.train(theirs, create_loraplus_optimizer(theirs, torch.optim.AdamW, **settings), steps=STEPS)
    ours = without_head_bias(toys.make_model())
    rmlora.attach(ours, rmlora.lora_plus(RATIO), fast=False)
    toys.train(ours, toys.make_optimizer(ours, lr=LR, weight_decay=DECAY), steps=STEPS)
    mine = toys.weights(ours)
    for name, value in toys.weights(theirs).items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-12)
    plain = without_head_bias(toys.make_model())
    toys.train(plain, toys.make_optimizer(plain, lr=LR, weight_decay=DECAY), steps=STEPS)
    assert (
        toys.weights(plain)["base_model.model.0.lora_B.default.weight"]
        - mine["base_model.model.0.lora_B.default.weight"]
    ).abs().max() > 1e-2


def test_it_equals_the_slow_transcription():
    model = toys.make_model(r=3, dropout=0.0)
    handle = rmlora.attach(model, rmlora.lora_plus(RATIO), fast=False)
    rates = (LR, LR * RATIO)
    values = {(pair.name, i): p.detach().clone() for pair in handle.pairs for i, p in enumerate(pair.parameters)}
    memory = {key: slow.fresh_memory(value) for key, value in values.items()}

    def follow(step):
        for pair in handle.pairs:
            for i, parameter in enumerate(pair.parameters):
                key = pair.name, i
                values[key], memory[key] = slow.adamw_step(values[key], parameter.grad, memory[key], rates[i], DECAY)

    toys.train(model, toys.make_optimizer(model, lr=LR, weight_decay=DECAY), steps=5, watch=follow)
    for pair in handle.pairs:
        for i, parameter in enumerate(pair.parameters):
            torch.testing.assert_close(parameter.detach(), values[pair.name, i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam])
def test_it_equals_parameter_groups_wherever_the_update_is_proportional_to_the_rate(optimizer):
    ends = []
    for grouped in (False, True):
        model = toys.make_model(dropout=0.0)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [{"params": [p for name, p in named if ("lora_B" in name) == is_b]} for is_b in (False, True)]
        if grouped:
            groups[1]["lr"] = 1e-2 * RATIO
        else:
            rmlora.attach(model, rmlora.lora_plus(RATIO), fast=False)
        toys.train(model, optimizer(groups, lr=1e-2, weight_decay=0.01), steps=4)
        ends.append(toys.weights(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("policy", ["update", "state"])
def test_masked_directions_stand_still_beside_it(policy, order):
    model = toys.make_model()
    mask, faster = rmlora.gm_lora(3, policy=policy), rmlora.lora_plus(RATIO)
    handle = rmlora.attach(model, rmlora.chain(faster, mask) if order == "before" else rmlora.chain(mask, faster))
    optimizer = toys.make_optimizer(model)
    for step in range(4):
        kept, before = handle.kept(), {pair.name: (pair.A.clone(), pair.B.clone()) for pair in handle.pairs}
        toys.train(model, optimizer, steps=1, start=step)
        for pair in handle.pairs:
            rows, columns = kept[pair.name]
            still = [i for i in range(8) if i not in rows]
            assert torch.equal(pair.A[still], before[pair.name][0][still])
            assert torch.equal(pair.B[:, still], before[pair.name][1][:, still])
            assert not torch.equal(pair.B[:, columns], before[pair.name][1][:, columns])


def test_moments_are_those_of_the_optimizer_and_a_schedule_may_begin_at_one():
    plain, model = toys.make_model(), toys.make_model()
    rmlora.attach(model, rmlora.lora_plus(lambda step: 1.0 if step < 2 else RATIO), fast=False)
    ours, theirs = toys.make_optimizer(model), toys.make_optimizer(plain)
    toys.train(model, ours, steps=2)
    toys.train(plain, theirs, steps=2)
    toys.assert_equal_weights(toys.weights(plain), toys.weights(model))
    toys.train(model, ours, steps=1, start=2)
    toys.train(plain, theirs, steps=1, start=2)
    assert toys.differ(toys.weights(plain), toys.weights(model))
    for mine, other in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], other["exp_avg"])
        assert torch.equal(mine["exp_avg_sq"], other["exp_avg_sq"])


def test_it_composes_with_rm_lora_in_a_loop_of_several_micro_batches():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.chain(rmlora.rm_lora(1e-2, 3), rmlora.lora_plus(2.0)))
    optimizer = toys.make_optimizer(model)
    for step in range(3):
        for micro in range(2):
            x, y = toys.batch(2 * step + micro)
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert handle.step == 3


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_ratios_that_make_no_sense_are_refused(ratio):
    with pytest.raises(MethodError, match="must be finite and > 0"):
        rmlora.lora_plus(ratio)
