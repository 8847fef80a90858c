import gc
from collections.abc import Iterator

import pytest

from rmlora.doctor.subject import Subject
from rmlora.doctor.trial import NUM_STEPS
from tests.doctor.cases import Ward


@pytest.fixture(scope="session")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Ward:
    return Ward(tmp_path_factory.mktemp("ward"))


@pytest.fixture(scope="session")
def healthy(ward: Ward) -> Subject:
    """A run with nothing wrong; tests replace parts of it, and change none."""
    subject = ward.subject("deberta", method_args={"weight": 1e-3, "preset": "strict"})
    assert len(subject.taken) == NUM_STEPS
    return subject


@pytest.fixture(scope="module", autouse=True)
def what_is_there_stays() -> Iterator[None]:
    """Spare the garbage collector what was imported: every run walks all objects twice."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
