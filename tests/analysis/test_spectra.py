"""Spectra by r x r algebra against the full product's own singular values (law 8 of the core)."""

import math

import pytest
import torch

from rmlora.analysis.orthogonality import orthogonality_excess, orthogonality_floor, orthogonality_loss
from rmlora.analysis.spectra import (
    default_tolerance,
    effective_rank,
    numerical_rank,
    singular_values,
    stable_rank,
)
from rmlora.pairs import Factors

SHAPES = [
    (8, 40, 24),
    (8, 24, 40),
    (1, 9, 9),
    (16, 10, 30),
    (16, 30, 10),
    (40, 12, 7),
]  # r, d_in, d_out; r > d too


def random_factors(r, d_in, d_out, n=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(r + 100 * d_in)
    A = torch.randn(n, r, d_in, generator=generator, dtype=torch.float64)
    B = torch.randn(n, d_out, r, generator=generator, dtype=torch.float64)
    return Factors(A.to(dtype), B.to(dtype))


def orthonormal_factors(r, d_in, d_out):
    generator = torch.Generator().manual_seed(r)
    A = torch.linalg.qr(torch.randn(d_in, r, generator=generator, dtype=torch.float64)).Q.T
    B = torch.linalg.qr(torch.randn(d_out, r, generator=generator, dtype=torch.float64)).Q
    return Factors(A.unsqueeze(0), B.unsqueeze(0))


@pytest.mark.parametrize(("r", "d_in", "d_out"), SHAPES)
def test_singular_values_are_those_of_the_full_product(r, d_in, d_out):
    factors = random_factors(r, d_in, d_out)
    scale = torch.tensor([0.25, 1.0, 2.0, 4.0], dtype=torch.float64)
    sigma = singular_values(factors, scale)
    full = torch.linalg.svdvals(scale.view(-1, 1, 1) * factors.B @ factors.A)
    k = min(r, d_in, d_out)
    assert sigma.shape == (4, k)
    torch.testing.assert_close(sigma, full[:, :k], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(full[:, k:], torch.zeros_like(full[:, k:]), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("r", "d_in", "d_out"), SHAPES)
def test_ranks_and_orthogonality_agree_with_the_full_product(r, d_in, d_out):
    factors = random_factors(r, d_in, d_out)
    dW = 0.5 * factors.B @ factors.A
    sigma = singular_values(factors, 0.5)
    frobenius, spectral = torch.linalg.matrix_norm(dW), torch.linalg.matrix_norm(dW, ord=2)
    torch.testing.assert_close(stable_rank(sigma), (frobenius / spectral) ** 2, rtol=1e-10, atol=0)
    tolerance = default_tolerance(d_out, d_in, torch.float64)
    assert numerical_rank(sigma, tolerance).tolist() == torch.linalg.matrix_rank(dW).tolist()
    shares = torch.linalg.svdvals(dW)[:, : min(r, d_in, d_out)]
    shares = shares / shares.sum(-1, keepdim=True)
    torch.testing.assert_close(effective_rank(sigma), (-(shares * shares.log()).sum(-1)).exp(), rtol=1e-10, atol=0)
    expected = torch.linalg.matrix_norm(dW @ dW.mT - torch.eye(d_out, dtype=torch.float64)) ** 2
    torch.testing.assert_close(orthogonality_loss(sigma, d_out), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("r", "floor"), [(32, 68), (64, 36), (80, 20)])
def test_orthonormal_factors_reach_the_floor_of_table_5(r, floor):
    factors = orthonormal_factors(r, d_in=768, d_out=100)
    sigma = singular_values(factors)
    assert orthogonality_floor(r, d_out=100, d_in=768) == floor
    assert orthogonality_loss(sigma, d_out=100).item() == pytest.approx(floor, abs=1e-10)
    assert orthogonality_excess(sigma).item() == pytest.approx(0, abs=1e-10)
    assert numerical_rank(sigma, default_tolerance(100, 768)).item() == r
    assert effective_rank(sigma).item() == pytest.approx(r, abs=1e-9)
    assert stable_rank(sigma).item() == pytest.approx(r, abs=1e-9)


def test_numerical_rank_counts_planted_values_at_each_tolerance():
    planted = torch.tensor([2.0, 1.0, 1e-1, 1e-2, 1e-4, 1e-9], dtype=torch.float64)
    factors = orthonormal_factors(6, d_in=50, d_out=30)
    factors = Factors(factors.A, factors.B * planted)
    sigma = singular_values(factors)
    torch.testing.assert_close(sigma[0], planted, rtol=1e-10, atol=1e-14)
    counted = {tolerance: numerical_rank(sigma, tolerance).item() for tolerance in (0, 1e-6, 1e-3, 1e-2, 0.5)}
    assert counted == {0: 6, 1e-6: 5, 1e-3: 4, 1e-2: 3, 0.5: 1}


@pytest.mark.parametrize("zero", ["A", "B", "scale"])
def test_a_zero_update_has_rank_zero_and_no_nan(zero):
    factors = random_factors(4, 12, 9, n=2)
    if zero == "A":
        factors = Factors(torch.zeros_like(factors.A), factors.B)
    if zero == "B":
        factors = Factors(factors.A, torch.zeros_like(factors.B))
    sigma = singular_values(factors, 0.0 if zero == "scale" else 1.0)
    assert sigma.abs().max() == 0
    assert numerical_rank(sigma, 1e-3).tolist() == [0, 0]
    assert stable_rank(sigma).tolist() == [0, 0]
    assert effective_rank(sigma).tolist() == [0, 0]
    assert orthogonality_excess(sigma).tolist() == [4, 4]
    assert orthogonality_loss(sigma, d_out=9).tolist() == [9, 9]


def test_one_zero_pair_in_a_stack_leaves_the_others_alone():
    factors = random_factors(4, 12, 9, n=3)
    alone = singular_values(factors)
    factors.B[1] = 0
    sigma = singular_values(factors)
    torch.testing.assert_close(sigma[[0, 2]], alone[[0, 2]], rtol=1e-12, atol=0)
    assert math.isfinite(effective_rank(sigma).sum().item())
    assert effective_rank(sigma)[1] == 0


def test_rank_zero_pairs_are_empty_not_an_error():
    sigma = singular_values(Factors(torch.zeros(2, 0, 5), torch.zeros(2, 3, 0)))
    assert sigma.shape == (2, 0)
    for measure in (stable_rank, effective_rank, orthogonality_excess, lambda s: numerical_rank(s, 1e-3)):
        assert measure(sigma).tolist() == [0, 0]
    assert orthogonality_loss(sigma, d_out=3).tolist() == [3, 3]
    assert orthogonality_floor(0, 3, 5) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_are_measured_in_float32(dtype):
    factors = random_factors(8, 40, 24, dtype=dtype)
    sigma = singular_values(factors)
    assert sigma.dtype == torch.float32
    exact = singular_values(Factors(factors.A.double(), factors.B.double()))
    torch.testing.assert_close(sigma.double(), exact, rtol=1e-4, atol=1e-4)
    assert default_tolerance(24, 40, dtype) == default_tolerance(24, 40, torch.float32)


def test_spectra_do_not_depend_on_how_the_factors_share_the_product():
    factors = random_factors(6, 20, 15)
    generator = torch.Generator().manual_seed(1)
    M = torch.randn(6, 6, generator=generator, dtype=torch.float64) + 4 * torch.eye(6, dtype=torch.float64)
    mixed = Factors(M @ factors.A, factors.B @ torch.linalg.inv(M))
    torch.testing.assert_close(singular_values(mixed), singular_values(factors), rtol=1e-9, atol=1e-10)


def test_the_full_product_is_never_formed():
    d = 20_000  # its product would need 3.2 GB
    A, B = torch.randn(1, 2, d), torch.randn(1, d, 2)
    assert torch.isfinite(singular_values(Factors(A, B))).all()
