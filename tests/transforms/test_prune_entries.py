"""PRILoRA's pruning: against the slow transcription, when entries come back, what is measured, how it is saved."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

import rmlora
from rmlora.errors import MethodError
from rmlora.transforms.prune_entries import prune_entries
from tests import tiny, toys
from tests.reference import prilora as slow

STEPS, MICRO, LR, DECAY = 10, 2, 1e-2, 0.05


def norms(handle):
    binding = handle._binding
    return {
        pair.name: tensors["0/norms"][row]
        for stack, tensors in zip(binding.stacks, binding.state, strict=True)
        for row, pair in enumerate(stack.pairs)
    }


def micro_batches(step):
    return [toys.batch(MICRO * step + micro) for micro in range(MICRO)]


@pytest.mark.parametrize("within", ["row", "matrix"])
@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize(("share", "decay"), [(0.3, 0.9), (0.75, 0.0)])
def test_factors_and_norms_equal_the_slow_transcription(within, regrow, share, decay):
    settings = {"share": share, "interval": 3, "decay": decay, "within": within, "regrow": regrow}
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.prilora(**settings))
    layers = []
    for pair in handle.pairs:
        base = pair.layer.base_layer
        layers.append(slow.Measured(base.weight, base.bias, pair.A, pair.B, pair.scale))
    head = copy.deepcopy(model.base_model.model[4].modules_to_save["default"])
    slow.train(layers, head, [micro_batches(step) for step in range(STEPS)], LR, DECAY, **settings)
    optimizer = toys.make_optimizer(model, lr=LR, weight_decay=DECAY)
    for step in range(STEPS):
        for x, y in micro_batches(step):
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for pair, layer in zip(handle.pairs, layers, strict=True):
        torch.testing.assert_close(norms(handle)[pair.name], layer.norms, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.A, layer.A, rtol=0, atol=1e-12)
        torch.testing.assert_close(pair.B, layer.B, rtol=0, atol=1e-12)


def zeros(handle):
    return [pair.A == 0 for pair in handle.pairs]


def test_pruned_entries_learn_again_unless_told_not_to():
    for regrow in (True, False):
        model = toys.make_model(dropout=0.0)
        handle = rmlora.attach(model, rmlora.prilora(0.5, interval=3, regrow=regrow))
        optimizer = toys.make_optimizer(model)
        toys.train(model, optimizer, steps=2)
        assert not any(zero.any() for zero in zeros(handle))
        toys.train(model, optimizer, steps=1, start=2)
        pruned = zeros(handle)
        assert all((zero.sum(dim=1) == zero.shape[1] // 2).all() for zero in pruned)
        assert handle.metrics()["zeros"] == 8 * (12 + 16) // 2
        toys.train(model, optimizer, steps=1, start=3)
        assert [zero.any().item() for zero in zeros(handle)] == [not regrow] * 2
        if not regrow:
            assert all(torch.equal(a, b) for a, b in zip(zeros(handle), pruned, strict=True))


def test_a_share_may_grow_with_the_steps():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.prilora(lambda step: 0.25 * (step // 2), interval=2, regrow=False))
    optimizer = toys.make_optimizer(model)
    for step, share in enumerate([0.0, 0.0, 0.0, 0.25, 0.25, 0.5]):
        toys.train(model, optimizer, steps=1, start=step)
        assert handle.metrics()["zeros"] == share * 8 * (12 + 16)


@pytest.mark.parametrize("fused", [False, True])
def test_norms_are_those_of_the_inputs_whatever_the_loss_is_multiplied_by(fused):
    found = []
    for scale in (1.0, 2.0**14):
        model = toys.make_model(dtype=torch.float32, dropout=0.0)
        handle = rmlora.attach(model, rmlora.prilora(decay=0.0))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        for step in range(3):
            x, y = toys.batch(step, torch.float32)
            scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        torch.testing.assert_close(norms(handle)["0"], x.norm(dim=0))
        found.append(norms(handle))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)


def test_inputs_are_measured_once_under_checkpointing_and_not_in_evaluation():
    ends = []
    for checkpointed in (False, True):
        model = tiny.adapted("bert", dtype=torch.float64, base={"hidden_dropout_prob": 0.0})
        handle = rmlora.attach(model, rmlora.prilora(interval=2))
        if checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        tiny.train(model, "bert", tiny.adamw(model), range(3))
        model.eval()(**tiny.inputs("bert")).logits.sum().backward()
        assert all(tensors["0/energy"].grad is None for tensors in handle._binding.state)
        ends.append(norms(handle))
    assert tiny.distance(*ends) <= 1e-9


def test_convolutions_are_measured_by_channel():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]), autocast_adapter_dtype=False).double()
    handle = rmlora.attach(model, rmlora.prilora(0.5, interval=1, decay=0.0))
    optimizer = toys.make_optimizer(model)
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    x[:, 1] *= 100.0
    model(x).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(norms(handle)["0"], x.square().sum(dim=(0, 2, 3)).sqrt())
    zero = handle.pairs[0].A == 0
    assert zero.sum() == 4 * 9
    assert zero[:, :9].sum() > zero[:, 9:].sum(), "the weak channel goes first"


def test_zeros_are_saved_as_zeros_and_nothing_is_counted_as_learnt(tmp_path):
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.prilora(0.5, interval=1, regrow=False))
    toys.train(model, steps=2)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.0.lora_A.weight"]
    assert torch.equal(saved == 0, handle.pairs[0].A == 0)
    assert saved.shape == (8, 12)
    assert handle.num_learnt == 0


def test_of_equal_entries_the_first_go_and_none_is_left_out():
    assert prune_entries(torch.ones(1, 2, 4), torch.ones(1, 4), 0.5)[0].tolist() == [[False, False, True, True]] * 2
    assert prune_entries(torch.ones(1, 2, 4), torch.ones(1, 4), 0.5, "matrix")[0].sum(dim=1).tolist() == [0, 4]
    assert prune_entries(torch.ones(1, 2, 3), torch.ones(1, 3), 0.3).all()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"share": 1.0}, "share=1.0; it lies in"),
        ({"interval": 0}, "interval=0; it counts optimizer steps"),
        ({"decay": 1.0}, "decay=1.0; it lies in"),
        ({"within": "column"}, 'within="column" is not one of'),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.prilora(**knobs)
