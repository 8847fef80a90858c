"""Inputs that are computed again in the backward instead of being kept."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from rmlora.kernels.projection import Plan, Projection, project
from rmlora.kernels.recipes import can_remake, remake

TOKENS, WIDTH = 6, 5


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer_norm(h):
    return F.layer_norm(h, (WIDTH,), draw(WIDTH, seed=3, dtype=h.dtype), draw(WIDTH, seed=4, dtype=h.dtype))


def new_gelu(h):
    """The activation of GPT-2, as transformers composes it."""
    return 0.5 * h * (1.0 + torch.tanh(0.8 * (h + 0.04 * torch.pow(h, 3.0))))


MAKERS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "product": lambda h: F.silu(h) * (2.0 * h),
    "new_gelu": new_gelu,
    "layer_norm": layer_norm,
    "layer_norm_without_weights": lambda h: F.layer_norm(h, (WIDTH,)),
}


def projected(make, h, A, B, weight):
    return project(make(h), [Projection(Plan(0.7, "fused", False, h.dtype), weight, None, A, B)])[0]


def leaves():
    A, B, h = draw(2, WIDTH, seed=1), draw(4, 2, seed=2), draw(TOKENS, WIDTH)
    return [tensor.requires_grad_() for tensor in (h, A, B)], draw(4, WIDTH, seed=5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_made_again_is_what_was_made(make, dtype):
    x = make(draw(TOKENS, WIDTH, dtype=dtype).requires_grad_())
    assert can_remake(x)
    torch.testing.assert_close(remake(x.grad_fn), x, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_gradients_of_both_orders_go_through_what_is_made_again(make):
    (h, A, B), weight = leaves()
    assert torch.autograd.gradcheck(lambda h, A, B: projected(make, h, A, B, weight), (h, A, B))
    assert torch.autograd.gradgradcheck(lambda h, A, B: projected(make, h, A, B, weight), (h, A, B))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_input_does_not_outlive_the_forward(make):
    (h, A, B), weight = leaves()
    x = make(h)
    alive = weakref.ref(x)
    y = project(x, [Projection(Plan(0.7, "fused", False, h.dtype), weight, None, A, B)])[0]
    del x
    gc.collect()
    assert alive() is None
    y.sum().backward()
    assert A.grad.any()


@pytest.mark.parametrize(
    ("why", "make"),
    {
        "it is a leaf": lambda h: h,
        "it costs a product": lambda h: h @ draw(WIDTH, WIDTH),
        "a factor is frozen, so the other one is not kept": lambda h: h * draw(WIDTH),
        "its mean is kept in half precision": lambda h: layer_norm(h.to(torch.bfloat16)),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_input_that_cannot_be_made_again_is_kept(why, make):
    assert not can_remake(make(draw(TOKENS, WIDTH).requires_grad_()))


def test_under_checkpointing_nothing_is_made_again_and_gradients_are_the_same():
    found = []
    for is_checkpointed in (False, True):
        (h, A, B), weight = leaves()
        run = (lambda *a: checkpoint(projected, *a, use_reentrant=False)) if is_checkpointed else projected
        run(F.gelu, h, A, B, weight).square().sum().backward()
        found.append((h.grad, A.grad, B.grad))
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=0)


def test_an_input_changed_in_place_afterwards_does_not_change_gradients():
    found = []
    for changes in (False, True):
        (h, A, B), weight = leaves()
        x = F.gelu(h)
        y = project(x, [Projection(Plan(0.7, "fused", False, h.dtype), weight, None, A, B)])[0]
        if changes:
            x.detach().zero_()
        y.sum().backward()
        found.append(A.grad)
    assert torch.equal(*found)
