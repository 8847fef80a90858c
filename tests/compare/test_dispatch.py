"""The coordinator of jobs, with machines that do as a test tells them."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from rmlora.compare import claims, dispatch
from rmlora.compare.agenda import Agenda
from rmlora.compare.dispatch import Deaths, Dispatcher
from rmlora.compare.probe import Probe, has_answered, leave_probe, look_for, remove_probe
from rmlora.compare.remote import Ended, Order, run_order
from rmlora.compare.store import Store
from rmlora.compare.study import Study
from rmlora.errors import ConfigError, RmloraError
from rmlora.files import write_text
from rmlora.run.faults import DiskFullError
from tests.compare import studies

Fate = Callable[[str, int], Ended | BaseException | None]


@dataclass
class Machines:
    """Run orders in this process, unless a fate says otherwise of a cell's job, by its number."""

    store: Store
    fate: Fate = lambda cell, number: None
    orders: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    cancelled: list[str] = field(default_factory=list)
    is_closed: bool = False

    def submit(self, cell: str, job: str) -> str:
        self.orders[job] = cell
        self.asked[cell] += 1
        return job

    def ended(self, jobs: Sequence[str], seconds: float) -> list[tuple[str, Ended]]:
        return [(job, self._run(self.orders[job], job)) for job in jobs[:1]]

    def cancel(self, jobs: Sequence[str]) -> None:
        self.cancelled += jobs

    def close(self) -> None:
        self.is_closed = True

    def _run(self, cell: str, job: str) -> Ended:
        fate = self.fate(cell, self.asked[cell])
        if isinstance(fate, BaseException):
            raise fate
        if fate is not None:
            return fate
        return run_order(Order(str(self.store.path), os.getcwd(), cell, torch.get_num_threads(), job))


def claimed(store: Store, cell: str, job: str) -> None:
    """Leave the claim of a job of another machine."""
    path = store.path / "cells" / cell / "claim.json"
    write_text(path, f'{{"host": "elsewhere", "pid": 1, "started": 1, "job": "{job}"}}')


@pytest.fixture
def told(bert: Path, files: tuple[Path, Path], tmp_path: Path) -> Study:
    """A study of two cells, written into its folder as `compare` does."""
    settings = studies.settings(bert, files, tmp_path / "out", methods=["lora"])
    studies.written(tmp_path / "out" / "study.yaml", settings)
    return studies.study(bert, files, tmp_path / "out", methods=["lora"])


def coordinator(study: Study, machines: Machines, retries: int = 2) -> Dispatcher:
    return Dispatcher(study, machines.store, machines, workers=2, retries=retries)


def nothing(agenda: Agenda) -> None:
    pass


def test_a_cell_that_kills_its_jobs_is_given_up_and_stops_nobody(told: Study) -> None:
    store = Store(told.folder)
    bad, good = (cell.id for cell in studies.cells(told))

    def fate(cell: str, number: int) -> Ended | None:
        if cell != bad:
            return None
        claimed(store, cell, machines.job)
        return Ended(had_cell=False, died="WorkerCrashedError: out of memory")

    class Marking(Machines):
        job = ""

        def _run(self, cell: str, job: str) -> Ended:
            self.job = job
            return super()._run(cell, job)

    machines = Marking(store, fate)
    coordinator(told, machines).run(nothing)
    assert machines.asked == {bad: 3, good: 1}
    agenda = studies.agenda(told)
    assert (agenda.states[bad], agenda.states[good]) == ("failed", "done")
    reason = store.reason(agenda.cells[0])
    assert reason == "its job died 3 times without an epoch finished in between: WorkerCrashedError: out of memory"
    assert not (store.path / "cells" / bad / "claim.json").exists()
    assert machines.is_closed


def test_a_job_that_died_is_asked_for_again_and_nothing_is_lost(told: Study, finished: Path) -> None:
    stopped = Ended(died="it was told to stop (SIGUSR2)")
    machines = Machines(Store(told.folder), lambda cell, number: stopped if number == 1 else None)
    coordinator(told, machines).run(nothing)
    assert set(machines.asked.values()) == {2}
    agenda = studies.agenda(told)
    assert {agenda.states[cell.id] for cell in agenda.cells} == {"done"}
    for cell in agenda.cells:
        whole = finished / "cells" / cell.id / "adapter_model.safetensors"
        assert (told.folder / "cells" / cell.id / "adapter_model.safetensors").read_bytes() == whole.read_bytes()


def test_an_epoch_finished_in_between_begins_the_count_anew() -> None:
    deaths = Deaths(retries=1)
    assert [deaths.add("cell", step) for step in (0, 5, 10, 10)] == [False, False, False, True]
    assert [deaths.add("other", step) for step in (0, 0)] == [False, True]


