"""Clipping in the chain, against torch's own clipping."""

import pytest
import torch

import rmlora
from rmlora.errors import MethodError
from rmlora.pairs import Factors
from rmlora.transforms import clip_by_global_norm
from tests import toys


def random_stacks():
    generator = torch.Generator().manual_seed(2)
    return [
        Factors(torch.randn(2, 3, 4, generator=generator), torch.randn(2, 5, 3, generator=generator)),
        Factors(torch.randn(1, 3, 6, generator=generator), torch.randn(1, 2, 3, generator=generator)),
    ]


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e6])
def test_it_is_torchs_clipping_over_all_stacks(max_norm):
    stacks = random_stacks()
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for s in stacks for g in (s.A, s.B)]
    for parameter, gradient in zip(parameters, [g for s in stacks for g in (s.A, s.B)], strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    clipped = [g for s in clip_by_global_norm(stacks, max_norm) for g in (s.A, s.B)]
    for parameter, gradient in zip(parameters, clipped, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_in_the_chain_it_clips_the_penalty_too():
    model = toys.make_model()
    handle = rmlora.attach(model, rmlora.chain(rmlora.AddOrthogonality(10.0), rmlora.ClipByGlobalNorm(0.25)))
    seen = {}

    def look(optimizer, args, kwargs):
        gradients = [p.grad for pair in handle.pairs for p in pair.parameters]
        seen["norm"] = torch.stack([g.norm() for g in gradients]).norm().item()

    optimizer = toys.make_optimizer(model)
    optimizer.register_step_pre_hook(look)  # an optimizer's own hooks run after the global ones
    toys.train(model, optimizer, steps=1)
    assert seen["norm"] == pytest.approx(0.25, rel=1e-4)


def test_infinity_skips_the_link():
    assert rmlora.ClipByGlobalNorm(float("inf")).hooks() == frozenset()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_a_norm_that_is_not_positive_is_refused(max_norm):
    with pytest.raises(MethodError, match="must be > 0"):
        rmlora.ClipByGlobalNorm(max_norm)
