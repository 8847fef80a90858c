"""Every kind of layer and initialisation PEFT knows trains by RM-LoRA as the slow transcription does."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import rmlora
from rmlora.pairs import find_pairs
from tests import tiny, zoo
from tests.reference.rm_lora import mask_gradients, penalty_of_paper

WEIGHT, STEPS = 1e-2, 4
METHOD = rmlora.rm_lora(weight=WEIGHT, directions=2)


def adamw(model):
    return torch.optim.AdamW(tiny.trained(model), lr=1e-2, foreach=False)


def train_attached(model, watch=lambda handle: None, method=METHOD):
    """Train by attaching; return the masks of all steps."""
    handle, optimizer, masks = rmlora.attach(model, method), adamw(model), []
    model.train()
    for step in range(STEPS):
        masks.append(handle.kept())
        zoo.compute_loss(model, step).backward()
        watch(handle)
        optimizer.step()
        optimizer.zero_grad()
    assert handle.step == STEPS
    return masks


def train_slowly(model, masks):
    """Train plain PEFT, adding penalty and mask by hand, module by module, with autograd."""
    optimizer, pairs = adamw(model), find_pairs(model)
    model.train()
    for step in range(STEPS):
        penalty = sum(penalty_of_paper(pair.A, pair.B) for pair in pairs)
        (zoo.compute_loss(model, step) + WEIGHT * penalty).backward()
        for pair in pairs:
            A, B = pair.parameters
            mask_gradients(A.grad, B.grad.flatten(1), *masks[step][pair.name])
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_every_kind_of_layer_trains_as_the_slow_transcription(kind):
    model, slow = zoo.adapted(kind), zoo.adapted(kind)
    start = tiny.learnt(slow)
    masks = train_attached(model)
    train_slowly(slow, masks)
    assert all(len(rows) == len(columns) == 2 for mask in masks for rows, columns in mask.values())
    assert tiny.distance(tiny.learnt(slow), start) > 1e-2
    assert tiny.distance(tiny.learnt(model), tiny.learnt(slow)) <= 1e-10


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_the_mask_acts_in_backward_wherever_the_forward_pass_calls_modules(kind):
    model = zoo.adapted(kind)
    late = set()

    def watch(handle):
        for pair in handle.pairs:
            B = pair.parameters[1].grad.flatten(1)
            if set(B.abs().sum(0).nonzero().flatten().tolist()) != set(handle.kept()[pair.name][1]):
                late.add(pair.name)

    train_attached(model, watch)
    (handle,) = rmlora.attached(model)
    assert set(handle.late) == late
    assert bool(late) == zoo.KINDS[kind].late


@pytest.mark.parametrize("kind", zoo.KINDS)
@pytest.mark.parametrize("preset", ["paper", "strict"])
def test_strength_zero_is_plain_peft_bit_for_bit_on_every_kind(kind, preset):
    model, plain = zoo.adapted(kind, lora_dropout=dropout_of(kind)), zoo.adapted(kind, lora_dropout=dropout_of(kind))
    train_attached(model, method=rmlora.rm_lora(weight=0.0, directions=1.0, preset=preset))
    optimizer = adamw(plain)
    plain.train()
    for step in range(STEPS):
        zoo.compute_loss(plain, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert tiny.distance(tiny.learnt(model), tiny.learnt(plain)) == 0.0


def dropout_of(kind):
    return 0.0 if kind == "attention" else 0.2  # PEFT refuses dropout there


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_strict_masked_directions_do_not_move_on_any_kind(kind):
    model = zoo.adapted(kind)
    handle = rmlora.attach(model, rmlora.rm_lora(weight=WEIGHT, directions=2, preset="strict"))
    optimizer = adamw(model)
    model.train()
    for step in range(STEPS):
        kept = handle.kept()
        before = {pair.name: (pair.A.clone(), pair.B.clone()) for pair in handle.pairs}
        zoo.compute_loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        for pair in handle.pairs:
            for now, was, learning, side in zip(
                (pair.A, pair.B), before[pair.name], kept[pair.name], (1, 0), strict=True
            ):
                moved = (now != was).any(side).nonzero().flatten().tolist()
                assert set(moved) <= set(learning)
    assert any((before[pair.name][0] != pair.A).any() for pair in handle.pairs)


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_the_config_alone_trains_every_kind_as_attaching_does(kind):
    model = zoo.adapted(kind)
    train_attached(model)
    by_config = zoo.adapted(kind, rmlora.RMLoraConfig, weight=WEIGHT, directions=2)
    (handle,) = rmlora.attached(by_config)
    assert {pair.name for pair in handle.pairs} == {pair.name for pair in find_pairs(by_config)}
    optimizer = adamw(by_config)
    by_config.train()
    for step in range(STEPS):
        zoo.compute_loss(by_config, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert tiny.distance(tiny.learnt(model), tiny.learnt(by_config)) <= 1e-12


def test_a_bf16_base_keeps_its_factors_and_penalty_in_float32():
    torch.manual_seed(0)
    base = tiny.llama().to(torch.bfloat16)
    model = get_peft_model(base, tiny.lora_config("llama"))
    handle = rmlora.attach(model, METHOD)
    assert {parameter.dtype for pair in handle.pairs for parameter in pair.parameters} == {torch.float32}
    pair, optimizer = handle.pairs[0], torch.optim.SGD(tiny.trained(model), lr=1.0)
    before, rows = pair.A.detach().clone(), handle.kept()[pair.name][0]
    model.train()
    model(**tiny.inputs("llama")).loss.backward()
    task = pair.parameters[0].grad.clone()
    optimizer.step()
    penalty = 4 * WEIGHT * (before @ before.T - torch.eye(pair.r)) @ before
    expected = before.clone()
    expected[rows] -= (task + penalty)[rows]
    assert (pair.A - expected).abs().max() <= 1e-6
    assert base.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_in_half_precision_train_and_stay_finite(dtype):
    torch.manual_seed(0)
    model = get_peft_model(tiny.llama().to(dtype), tiny.lora_config("llama"), autocast_adapter_dtype=False)
    handle = rmlora.attach(model, METHOD)
    assert {parameter.dtype for pair in handle.pairs for parameter in pair.parameters} == {dtype}
    tiny.train(model, "llama", tiny.adamw(model, eps=1e-4))
    assert handle.step == 4
    assert all(value.isfinite().all() for value in tiny.learnt(model).values())


def test_tied_layers_are_one_pair():
    shared = nn.Linear(4, 4)
    base = nn.Sequential(shared, nn.Tanh(), shared)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
    assert len(rmlora.attach(model, rmlora.rm_lora(directions=1))) == 1
