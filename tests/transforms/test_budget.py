"""AdaLoRA's budget: against PEFT driven by hand, against the slow transcription, and against the published cubic."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator

import rmlora
from rmlora.errors import AttachError, MethodError, RmloraWarning
from rmlora.transforms import budget_at
from tests import tiny, toys
from tests.reference import adalora as slow

STEPS = 12
PHASES = {"total_step": 10, "tinit": 2, "tfinal": 3, "deltaT": 2, "target_r": 2}


def bert(**changes):
    shared = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    config = AdaLoraConfig(init_r=4, lora_alpha=8, **(shared | PHASES | changes))
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny.adapted("bert", config, dtype=torch.float64, base=no_dropout)


def freeze_scale(model):
    """Keep PEFT from training the rank that its scale is divided by."""
    for name, parameter in model.named_parameters():
        if "ranknum" in name:
            parameter.requires_grad_(False)
    return model


def train(model, after=lambda step: None):
    optimizer = tiny.adamw(model, foreach=False)
    model.train()
    for step in range(STEPS):
        model(**tiny.inputs("bert", seed=step)).loss.backward()
        optimizer.step()
        after(step + 1)
        optimizer.zero_grad()


def test_it_ends_where_pefts_own_loop_ends_when_driven_by_hand():
    by_hand, attached = freeze_scale(bert()), bert()
    handle = rmlora.attach(attached, rmlora.adalora())
    opened = []
    train(by_hand, by_hand.base_model.update_and_allocate)
    train(attached, lambda step: opened.append(handle.metrics()["open"]))
    assert tiny.distance(dict(by_hand.named_parameters()), dict(attached.named_parameters())) <= 1e-9
    values = [(name, p) for name, p in by_hand.named_parameters() if "lora_E" in name]
    assert sum((p == 0).sum().item() for _, p in values) == 8, "half of the triplets are pruned"
    for name, p in values:
        assert torch.equal(p == 0, dict(attached.named_parameters())[name] == 0)
    assert opened[-1] == 8


def test_it_equals_the_slow_transcription():
    model = toys.make_model(adapts="ADALORA", dropout=0.0, total_step=10, deltaT=2)
    reference = freeze_scale(copy.deepcopy(model))
    handle = rmlora.attach(model, rmlora.adalora())
    toys.train(model, steps=STEPS)
    optimizer = toys.make_optimizer(reference)
    layers = [reference.get_submodule(f"base_model.model.{name}") for name in ("0", "2")]
    modules = [tuple(getattr(layer, f"lora_{part}")["default"] for part in "AEB") for layer in layers]
    allocator = slow.SlowAllocator(total=10, target_r=5, initial=2, final=4, interval=2)
    reference.train()
    for step in range(STEPS):
        toys.compute_gradients(reference, step)
        norms = [norm for A, _, B in modules for norm in slow.penalty(A, B)]
        (0.1 * sum(norms) / len(norms)).backward()
        optimizer.step()
        with torch.no_grad():
            allocator.after_step(modules, step + 1)
        optimizer.zero_grad()
    for pair, (A, E, B) in zip(handle.pairs, modules, strict=True):
        for ours, theirs in ((pair.A, A), (pair.E, E), (pair.B, B)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@given(
    step=st.integers(0, 60),
    ranks=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    phases=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 30)),
)
def test_the_budget_is_the_published_cubic_and_pefts(step, ranks, phases):
    (target, start), (initial, final, room) = sorted(ranks), phases
    total = initial + final + room
    ours = budget_at(step, 3 * start, 3 * target, total, initial, final)
    assert ours == slow.budget(step, 3 * start, 3 * target, total, initial, final)
    assert 3 * target <= ours <= 3 * start
    allocator = RankAllocator.__new__(RankAllocator)
    allocator.peft_config = AdaLoraConfig(total_step=total, tinit=initial, tfinal=final)
    allocator.init_bgt, allocator.target_bgt = 3 * start, 3 * target
    assert abs(ours - allocator.budget_schedule(step)[0]) <= 1, "one, where rounding of a product differs"


def test_peft_1801_open_triplets_follow_the_cubic_at_every_step():
    model = toys.make_model(adapts="ADALORA", total_step=30, tinit=5, tfinal=8)
    handle = rmlora.attach(model, rmlora.adalora())
    optimizer = toys.make_optimizer(model)
    for step in range(1, 36):
        toys.train(model, optimizer, steps=1, start=step - 1)
        assert handle.metrics()["open"] == budget_at(min(step, 22), 16, 10, 30, 5, 8)


def test_the_last_pruning_happens_without_final_steps_too():
    model = toys.make_model(adapts="ADALORA", total_step=7, tinit=1, tfinal=0, deltaT=4)
    handle = rmlora.attach(model, rmlora.adalora())
    toys.train(model, steps=7)
    assert handle.metrics()["open"] == 10


def test_equal_initial_and_target_rank_prunes_nothing_where_peft_fails():
    same = {"adapts": "ADALORA", "target_r": 8, "total_step": 8, "tinit": 1, "tfinal": 2}
    plain = toys.make_model(**same)
    toys.compute_gradients(plain, 0)
    with pytest.raises(RuntimeError, match="out of range"):
        plain.base_model.update_and_allocate(2)
    model = toys.make_model(**same)
    handle = rmlora.attach(model, rmlora.adalora())
    toys.train(model, steps=10)
    assert handle.metrics()["open"] == 16


def test_peft_432_losses_carry_no_penalty_in_training_or_evaluation():
    model = bert(orth_reg_weight=50.0)
    batch = tiny.inputs("bert")
    penalised = model.eval()(**batch).loss
    handle = rmlora.attach(model, rmlora.adalora())
    for mode in (False, True):
        outputs = model.train(mode)(**batch)
        clean = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])
        assert torch.equal(outputs.loss, clean)
    assert penalised > clean + 1.0, "PEFT alone adds it"
    with pytest.warns(RmloraWarning, match="never saw an optimizer step"):
        handle.detach()
    torch.testing.assert_close(model.eval()(**batch).loss, penalised)


def test_knobs_prevail_over_the_configuration_and_blanks_come_from_it():
    model = toys.make_model(adapts="ADALORA")
    link = rmlora.attach(model, rmlora.adalora(total_steps=50, weight=0.0)).method.links[0]
    assert (link.total_steps, link.weight) == (50, 0.0)
    assert (link.target_r, link.initial_steps, link.final_steps, link.beta1) == (5, 2, 4, 0.85)


def test_the_scale_does_not_learn():
    model = toys.make_model(adapts="ADALORA")
    assert model.base_model.model[0].ranknum["default"].requires_grad, "PEFT has not changed"
    handle = rmlora.attach(model, rmlora.adalora())
    toys.train(model, steps=3)
    assert [pair.scale for pair in handle.pairs] == [16 / (8 + 1e-5)] * 2


def test_calling_the_allocation_by_hand_warns_and_does_nothing():
    model = toys.make_model(adapts="ADALORA")
    handle = rmlora.attach(model, rmlora.adalora())
    toys.train(model, steps=3)
    before = toys.weights(model)
    with pytest.warns(RmloraWarning, match="drives already"):
        model.base_model.update_and_allocate(8)
    toys.assert_equal_weights(before, toys.weights(model))
    assert handle.step == 3


def test_methods_and_adapters_of_different_kinds_are_refused():
    with pytest.raises(AttachError, match="SVDLinear of PEFT's AdaLoRA, which this method cannot train"):
        rmlora.attach(toys.make_model(adapts="ADALORA"), rmlora.rm_lora())
    with pytest.raises(AttachError, match=r"make the model with peft\.AdaLoraConfig"):
        rmlora.attach(toys.make_model(), rmlora.adalora(total_steps=9, target_r=2))


def test_a_module_without_gradient_is_named_before_anything_moves():
    model = toys.make_model(adapts="ADALORA")
    handle = rmlora.attach(model, rmlora.adalora())
    optimizer = toys.make_optimizer(model)
    toys.compute_gradients(model, 0)
    for parameter in handle.pairs[0].parameters:
        parameter.grad = None
    before = toys.weights(model)
    with pytest.raises(MethodError, match="1 of 2 modules have no gradient"):
        optimizer.step()
    toys.assert_equal_weights(before, toys.weights(model))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"total_steps": 0}, "total_steps=0; it must be >= 1"),
        ({"target_r": 9}, "target_r=9 exceeds init_r=8"),
        ({"weight": -0.5}, "weight=-0.5; it must be >= 0"),
        ({"beta1": 1.0}, "beta1=1.0; it must lie between"),
        ({"total_steps": 6}, "leaves no step to prune in"),
    ],
)
def test_values_that_make_no_sense_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.attach(toys.make_model(adapts="ADALORA"), rmlora.adalora(**knobs))
