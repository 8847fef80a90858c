import sys
from pathlib import Path

import pytest

from rmlora.errors import ConfigError
from rmlora.federated import train_federated
from tests.federated.conftest import Configure

LEFT = ("adapter_model.safetensors", "metrics.jsonl", "predictions.safetensors")


@pytest.mark.parametrize("runtime", ["simulation", "network"])
def test_without_flower_the_runtime_is_refused_in_a_line(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(ConfigError, match=rf"runtime={runtime} needs flwr: pip install 'rmlora\[federated\]'"):
        train_federated(configure(federated={"runtime": runtime}))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_simulation_leaves_the_bits_of_one_process(configure: Configure, tmp_path: Path) -> None:
    pytest.importorskip("flwr")
    pytest.importorskip("ray")
    told = {"method": "rm-lora", "lora": {"lora_dropout": 0.1}, "federated": {"fraction": 0.67, "workers": 2}}
    train_federated(configure("local", **told))
    told["federated"] |= {"runtime": "simulation"}
    train_federated(configure("simulated", **told))
    for name in LEFT:
        assert (tmp_path / "simulated" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
