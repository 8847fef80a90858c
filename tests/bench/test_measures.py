"""The arithmetic of a benchmark, on given seconds, bytes and operators."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rmlora.bench.clock import Spans
from rmlora.bench.memory import running_peak, watch_allocations
from rmlora.bench.operators import Operator, read_operators, shares, sort_of
from rmlora.bench.ratios import hook_shares, ratios, seconds_by_round, spread


def test_ratios_are_taken_within_a_round() -> None:
    # every round is twice as slow as the one before; ratios of medians would not see what ratios by round do
    floor = [1.0, 2.0, 4.0]
    seconds = {"floor": floor, "peft": [2.0, 4.0, 8.0], "rmlora": [1.5, 2.0, 8.0]}
    found = ratios(seconds)
    assert found["peft/floor"] == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 3}
    assert found["rmlora/floor"] == {"median": 1.5, "low": 1.25, "high": 1.75, "n": 3}
    assert found["peft/rmlora"]["median"] == pytest.approx(4 / 3)
    assert set(found) == {"peft/floor", "rmlora/floor", "peft/rmlora"}


def test_rounds_are_matched_by_number_whatever_the_order_of_the_rows() -> None:
    rows = [
        {"round": 1, "contender": "peft", "seconds": 4.0},
        {"round": 0, "contender": "floor", "seconds": 1.0},
        {"round": 0, "contender": "peft", "seconds": 3.0},
        {"round": 1, "contender": "floor", "seconds": 2.0},
    ]
    assert seconds_by_round(rows) == {"peft": [3.0, 4.0], "floor": [1.0, 2.0]}


def test_quartiles_are_numpys() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6]
    found = spread(values)
    assert [found["low"], found["median"], found["high"]] == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))
    assert spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 1}


def test_shares_of_hooks_are_of_their_own_step() -> None:
    rows = [
        {"contender": "peft", "hooks_s": None, "seconds": 1.0},
        {"contender": "rmlora", "hooks_s": 0.5, "seconds": 1.0},
        {"contender": "rmlora", "hooks_s": 0.5, "seconds": 2.0},
    ]
    assert hook_shares(rows) == {"rmlora": {"median": 0.375, "low": 0.3125, "high": 0.4375, "n": 2}}


def test_the_peak_of_known_tensors_is_exact() -> None:
    kept = []

    def work() -> None:
        first = torch.empty(1000, dtype=torch.float64)  # 8,000 bytes
        second = torch.empty(1000, dtype=torch.float64)  # 16,000
        del first  # 8,000
        kept.append(second)
        kept.append(torch.empty(500, dtype=torch.float64))  # 12,000

    with watch_allocations("cpu") as allocated:
        work()
    assert (allocated.peak, allocated.stays) == (16_000, 12_000)


def test_what_backward_needs_is_counted_until_it_has_run() -> None:
    weight = torch.zeros(100, 100, dtype=torch.float64, requires_grad=True)  # there before, so not counted
    inputs = torch.zeros(50, 100, dtype=torch.float64)

    with watch_allocations("cpu") as allocated:
        hidden = (inputs @ weight).sigmoid()  # 40,000 each; the product is released, the sigmoid is saved
        hidden.backward(torch.ones_like(hidden))
        del hidden
        weight.grad = None
    # sigmoid, ones, gradient of the sigmoid, gradient of the weight
    assert allocated.peak == 40_000 + 40_000 + 40_000 + 80_000
    assert allocated.stays == 0


def test_releasing_in_one_watch_what_another_saw_counts_below_zero() -> None:
    with watch_allocations("cpu") as first:
        held = [torch.empty(1000, dtype=torch.float64)]
    with watch_allocations("cpu") as second:
        held.clear()
    assert (first.stays, second.peak, second.stays) == (8000, 0, -8000)


def test_an_empty_record_has_no_peak() -> None:
    assert running_peak([]) == (0, 0)


@pytest.mark.parametrize(
    ("name", "sort"),
    [
        ("aten::mm", "matmul"),
        ("aten::bmm", "matmul"),
        ("aten::baddbmm_", "matmul"),
        ("mkldnn::_linear_pointwise", "matmul"),
        ("aten::mul", "elementwise"),
        ("aten::copy_", "elementwise"),
        ("aten::gelu_backward", "elementwise"),
        ("aten::_foreach_add_", "elementwise"),
        ("aten::_fused_adamw_", "elementwise"),
        ("aten::sum", "rest"),
        ("aten::native_layer_norm", "rest"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "rest"),
        ("MmBackward0", "rest"),
        ("Optimizer.step#AdamW.step", "rest"),
        ("mine::mm", "rest"),
    ],
)
def test_operators_are_told_apart_by_name(name: str, sort: str) -> None:
    assert sort_of(name) == sort


@dataclass
class Event:
    """What the profiler averages, as far as it is read."""

    key: str
    kind: str
    self_cpu_time_total: float
    self_device_time_total: float = 0.0
    count: int = 1

    @property
    def device_type(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.kind)


def test_on_a_gpu_kernels_are_counted_once_and_launching_is_not() -> None:
    events = [
        Event("aten::add", "CPU", 5.0, 10.0),
        Event("aten::mm", "CPU", 9.0, 30.0),
        Event("gemm", "CUDA", 0.0, 30.0),
    ]
    assert read_operators(events, on_gpu=True) == [
        Operator("aten::mm", 1, 30e-6, "matmul"),
        Operator("aten::add", 1, 10e-6, "elementwise"),
    ]
    assert [operator.self_s for operator in read_operators(events, on_gpu=False)] == [9e-6, 5e-6]


def test_shares_add_up_to_one_and_nothing_has_none() -> None:
    found = shares([Operator("a", 1, 1.0, "matmul"), Operator("b", 1, 2.0, "rest"), Operator("c", 1, 1.0, "rest")])
    assert found == {"matmul": 0.25, "elementwise": 0.0, "rest": 0.75}
    assert set(shares([]).values()) == {0.0}


def test_spans_add_up_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 3.0, 10.0, 10.5, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    spans = Spans("cpu")
    double = spans.timed(lambda x: 2 * x)
    assert [double(1), double(2)] == [2, 4]
    assert spans.take() == 2.5
    double(3)
    assert spans.take() == 1.0
    assert spans.take() == 0.0