def test_an_interruption_cancels_jobs_gives_their_cells_back_and_says_so(told: Study) -> None:
    store, lines = Store(told.folder), []
    machines = Machines(store, lambda cell, number: KeyboardInterrupt())
    first, second = (cell.id for cell in studies.cells(told))

    def seen(agenda: Agenda) -> None:
        if len(machines.orders) == 2:
            claimed(store, first, next(iter(machines.orders)))
            claimed(store, second, "of-another-coordinator")

    own = machines.submit
    machines.submit = lambda cell, job: (own(cell, job), seen(studies.agenda(told)))[0]
    run = Dispatcher(told, store, machines, 2, 1, say=lines.append)
    with pytest.raises(KeyboardInterrupt):
        run.run(nothing)
    assert machines.cancelled == list(machines.orders)
    assert [path.parent.name for path in store.path.glob("cells/*/claim.json")] == [second]
    assert lines == ["2 jobs were cancelled; finished cells are safe, cut off ones go on from their last epoch"]
    assert machines.is_closed


def test_jobs_that_end_before_they_take_a_cell_fail_no_cell(told: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_HELD_SECONDS", 0.0)
    machines = Machines(
        Store(told.folder), lambda cell, number: Ended(had_cell=False, died="ModuleNotFoundError: rmlora")
    )
    with pytest.raises(RmloraError, match=r"^jobs end before they take a cell: ModuleNotFoundError: rmlora$"):
        coordinator(told, machines).run(nothing)
    assert not list(told.folder.glob("cells/*/failed.json"))
    assert len(machines.orders) <= 4


def test_a_job_that_is_refused_while_others_run_is_submitted_later(
    told: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_REFUSED_SECONDS", 0.0)
    given_up = Ended(died="x")

    class FullQueue(Machines):
        places = 1

        def submit(self, cell: str, job: str) -> str:
            if len(self.orders) >= self.places:
                self.places += 1
                raise ConfigError("sbatch refused a job: QOSMaxSubmitJobPerUserLimit")
            return super().submit(cell, job)

    machines = FullQueue(Store(told.folder), lambda cell, number: given_up)
    coordinator(told, machines, retries=0).run(nothing)
    assert list(machines.asked.values()) == [1, 1]
    assert machines.places > 1
    for path in told.folder.glob("cells/*/failed.json"):
        path.unlink()
    machines = FullQueue(Store(told.folder))
    machines.places = 0
    with pytest.raises(ConfigError, match="QOSMax"):
        coordinator(told, machines).run(nothing)


def test_a_full_disk_and_an_unseen_folder_stop_the_study(told: Study) -> None:
    full = Machines(Store(told.folder), lambda cell, number: Ended(full="no space left"))
    with pytest.raises(DiskFullError, match="no space left"):
        coordinator(told, full).run(nothing)
    blind = Machines(Store(told.folder), lambda cell, number: Ended(had_cell=False, unseen='n1 does not see "x"'))
    with pytest.raises(RmloraError, match=r'^n1 does not see "x": .* must be on a shared file system$'):
        coordinator(told, blind).run(nothing)


def test_a_cell_of_another_coordinator_is_left_to_it_as_long_as_it_lives(told: Study) -> None:
    store, turns = Store(told.folder), Counter[str]()
    first, second = (cell.id for cell in studies.cells(told))
    claimed(store, first, "of-another-coordinator")

    def seen(agenda: Agenda) -> None:
        turns["seen"] += 1
        if turns["seen"] > 20:
            raise KeyboardInterrupt

    machines = Machines(store)
    with pytest.raises(KeyboardInterrupt):
        coordinator(told, machines).run(seen)
    assert machines.asked == {second: 1}
    claim = store.path / "cells" / first / "claim.json"
    assert claims.is_live(claim)
    os.utime(claim, (1, 1))
    coordinator(told, machines).run(nothing)
    assert machines.asked == {first: 1, second: 1}


def test_a_probe_tells_what_a_machine_does_not_see(told: Study, tmp_path: Path, files: tuple[Path, Path]) -> None:
    probe = leave_probe(told, Store(told.folder))
    assert str(files[0].resolve()) in probe.needed
    assert look_for(probe) is None
    host = claims.this_process().host
    assert has_answered(probe, host)
    assert not has_answered(probe, "another", patience=0)
    lost = Probe(probe.path, (*probe.needed, "/nowhere/model"))
    assert look_for(lost) == f'{host} does not see "/nowhere/model"'
    remove_probe(probe)
    assert not list(told.folder.glob(".probe*"))
    assert look_for(probe, patience=0) == f'{host} does not see the study\'s folder "{told.folder.resolve()}"'
