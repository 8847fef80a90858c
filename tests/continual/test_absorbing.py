import pytest
import torch

from rmlora.continual.absorbing import absorb_explained, fit_direction, fit_residuals
from rmlora.continual.learnt import Learnt, read_learnt, write_learnt
from rmlora.errors import StateError
from rmlora.pairs import Factors

WIDTHS = (2, 3, 2)


def random_factors(seed, r=sum(WIDTHS)):
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(r, 6, generator=draw), torch.randn(5, r, generator=draw))


def product(factors, start, end):
    return factors.B[:, start:end].double() @ factors.A[start:end].double()


def make(**factors):
    return Learnt(factors, {"head.weight": torch.ones(2, 3)}, WIDTHS, (0.5, 1.5, 2.0)).frozen()


def test_the_fit_is_that_of_least_squares_on_whole_matrices():
    own = make(m=random_factors(0)).factors["m"]
    columns = [product(own, start, end).flatten() for start, end in ((0, 2), (2, 5), (5, 7))]
    columns = [column / 1.0 for column in columns]
    first = Factors(own.A[:2] / own.A[:2].norm(), own.B[:, :2] / own.B[:, :2].norm())
    second = Factors(own.A[2:5] / own.A[2:5].norm(), own.B[:, 2:5] / own.B[:, 2:5].norm())
    known = torch.stack([(f.B.double() @ f.A.double()).flatten() for f in (first, second)], dim=1)
    new = columns[2]  # of norm 1 already
    expected = torch.linalg.lstsq(known, new.unsqueeze(1)).solution.flatten()
    fit = fit_direction(own, WIDTHS)
    torch.testing.assert_close(fit.coefficients, expected)
    assert fit.residual == pytest.approx(float((new - known @ expected).norm()), rel=1e-6)


def test_a_direction_that_is_an_earlier_one_again_leaves_nothing():
    own = random_factors(1)
    own.A[5:7], own.B[:, 5:7] = 3 * own.A[:2], 2 * own.B[:, :2]
    fit = fit_direction(own, WIDTHS)
    assert fit.residual < 1e-6
    assert fit.coefficients.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_absorbing_drops_what_is_explained_and_keeps_the_outputs():
    own = random_factors(1)
    own.A[5:7], own.B[:, 5:7] = 3 * own.A[:2], 2 * own.B[:, :2]
    before = Learnt({"same": own, "new": random_factors(2)}, {}, WIDTHS, (0.5, 1.5, 2.0))
    unit = Learnt(before.frozen().factors, {}, WIDTHS, before.magnitudes)  # earlier blocks are normalised by then
    for name in ("same", "new"):
        first, second = (slice(0, 2), slice(2, 5))
        for part in (first, second):
            A, B = unit.factors[name].A, unit.factors[name].B
            A[part] /= A[part].norm()
            B[:, part] /= B[:, part].norm()
    after, dropped = absorb_explained(unit, most=1e-3)
    assert dropped == ("same",)
    assert set(after.absorbed) == {"same"}
    assert not after.factors["same"].A[5:7].any()
    assert torch.equal(after.factors["new"].A, unit.factors["new"].A)
    for name in ("same", "new"):
        ends = [product(learnt.folded().factors[name], 0, 7) for learnt in (unit, after)]
        torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_nothing_is_dropped_of_the_first_task():
    alone = Learnt({"m": random_factors(0, 2)}, {}, (2,), (1.0,))
    assert fit_residuals(alone) == {}
    assert absorb_explained(alone, most=9.0) == (alone, ())


def test_what_is_handed_over_comes_back_bit_for_bit(tmp_path):
    before, _ = absorb_explained(make(a=random_factors(3), b=random_factors(4)), most=0.3)
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
