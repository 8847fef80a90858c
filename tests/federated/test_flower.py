import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rmlora.errors import ConfigError
from rmlora.federated import train_federated
from tests import runs
from tests.federated.conftest import Configure

LEFT = ("adapter_model.safetensors", "metrics.jsonl", "predictions.safetensors")
Start = Callable[..., subprocess.Popen[bytes]]


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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start one of Flower's programs, silent and without installing anything; all end with the test."""
    started: list[subprocess.Popen[bytes]] = []
    silent = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(tmp_path / "home")}
    root = Path(__file__).resolve().parents[2]
    programs = Path(sys.executable).parent
    path = {
        "OMP_NUM_THREADS": "1",  # as this process has (conftest.py): with more, sums of the server app round otherwise
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{root / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }

    def begin(program: str, *words: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{program}-{len(started)}.log").open("wb") as log:
            told = {"env": os.environ | silent | path, "stdout": log, "stderr": log}
            process = subprocess.Popen([str(programs / program), "--insecure", *words], start_new_session=True, **told)
        started.append(process)
        return process

    yield begin
    for process in started:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and the processes it started, with no chance to say goodbye."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"nobody listens on port {port}")


def network(start: Start, count: int) -> tuple[int, list[Any]]:
    """A SuperLink and so many SuperNodes of this machine: its port, and the nodes' processes."""
    port, ports = free_port(), [free_port() for _ in range(count)]
    start("flower-superlink", "--port", str(port), "--disable-runtime-dependency-installation")
    wait_for(port)
    nodes = []
    for i, own in enumerate(ports):
        where = ("--superlink", f"127.0.0.1:{port}", "--port", str(own))
        nodes.append(start("flower-supernode", *where, "--node-config", f"partition-id={i}"))
    for own in ports:
        wait_for(own)
    return port, nodes


@pytest.mark.slow
def test_over_a_network_nodes_that_are_missing_or_killed_are_dropped_and_the_others_send_the_same_bits(
    configure: Configure, tmp_path: Path, faulty: dict[tuple[int, int], str], start: Start
) -> None:
    pytest.importorskip("flwr")
    faulty.update({(1, 2): "dies", (2, 1): "dies", (2, 2): "dies"})
    told = {"method": "rm-lora", "federated": {"rounds": 2}}
    train_federated(configure("local", **told))
    port, nodes = network(start, 2)

    def kill_after_the_first_round() -> None:
        metrics = tmp_path / "networked" / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text()):
            time.sleep(0.1)
        end(nodes[1])

    threading.Thread(target=kill_after_the_first_round, daemon=True).start()
    told["federated"] |= {"runtime": "network", "superlink": f"127.0.0.1:{port}", "timeout": 150}
    train_federated(configure("networked", **told))
    local, networked = (runs.rows(tmp_path / name) for name in ("local", "networked"))
    assert [row["clients"] for row in networked] == [[0, 1], [0]]
    assert [one["client"] for row in networked for one in row["dropped"]] == [2, 1, 2]
    assert "not connected" in networked[0]["dropped"][0]["why"]
    for row in (*local, *networked):
        row.pop("dropped")
    assert local == networked
    assert runs.equal(runs.weights(tmp_path / "local"), runs.weights(tmp_path / "networked"))


def test_an_address_at_which_no_superlink_answers_is_refused_before_anything_is_written(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ModuleType("flwr")
    found.__spec__ = ModuleSpec("flwr", None)
    monkeypatch.setitem(sys.modules, "flwr", found)
    told = {"runtime": "network", "superlink": f"127.0.0.1:{free_port()}"}
    with pytest.raises(ConfigError, match=r"no SuperLink answers at .*Connection refused; start one"):
        train_federated(configure(federated=told))
    assert not (tmp_path / "out").exists()
