from pathlib import Path

import pytest
import torch

from rmlora.continual.absorbing import absorb_explained, fit_direction, fit_residuals
from rmlora.continual.learnt import Learnt, read_learnt, write_learnt
from rmlora.errors import StateError
from rmlora.pairs import Factors

WIDTHS = (2, 3, 2)
SPANS = ((0, 2), (2, 5), (5, 7))


def random_factors(seed: int, r: int = sum(WIDTHS)) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(r, 6, generator=draw), torch.randn(5, r, generator=draw))


def normalised(factors: Factors, last: bool = True) -> Factors:
    """Every block divided by the norms of its A and B; the last one too, or not."""
    A, B = factors.A.clone(), factors.B.clone()
    for start, end in SPANS if last else SPANS[:-1]:
        A[start:end] /= A[start:end].norm()
        B[:, start:end] /= B[:, start:end].norm()
    return Factors(A, B)


def product(factors: Factors, start: int = 0, end: int = sum(WIDTHS)) -> torch.Tensor:
    return factors.B[:, start:end].double() @ factors.A[start:end].double()


def again(seed: int) -> Factors:
    """Three blocks of which the last is the first once more, six times as large."""
    own = random_factors(seed)
    own.A[5:7], own.B[:, 5:7] = 3 * own.A[:2], 2 * own.B[:, :2]
    return normalised(own, last=False)


def make(**factors: Factors) -> Learnt:
    return Learnt(factors, {"head.weight": torch.ones(2, 3)}, WIDTHS, (0.5, 1.5, 2.0))


def test_the_fit_is_that_of_least_squares_on_whole_matrices() -> None:
    own = random_factors(0)
    first, second, new = (product(normalised(own), *span).flatten() for span in SPANS)
    known = torch.stack([first, second], dim=1)
    expected = torch.linalg.lstsq(known, new.unsqueeze(1)).solution.flatten()
    fit = fit_direction(own, WIDTHS)
    torch.testing.assert_close(fit.coefficients, expected, rtol=1e-5, atol=1e-6)
    assert fit.residual == pytest.approx(float((new - known @ expected).norm()), rel=1e-5)


def test_a_direction_that_is_an_earlier_one_again_leaves_nothing() -> None:
    fit = fit_direction(again(1), WIDTHS)
    assert fit.residual < 1e-6
    assert fit.coefficients.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_absorbing_drops_what_is_explained_and_keeps_the_outputs() -> None:
    before = make(same=again(1), new=normalised(random_factors(2), last=False))
    after, dropped = absorb_explained(before, most=1e-3)
    assert dropped == ("same",)
    assert set(after.absorbed) == {"same"}
    assert not after.factors["same"].A[5:7].any()
    assert torch.equal(after.factors["new"].A, before.factors["new"].A)
    for name in ("same", "new"):
        ends = [product(learnt.folded().factors[name]) for learnt in (before, after)]
        torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


def test_only_the_last_block_is_normalised_when_a_task_ends() -> None:
    own = again(3)
    frozen = make(m=own).frozen().factors["m"]
    assert torch.equal(frozen.A[:5], own.A[:5])
    torch.testing.assert_close(product(frozen, 5, 7), product(normalised(own), 5, 7))


def test_nothing_is_dropped_of_the_first_task() -> None:
    alone = Learnt({"m": random_factors(0, 2)}, {}, (2,), (1.0,))
    assert fit_residuals(alone) == {}
    assert absorb_explained(alone, most=9.0) == (alone, ())


def test_what_is_handed_over_comes_back_bit_for_bit(tmp_path: Path) -> None:
    before, _ = absorb_explained(make(a=again(3), b=random_factors(4)), most=1e-3)
    assert before.absorbed
    write_learnt(tmp_path / "learnt.safetensors", before)
    after = read_learnt(tmp_path / "learnt.safetensors")
    assert (after.widths, after.magnitudes, after.absorbed) == (before.widths, before.magnitudes, before.absorbed)
    assert all(
        torch.equal(after.factors[n].A, f.A) and torch.equal(after.factors[n].B, f.B) for n, f in before.factors.items()
    )
    assert torch.equal(after.rest["head.weight"], before.rest["head.weight"])
    (tmp_path / "learnt.safetensors").write_bytes(b"cut off")
    with pytest.raises(StateError, match="missing or damaged"):
        read_learnt(tmp_path / "learnt.safetensors")
