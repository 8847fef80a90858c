"""Gram residuals and the penalty of Eq. 10."""

import torch

from rmlora.analysis.gram import gram_columns, gram_rows, penalty, residual
from rmlora.pairs import Factors


def random_factors(n=3, r=5, d_in=11, d_out=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, r, d_in, generator=generator, dtype=torch.float64)
    B = torch.randn(n, d_out, r, generator=generator, dtype=torch.float64)
    return Factors(A.to(dtype), B.to(dtype))


def test_residual_is_the_frobenius_distance_from_the_identity_pair_by_pair():
    factors = random_factors()
    eye = torch.eye(5, dtype=torch.float64)
    for i in range(3):
        A, B = factors.A[i], factors.B[i]
        expected_A = torch.linalg.matrix_norm(A @ A.T - eye) ** 2
        expected_B = torch.linalg.matrix_norm(B.T @ B - eye) ** 2
        torch.testing.assert_close(residual(gram_rows(factors.A)).total[i], expected_A)
        torch.testing.assert_close(residual(gram_columns(factors.B)).total[i], expected_B)
        torch.testing.assert_close(penalty(factors)[i], expected_A + expected_B)


def test_norm_sees_length_only_and_overlap_sees_angle_only():
    long_but_orthogonal = residual(gram_rows(3 * torch.eye(4).unsqueeze(0)))
    assert long_but_orthogonal.overlap.item() == 0
    assert long_but_orthogonal.norm.item() == 4 * 8**2
    unit_but_equal = residual(gram_rows(torch.tensor([[[0.6, 0.8], [0.6, 0.8]]])))
    torch.testing.assert_close(unit_but_equal.norm, torch.zeros(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(unit_but_equal.overlap, torch.full((1,), 2.0))


def test_zero_b_costs_r_and_has_no_gradient():
    A, B = random_factors().A, torch.zeros(3, 7, 5, dtype=torch.float64, requires_grad=True)
    assert residual(gram_columns(B)).total.tolist() == [5, 5, 5]
    penalty(Factors(A, B)).sum().backward()
    assert B.grad is not None
    assert B.grad.abs().max() == 0


def test_gradient_of_the_penalty_is_the_closed_form():
    factors = random_factors(seed=3)
    A, B = factors.A.requires_grad_(), factors.B.requires_grad_()
    penalty(Factors(A, B)).sum().backward()
    eye = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(A.grad, 4 * (A @ A.mT - eye) @ A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(B.grad, 4 * B @ (B.mT @ B - eye), rtol=1e-12, atol=1e-12)


def test_permuting_the_rank_changes_nothing():
    factors = random_factors(seed=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = Factors(factors.A[:, order], factors.B[:, :, order])
    torch.testing.assert_close(penalty(permuted), penalty(factors))


def test_bf16_is_measured_in_float32():
    factors = random_factors(dtype=torch.bfloat16)
    exact = Factors(factors.A.double(), factors.B.double())
    assert penalty(factors).dtype == torch.float32
    torch.testing.assert_close(penalty(factors).double(), penalty(exact), rtol=1e-5, atol=0)
