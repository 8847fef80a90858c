"""Targets `onnx` and `torch-export`: the merged model as a graph gives what the adapter gave."""

from dataclasses import replace
from pathlib import Path

import pytest

from rmlora.verify.exported import merge
from rmlora.verify.onnx_graph import check_onnx
from rmlora.verify.torch_exporting import check_torch_export, compared
from tests.verify.folders import failed, opened, write

SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["gpt2", *(pytest.param(name, marks=SLOW) for name in ("deberta", "vit", "llama"))])
def test_the_graph_of_torch_export_gives_the_same(name: str, tmp_path: Path) -> None:
    checks = check_torch_export(*opened(write(tmp_path, name)))
    assert failed(checks) == []
    assert len(checks) == 3


@pytest.mark.parametrize(
    "name",
    ["bert", *(pytest.param(name, marks=SLOW) for name in ("gpt2", "deberta", "vit", "llama"))],
)
def test_onnxruntime_gives_the_same(name: str, tmp_path: Path) -> None:
    checks = check_onnx(*opened(write(tmp_path, name)))
    assert failed(checks) == []
    assert len(checks) == 3


def test_a_graph_without_the_adapter_would_fail(tmp_path: Path) -> None:
    subject, base = opened(write(tmp_path, "bert"))
    merged = merge(subject, base)
    bare = merge(*opened(write(tmp_path / "bare", "bert", size=0.0)))
    assert merged.effect > 0
    wrong = compared(merged, bare.expected, bare.expected_other, 1e-4)
    assert len(failed(wrong)) == 2
    right = compared(merged, merged.expected, merged.expected_other, 1e-4)
    assert failed(right) == []
    assert len(failed(compared(replace(merged, effect=0.0), bare.expected, merged.expected_other, 1e-4))) == 1


def test_an_exporter_that_gives_up_is_a_verdict_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_args, **_settings):
        raise NotImplementedError("no such operator")

    monkeypatch.setattr("torch.export.export", give_up)
    checks = check_torch_export(*opened(write(tmp_path, "bert")))
    assert failed(checks) == ["torch.export"]
    assert "no such operator" in checks[-1].detail
