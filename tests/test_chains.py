"""Chains, `only`, links that own the update, and what attaching alone cannot give."""

import pytest
import torch

import rmlora
from rmlora.errors import AttachError, MethodError
from tests import toys
from tests.dummies import DescendBySign, GateDirections, NeedsReplicas


def test_a_link_that_owns_the_update_discards_the_optimizers_own():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, DescendBySign())
    pair = handle.pairs[0]
    A, B = pair.parameters
    others = [p for p in model.parameters() if p.requires_grad and p is not A]
    optimizer = torch.optim.AdamW([{"params": [A], "lr": 0.25}, {"params": others, "lr": 0.5}], weight_decay=0.3)
    start = A.detach().clone(), B.detach().clone()
    toys.compute_gradients(model, 0)
    signs = A.grad.sign(), B.grad.sign()
    optimizer.step()
    assert torch.equal(A, start[0] - 0.25 * signs[0])
    assert torch.equal(B, start[1] - 0.5 * signs[1])


def test_only_one_link_may_own_the_update():
    with pytest.raises(MethodError, match="only one link may compute the step itself"):
        rmlora.chain(DescendBySign(), DescendBySign())
    with pytest.raises(MethodError, match="only\\(\\) cannot hold a link that computes the step itself"):
        rmlora.only("0", DescendBySign())


def test_needs_are_refused_unless_provided():
    with pytest.raises(AttachError, match=r"needs a replicated batch, which attaching alone cannot give"):
        rmlora.attach(toys.make_model(), NeedsReplicas())
    assert len(rmlora.attach(toys.make_model(), NeedsReplicas(), provides={"a replicated batch"})) == 2


def test_only_acts_on_the_modules_it_names():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.only(r"^2$", rmlora.rm_lora(1e-2, 3, policy="state")))
    kept = handle.kept()
    assert len(kept["0"][0]) == 8
    assert len(kept["2"][0]) == 3
    plain = toys.make_model()
    toys.train(plain, steps=1)
    toys.train(model, steps=1)
    name = "base_model.model.{}.lora_B.default.weight"
    assert torch.equal(toys.weights(plain)[name.format(0)], toys.weights(model)[name.format(0)])
    assert not torch.equal(toys.weights(plain)[name.format(2)], toys.weights(model)[name.format(2)])


def test_only_carries_state_and_forward_hooks():
    model = toys.make_model(dropout=0.0)
    handle = rmlora.attach(model, rmlora.only(r"^2$", GateDirections()))
    toys.train(model, steps=3)
    gated = toys.outputs(model)
    folded = handle.fold()
    assert torch.equal(folded["0"][0], handle.pairs[0].A)
    assert not torch.equal(folded["2"][0], handle.pairs[1].A)
    handle.detach()
    torch.testing.assert_close(toys.outputs(model), gated, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rmlora.only("(", rmlora.lora()), "not a regular expression"),
        (lambda: rmlora.chain("rm_lora"), "chain takes transforms, got str"),
        (lambda: rmlora.attach(toys.make_model(), rmlora.only("nothing", rmlora.gm_lora())), "matches none of the"),
    ],
)
def test_wrong_chains_are_refused(make, message):
    with pytest.raises(MethodError, match=message):
        make()


def test_chains_flatten():
    assert rmlora.chain(rmlora.r_lora(), rmlora.gm_lora()) == rmlora.rm_lora()
