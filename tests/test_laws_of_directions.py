"""Laws about directions as such: their order means nothing, and what is folded is what is computed."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import rmlora
from rmlora import draws
from rmlora.leaves import copy_of
from rmlora.methods import METHODS
from tests import toys
from tests.test_laws import build, make_model, methods_under

R = 5  # no other dimension of the toys has this size, so it marks directions wherever they stand


def permuted(tensor, order):
    """The tensor with every dimension of R entries in the new order; the first counts modules."""
    for dim in range(1, tensor.dim()):
        tensor = tensor.index_select(dim, order) if tensor.shape[dim] == R else tensor
    return tensor


def permute_start(first, second, order):
    """Give the second model the first's adapter and state, with directions in the new order."""
    for pair, other in zip(first.pairs, second.pairs, strict=True):
        tensors = [*zip(pair.parameters, other.parameters, strict=True)]
        tensors += [] if pair.E is None else [(pair.E, other.E)]
        for value, target in tensors:
            target.detach().copy_(permuted(value.detach()[None], order)[0])
    state = first._binding.state
    second._binding.state = tuple(
        {key: copy_of(permuted(value.detach(), order).requires_grad_(value.requires_grad)) for key, value in of.items()}
        for of in state
    )


@pytest.mark.parametrize("name", methods_under("permutation"))
def test_law_permutation(name, monkeypatch):
    order = torch.tensor([3, 0, 4, 1, 2])
    method = build(name)
    first, second = (
        make_model(name, r=R, **({"target_r": 3} if METHODS[name].adapts == "ADALORA" else {})) for _ in "ab"
    )
    handle = rmlora.attach(first, method, fast=False, provides=method.needs)
    started = copy.deepcopy(first)
    toys.train(first, steps=8)

    # What is drawn by the index of a direction is drawn for the direction that now stands there.
    scores = draws.hash_scores
    monkeypatch.setattr(
        draws, "hash_scores", lambda keys, num, *at: scores(keys, num, *at)[:, order if num == R else slice(None)]
    )
    other = rmlora.attach(second, method, fast=False, provides=method.needs)
    permute_start(rmlora.attached(started)[0], other, order)
    toys.train(second, steps=8)
    assert handle.step == other.step == 8
    for pair, moved in zip(handle.pairs, other.pairs, strict=True):
        torch.testing.assert_close(moved.A, pair.A[order], rtol=0, atol=1e-8)
        torch.testing.assert_close(moved.B, pair.B[:, order], rtol=0, atol=1e-8)
        assert (moved.A - pair.A).abs().max() > 1e-3, "the order is another indeed"
    torch.testing.assert_close(toys.outputs(second), toys.outputs(first), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", methods_under("fold"))
def test_law_fold(name):
    model = make_model(name)
    method = build(name)
    handle = rmlora.attach(model, method, provides=method.needs)
    toys.train(model, steps=6)
    folded = handle.fold()
    scales = {pair.name: pair.scale for pair in handle.pairs}
    config = LoraConfig(
        target_modules=["0", "2"],
        modules_to_save=["4"],
        rank_pattern={name: len(A) for name, (A, _) in folded.items()},
        alpha_pattern={name: len(A) * scales[name] for name, (A, _) in folded.items()},
    )
    plain = get_peft_model(toys.make_base(), config, autocast_adapter_dtype=False).double()
    head = model.base_model.model[4].modules_to_save["default"].state_dict()
    plain.base_model.model[4].modules_to_save["default"].load_state_dict(head)
    for module, (A, B) in folded.items():
        layer = plain.base_model.model[int(module)]
        layer.lora_A["default"].load_state_dict({"weight": A})
        layer.lora_B["default"].load_state_dict({"weight": B})
        assert B.any()
    torch.testing.assert_close(toys.outputs(plain), toys.outputs(model), rtol=0, atol=1e-12)
