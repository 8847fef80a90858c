"""The penalty's closed-form gradient, against autograd of the formula; the link around it."""

import pytest
import torch

import rmlora
from rmlora.errors import MethodError
from rmlora.pairs import Factors
from rmlora.schedules import linear
from rmlora.transforms import add_orthogonality
from rmlora.transforms.add_orthogonality import orthogonality_gradient
from tests import toys
from tests.reference import rm_lora as slow


def random_factors(n=3, r=5, d_in=11, d_out=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(n, r, d_in, generator=generator, dtype=torch.float64)
    B = torch.randn(n, d_out, r, generator=generator, dtype=torch.float64)
    return Factors(A.to(dtype), B.to(dtype))


def zeros_like(factors):
    return Factors(torch.zeros_like(factors.A), torch.zeros_like(factors.B))


def autograd_of(penalty, factors):
    gradients = []
    for A, B in zip(factors.A, factors.B, strict=True):
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        gradients.append(torch.autograd.grad(penalty(A, B), (A, B)))
    return Factors(torch.stack([a for a, _ in gradients]), torch.stack([b for _, b in gradients]))


def frobenius(A, B):
    eye = torch.eye(A.shape[0], dtype=A.dtype)
    return torch.linalg.matrix_norm(A @ A.T - eye) + torch.linalg.matrix_norm(B.T @ B - eye)


@pytest.mark.parametrize(
    ("penalty", "options"),
    [
        (slow.penalty_of_paper, {}),
        (frobenius, {"norm": "frobenius"}),
        (slow.off_diagonal_penalty, {"gram": "off_diagonal"}),
    ],
)
@pytest.mark.parametrize("shape", [{}, {"r": 1}, {"r": 9, "d_in": 4, "d_out": 6}])
def test_closed_form_is_autograd_of_the_formula(penalty, options, shape):
    factors = random_factors(**shape)
    closed = add_orthogonality(zeros_like(factors), factors, 1.0, **options)
    expected = autograd_of(penalty, factors)
    torch.testing.assert_close(closed.A, expected.A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(closed.B, expected.B, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"norm": "frobenius"}, {"gram": "off_diagonal"}])
@pytest.mark.parametrize("shape", [{}, {"r": 9, "d_in": 4, "d_out": 6}])
def test_the_gradient_of_some_directions_is_those_rows_of_the_whole(options, shape):
    factors = random_factors(**shape)
    rows = torch.tensor([[0, 4], [1, 3], [2, 3]]), torch.tensor([[4, 1, 0], [0, 1, 2], [3, 2, 4]])
    whole = orthogonality_gradient(factors, 0.3, **options)
    part = orthogonality_gradient(factors, 0.3, rows, **options)
    for row in range(3):
        torch.testing.assert_close(part.A[row], whole.A[row, rows[0][row]], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(part.B[row], whole.B[row][:, rows[1][row]], rtol=1e-12, atol=1e-14)


def test_gradients_are_added_and_inputs_left_alone():
    factors, grads = random_factors(), random_factors(n=3)
    kept = Factors(grads.A.clone(), grads.B.clone())
    added = add_orthogonality(grads, factors, 0.5)
    alone = add_orthogonality(zeros_like(factors), factors, 0.5)
    torch.testing.assert_close(added.A, grads.A + alone.A)
    assert torch.equal(grads.A, kept.A)
    assert torch.equal(grads.B, kept.B)


def test_at_zero_B_the_gradient_of_B_is_exactly_zero():
    factors = random_factors()
    factors = Factors(factors.A, torch.zeros_like(factors.B))
    for norm in ("squared", "frobenius"):
        assert not add_orthogonality(zeros_like(factors), factors, 1.0, norm=norm).B.any()


@pytest.mark.parametrize("norm", ["squared", "frobenius"])
def test_at_orthonormality_the_gradient_is_zero_and_finite(norm):
    orthonormal = Factors(torch.eye(4, 6).double()[None], torch.eye(6, 4).double()[None])
    gradient = add_orthogonality(zeros_like(orthonormal), orthonormal, 1.0, norm=norm)
    assert not gradient.A.any()
    assert not gradient.B.any()


def test_bfloat16_factors_are_multiplied_in_float32():
    factors = random_factors(dtype=torch.bfloat16)
    exact = Factors(factors.A.double(), factors.B.double())
    rounded = add_orthogonality(zeros_like(factors), factors, 1.0)
    expected = add_orthogonality(zeros_like(exact), exact, 1.0)
    assert rounded.A.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.A.double(), expected.A, rtol=2**-8, atol=1e-2)


def test_the_penalty_acts_once_per_step_as_if_it_were_in_the_loss():
    weight = 3e-3
    plain = toys.make_model(dropout=0.0)
    optimizer = toys.make_optimizer(plain)
    pairs = rmlora.attach(plain, rmlora.lora()).pairs
    for step in range(6):
        penalty = sum(slow.penalty_of_paper(*pair.parameters) for pair in pairs)
        (weight * penalty).backward()
        toys.compute_gradients(plain, step)
        optimizer.step()
        optimizer.zero_grad()
    model = toys.make_model(dropout=0.0)
    rmlora.attach(model, rmlora.r_lora(weight))
    toys.train(model, steps=6)
    for name, value in toys.weights(plain).items():
        torch.testing.assert_close(value, toys.weights(model)[name], rtol=1e-9, atol=1e-11)


def test_a_schedule_changes_the_weight_with_the_step():
    constant, ramped, plain = toys.make_model(), toys.make_model(), toys.make_model()
    rmlora.attach(constant, rmlora.r_lora(1e-2))
    rmlora.attach(ramped, rmlora.r_lora(linear(0.0, 1e-2, num_steps=1)))
    for model in (constant, ramped, plain):
        toys.train(model, steps=1)
    toys.assert_equal_weights(toys.weights(ramped), toys.weights(plain))
    toys.train(ramped, steps=1, start=1)
    toys.train(plain, steps=1, start=1)
    assert toys.differ(toys.weights(ramped), toys.weights(plain))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"weight": -1e-3}, r"weight .* -0.001; it must be finite and >= 0"),
        ({"weight": float("nan")}, "must be finite"),
        ({"norm": "spectral"}, r'norm="spectral" is not one of'),
        ({"reduction": "max"}, r'reduction="max" is not one of'),
        ({"gram": "half"}, r'gram="half" is not one of'),
    ],
)
def test_values_out_of_range_are_refused(knobs, message):
    with pytest.raises(MethodError, match=message):
        rmlora.AddOrthogonality(**knobs)
