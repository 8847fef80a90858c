"""The gate of a block and the balance loss, each against a slow transcription of its formula."""

import math

import pytest
import torch

from rmlora.errors import MethodError
from rmlora.experts import Gate, balance_loss

N, B, L, D = 3, 4, 5, 6


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gate(seed: int = 1) -> Gate:
    made = Gate(N, D).double()
    made.weight.data = drawn(N * D, N, seed=seed)
    made.log_temperature.data = torch.tensor(math.log(0.7), dtype=torch.float64)
    return made


def transcribed(made: Gate, outputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """softmax(mean over tokens of norm(concat E_i) times e, over tau), input by input and token by token."""
    rows = []
    for b in range(B):
        eps = torch.zeros(N, dtype=torch.float64)
        for token in range(L):
            if mask[b, token]:
                joined = torch.cat([outputs[i, b, token] for i in range(N)])
                normal = (joined - joined.mean()) / joined.std(unbiased=False)
                eps += made.weight.data.T @ normal
        powers = [math.exp(float(e / mask[b].sum()) / 0.7) for e in eps]
        rows.append([power / sum(powers) for power in powers])
    return torch.tensor(rows, dtype=torch.float64)


def test_the_gate_is_its_formula_token_by_token() -> None:
    made, outputs = gate(), drawn(N, B, L, D)
    mask = torch.tensor([[1] * L, [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 1, 0]])
    assert (made(outputs, mask) - transcribed(made, outputs, mask)).abs().max() < 1e-10
    everything = torch.ones(B, L)
    assert (made(outputs) - transcribed(made, outputs, everything)).abs().max() < 1e-10


def test_a_new_gate_is_uniform_whatever_it_reads() -> None:
    for temperature in (0.1, 1.0, 10.0):
        found = Gate(N, D, temperature).double()(100 * drawn(N, B, L, D))
        assert torch.equal(found, torch.full((B, N), 1 / N, dtype=torch.float64))
    assert float(Gate(N, D, 2.5).temperature.detach()) == pytest.approx(2.5)


def test_padding_does_not_move_the_gate() -> None:
    made, outputs = gate(), drawn(N, B, L, D)
    mask = torch.ones(B, L)
    mask[:, 3:] = 0
    other = outputs.clone()
    other[:, :, 3:] = drawn(N, B, 2, D, seed=9)
    assert torch.equal(made(outputs, mask), made(other, mask))
    assert (made(outputs, mask) - made(outputs[:, :, :3])).abs().max() < 1e-12
    assert not torch.allclose(made(outputs), made(other))


def test_masked_experts_get_nothing_and_the_rest_share_by_their_old_proportions() -> None:
    made, outputs = gate(), drawn(N, B, L, D)
    keep = torch.tensor([True, False, True])
    whole, left = made(outputs), made(outputs, keep=keep)
    assert torch.equal(left[:, 1], torch.zeros(B, dtype=torch.float64))
    expected = whole[:, keep] / whole[:, keep].sum(-1, keepdim=True)
    assert (left[:, keep] - expected).abs().max() < 1e-12


def test_experts_that_do_nothing_at_all_give_a_uniform_gate() -> None:
    found = gate()(torch.zeros(N, B, L, D, dtype=torch.float64))
    assert torch.equal(found, torch.full((B, N), 1 / N, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_above_zero(temperature: float) -> None:
    with pytest.raises(MethodError, match="temperature of a gate must be above 0"):
        Gate(N, D, temperature)


def test_the_balance_loss_is_its_formula_input_by_input() -> None:
    blocks = [drawn(B, N, seed=s).softmax(-1) for s in range(4)]
    total = 0.0
    for b in range(B):
        product = 1.0
        for i in range(N):
            product *= sum(float(block[b, i]) for block in blocks) / len(blocks)
        total += -math.log(product)
    assert float(balance_loss(blocks)) == pytest.approx(total / B, abs=1e-12)


def test_the_balance_loss_is_smallest_where_experts_share_equally() -> None:
    even = [torch.full((B, N), 1 / N, dtype=torch.float64)]
    assert float(balance_loss(even)) == pytest.approx(N * math.log(N))
    for seed in range(5):
        assert float(balance_loss([drawn(B, N, seed=seed).softmax(-1)])) > N * math.log(N)
    masked = torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64)
    assert float(balance_loss([masked])) == pytest.approx(2 * math.log(2))
