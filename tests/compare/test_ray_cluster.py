"""A Ray cluster of several nodes, which are processes of this machine; one of them is lost on the way."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rmlora.compare.ray_backend import Cluster, check_fit
from rmlora.compare.rows import without_times
from rmlora.compare.running import compare
from rmlora.errors import ConfigError
from tests.compare import studies

SLOW = {"epochs": 12, "batch_size": 2, "train_eval_examples": 8}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing, and two nodes of one core and one made-up GPU each."""
    made = pytest.importorskip("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1, num_gpus=1)
    made.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_node_that_is_lost_takes_no_cell_with_it(
    cluster: Any, bert: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    alone = compare(studies.study(bert, files, tmp_path / "alone", training=SLOW), workers=0)
    told = studies.settings(bert, files, tmp_path / "ray", training=SLOW)
    study = studies.started(studies.written(tmp_path / "ray.yaml", told), workers=2, backend="ray")
    ready = lambda: study.poll() is not None or len(studies.holders(tmp_path / "ray")) == 2  # noqa: E731
    studies.wait_for(ready)
    owners = studies.holders(tmp_path / "ray")
    assert len(owners) == 2, study.communicate()[0].decode()
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    studies.wait_for(lambda: sum(owner.is_running for owner in owners.values()) == 1)
    said = study.communicate()[0].decode()
    assert study.returncode == 0, said
    assert without_times(studies.rows(tmp_path / "ray")) == without_times(alone)
    begun = [path.read_text().count(", seed ") for path in (tmp_path / "ray").glob("cells/*/log.txt")]
    assert max(begun) >= 2  # the cell that was lost was begun once more
    assert not list((tmp_path / "ray").glob("cells/*/claim.json"))
    assert not list((tmp_path / "ray").glob(".probe-*"))


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head that runs nothing, and a node of two cores and one made-up GPU."""
    made = pytest.importorskip("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.add_node(num_cpus=2, num_gpus=1)
    made.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield
    made.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "at_once"), [(0.5, 2), (1, 1)])
def test_cells_share_a_gpu_if_each_asks_for_a_part_of_it(
    one_gpu: None, bert: Path, files: tuple[Path, Path], tmp_path: Path, gpus: float, at_once: int
) -> None:
    told = studies.settings(bert, files, tmp_path / "ray", training=SLOW)
    study = studies.started(studies.written(tmp_path / "ray.yaml", told), workers=2, backend="ray", gpus=gpus)
    most = 0
    while study.poll() is None:
        most = max(most, len(studies.holders(tmp_path / "ray")))
        time.sleep(0.02)
    assert study.returncode == 0, study.communicate()[0].decode()
    assert most == at_once
    assert len(studies.rows(tmp_path / "ray")) == 4


def test_how_many_cells_fit_depends_on_each_machine_alone() -> None:
    cluster = Cluster(None, cpus=(0.0, 4.0, 3.0), gpus=(0.0, 2.0, 1.0))
    assert cluster.workers(threads=1, gpus=0) == 7
    assert cluster.workers(threads=2, gpus=0) == 3
    assert cluster.workers(threads=1, gpus=0.5) == 4 + 2
    assert cluster.workers(threads=1, gpus=1 / 3) == 4 + 3
    assert cluster.workers(threads=1, gpus=2) == 1
    check_fit(cluster, 1, 2)
    for threads, gpus in ((1, 3), (5, 0)):
        with pytest.raises(ConfigError, match=f"has {threads} CPUs and {gpus} GPUs for a cell .the largest: 4 and 2."):
            check_fit(cluster, threads, gpus)
