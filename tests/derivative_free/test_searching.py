"""The search by itself: what it promises of any loss."""

import math

import numpy as np
import pytest
import torch

from rmlora.derivative_free import search
from rmlora.derivative_free.evolution import Evolution
from rmlora.derivative_free.projections import block_of, project_blocks
from rmlora.errors import ConfigError, DivergedError

SHAPES = {"h.0.q": ((1, 4), (4, 1)), "h.1.q": ((1, 4), (4, 1)), "h.1.k": ((2, 4), (3, 2))}
TARGETS = {name: torch.linspace(-0.1, 0.1, B[0] * A[1]).reshape(B[0], A[1]) for name, (A, B) in SHAPES.items()}
SMALL = {"dimension": 16, "population": 8, "evaluations": 641, "spread": 0.5}


def far(factors):
    return sum(float((B @ A - TARGETS[name]).square().sum()) for name, (A, B) in factors.items())


def test_cma_es_improves_a_quadratic() -> None:
    evolution = Evolution(6, population=12, sigma=1.0, seed=0)
    target, best = np.arange(6.0), math.inf
    for _ in range(150):
        losses = [float(((z - target) ** 2).sum()) for z in evolution.ask()]
        evolution.tell(losses)
        best = min(best, *losses)
    assert best < 1e-6 * float((target**2).sum())


def test_products_of_factors_come_nearer_to_what_is_wanted() -> None:
    found = search(far, SHAPES, **SMALL)
    assert found.start == pytest.approx(far({n: (torch.zeros(a), torch.zeros(b)) for n, (a, b) in SHAPES.items()}))
    assert found.loss < 0.5 * found.start
    assert found.loss == far(found.factors)
    assert found.evaluations == 641
    assert found.loss == min(loss for generation in found.losses for loss in generation)


def test_a_black_box_needs_to_be_called_with_factors_alone() -> None:
    """A service that answers texts, of which nothing but answers is seen."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 4), torch.randn(16, 4)
    labels = (x @ torch.randn(4, 4)).argmax(1)
    calls = []

    def service(lora_A, lora_B):
        calls.append(None)
        with torch.no_grad():
            return (model(x) + x @ (lora_B @ lora_A).T).softmax(-1)

    def loss(factors):
        return float(-service(*factors["h.0.q"])[torch.arange(16), labels].log().mean())

    found = search(loss, {"h.0.q": ((4, 4), (4, 4))}, dimension=32, population=10, evaluations=501, spread=1.0)
    assert found.loss < 0.7 * found.start
    assert len(calls) == 501


def test_a_search_that_is_told_what_came_before_ends_at_the_same_bits() -> None:
    whole = search(far, SHAPES, **SMALL)
    calls = []
    counted = lambda factors: calls.append(None) or far(factors)  # noqa: E731
    again = search(counted, SHAPES, told=whole.losses[:21], **SMALL)
    assert len(calls) == 641 - 1 - 20 * 8
    assert again.losses == whole.losses
    assert all(torch.equal(a, b) for n in SHAPES for a, b in zip(again.factors[n], whole.factors[n], strict=True))


def test_no_global_generator_is_touched_and_the_seed_decides() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, same, other = (search(far, SHAPES, **SMALL, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert first.losses == same.losses != other.losses


def test_what_is_no_number_counts_as_worst() -> None:
    def sometimes(factors):
        value = far(factors)
        return math.nan if factors["h.0.q"][0].sum() > 0 else value

    found = search(sometimes, SHAPES, **SMALL)
    assert math.isfinite(found.loss)
    assert found.loss < found.start
    assert any(math.isnan(loss) for generation in found.losses for loss in generation)


def test_nothing_but_nan_ends_the_search() -> None:
    values = iter([1.0])
    with pytest.raises(DivergedError, match="all 8 candidates"):
        search(lambda factors: next(values, math.nan), SHAPES, **SMALL)


def test_blocks_share_their_numbers_over_their_factors() -> None:
    blocks = project_blocks(SHAPES, 9, 0.1, seed=0)
    assert [(b.block, b.dimension) for b in blocks] == [("h.0", 8), ("h.1", 8)]
    found = blocks[1].factors(torch.ones(8))
    assert {name: tuple(map(tuple, (A.shape, B.shape))) for name, (A, B) in found.items()} == {
        name: SHAPES[name] for name in ("h.1.q", "h.1.k")
    }
    assert (block_of("3.q"), block_of("layers.12.mlp.0.up")) == ("3", "layers.12")
    with pytest.raises(ConfigError, match=r"fewer than the 4 factors of block h\.1"):
        project_blocks(SHAPES, 3, 0.1, seed=0)
    with pytest.raises(ConfigError, match="has 8 numbers, got"):
        blocks[0].factors(torch.zeros(7))


def test_entries_have_the_variance_that_is_said() -> None:
    (block,) = project_blocks({"h.0.q": ((8, 64), (96, 8))}, 4000, 0.5, seed=0)
    A, B = block.factors(torch.randn(4000, generator=torch.Generator().manual_seed(0)))["h.0.q"]
    assert float(A.std()) == pytest.approx(64**-0.5, rel=0.1)
    assert float(B.std()) == pytest.approx(0.5, rel=0.1)


def test_too_few_evaluations_are_refused() -> None:
    with pytest.raises(ConfigError, match="20 evaluations are fewer than one generation of 20"):
        search(far, SHAPES, evaluations=20)
