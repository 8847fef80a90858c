"""Layers that read one input: found in the first step, computed together from the second on, the same when resumed."""

import copy

import pytest
import torch
from torch import nn

import rmlora
from rmlora.siblings import Siblings
from tests import tiny

METHOD = rmlora.rm_lora(weight=1e-2, directions=2)
STEADY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ALL = {"target_modules": ["query", "key", "value", "dense"], "exclude_modules": ".*pooler.*"}


def start(fast=True, **changes):
    model = tiny.adapted("bert", base=STEADY, dtype=torch.float64, **(ALL | changes))
    return model, rmlora.attach(model, METHOD, fast=fast)


def names(handle):
    groups = handle._binding.siblings.groups or {}
    return sorted({tuple(pair.name.rpartition(".")[2] for pair in group) for group in groups.values()})


def test_query_key_and_value_are_found_in_the_first_step():
    model, handle = start()
    assert handle._binding.siblings.groups is None
    tiny.train(model, "bert", tiny.adamw(model), range(1))
    assert names(handle) == [("query", "key", "value")]
    assert len(handle._binding.siblings.groups) == 6


def test_gate_and_up_are_siblings_too_in_llama():
    model = tiny.adapted("llama", dtype=torch.float64)
    handle = rmlora.attach(model, METHOD)
    tiny.train(model, "llama", tiny.adamw(model), range(1))
    assert names(handle) == [("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj")]


def test_training_together_is_training_by_the_reference_path():
    found = []
    for fast in (True, False):
        model, _ = start(fast)
        tiny.train(model, "bert", torch.optim.SGD(tiny.trained(model), lr=0.1), range(4))
        found.append(tiny.learnt(model))
    assert tiny.distance(*found) < 1e-12


def test_siblings_share_one_node_of_the_graph():
    model, handle = start()
    tiny.train(model, "bert", tiny.adamw(model), range(1))
    x = torch.randn(2, 4, 16, dtype=torch.float64)
    query, key, value = (pair.layer for pair in handle.pairs[:3])
    nodes = {type(y.grad_fn).__name__: y.grad_fn for y in (query(x), key(x), value(x))}
    assert len({id(node) for node in nodes.values()}) == 1
    assert not handle._binding.siblings._ready


def test_a_run_that_is_resumed_ends_at_the_bits_of_one_that_never_stopped():
    straight, _ = start()
    tiny.train(straight, "bert", tiny.adamw(straight), range(5))
    first, _ = start()
    optimizer = tiny.adamw(first)
    tiny.train(first, "bert", optimizer, range(2))
    second, handle = start()
    second.load_state_dict(first.state_dict())
    resumed = tiny.adamw(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    tiny.train(second, "bert", resumed, range(2, 5))
    assert names(handle) == [("query", "key", "value")]
    assert all(torch.equal(a, b) for a, b in zip(tiny.trained(straight), tiny.trained(second), strict=True))


class Reads(nn.Module):
    """Three layers that read what the test decides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))


def attached():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(Reads(), LoraConfig(r=2, target_modules=["a", "b", "c"], init_lora_weights=False)).train()
    handle = rmlora.attach(model, METHOD)
    inner = model.base_model.model
    x = torch.randn(3, 4)
    (inner.a(x) + inner.b(x) + inner.c(x)).sum().backward()
    torch.optim.SGD(tiny.trained(model), lr=0.1).step()
    model.zero_grad()
    assert names(handle) == [("a", "b", "c")]
    return inner, handle


def test_an_input_that_changed_in_place_is_read_anew():
    inner, _ = attached()
    x = torch.randn(3, 4)
    inner.a(x)
    x.mul_(2)
    together = inner.b(x)
    assert torch.equal(together, inner.b(x.clone()))


def test_siblings_called_with_another_input_or_not_at_all_do_no_harm():
    inner, handle = attached()
    x, other = torch.randn(3, 4), torch.randn(3, 4)
    y = inner.a(x) + inner.c(other)
    expected = [inner.a(x.clone()), inner.c(other.clone())]
    torch.testing.assert_close(y, sum(expected))
    y.sum().backward()
    assert handle.pairs[1].parameters[0].grad is None or not handle.pairs[1].parameters[0].grad.any()
    assert handle._binding.siblings._ready
    optimizer = torch.optim.SGD([p for pair in handle.pairs for p in pair.parameters], lr=0.1)
    optimizer.step()
    assert not handle._binding.siblings._ready, "nothing keeps a graph alive across a step"


def test_a_layer_that_reads_several_inputs_in_a_pass_has_no_siblings():
    siblings, pairs = Siblings(), attached()[1].pairs
    one, two = torch.ones(1), torch.ones(1)
    for pair, x in ((pairs[0], one), (pairs[1], one), (pairs[0], two), (pairs[2], two)):
        siblings.observe(pair, x)
    siblings.settle(pairs)
    assert siblings.groups == {}


def test_what_is_written_is_read():
    handle = attached()[1]
    written = handle._binding.siblings
    read = Siblings()
    read.decode(written.number, handle.pairs)
    assert read.groups == written.groups
    read.decode(0b10, handle.pairs)
    assert set(read.groups) == set(handle.pairs[1:])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_trains_to_the_same_weights(use_reentrant):
    found = []
    for checkpointed in (False, True):
        model, handle = start()
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        tiny.train(model, "bert", torch.optim.SGD(tiny.trained(model), lr=0.1), range(4))
        assert names(handle) == [("query", "key", "value")]
        assert not handle._binding.siblings._ready
        found.append(tiny.learnt(model))
    assert tiny.distance(*found) < 1e-12


def test_a_deep_copy_keeps_its_own_siblings():
    model, handle = start()
    tiny.train(model, "bert", tiny.adamw(model), range(2))
    twin = copy.deepcopy(model)
    (own,) = rmlora.attached(twin)
    assert names(own) == names(handle)
    assert not set(own.pairs) & set(handle.pairs)
    for each in (model, twin):
        tiny.train(each, "bert", torch.optim.SGD(tiny.trained(each), lr=0.1), range(2, 4))
    assert tiny.distance(tiny.learnt(model), tiny.learnt(twin)) == 0.0
