import pytest

from rmlora.errors import ConfigError
from rmlora.federated.settings import complete_federated
from tests.federated.conftest import Configure


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "adalora"}, "adalora has more than A and B"),
        ({"method": "full"}, "scope=federated trains lora, r-lora, gm-lora, rm-lora"),
        ({"task": "text-regression"}, "deals out classes"),
        ({"training": {"epochs": 2}}, "give federated.rounds and federated.local_epochs"),
        ({"training": {"precision": "bf16"}}, "has no training.precision=bf16"),
        ({"training": {"optimizer": "sgd"}}, "has no training.optimizer=sgd"),
        ({"lora": {"use_dora": True}}, "lora.use_dora=True"),
        ({"lora": {"init_lora_weights": "pissa"}}, "init_lora_weights=pissa"),
        ({"federated": {"local_steps": 2, "local_epochs": 2}}, "not both"),
        ({"federated": {"head": "b", "factors": "both"}}, "head=b"),
        ({"federated": {"superlink": "somewhere:"}}, "is neither host:port"),
    ],
)
def test_what_would_not_happen_is_refused(configure: Configure, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete_federated(configure(**changes))


def test_a_job_of_many_processes_is_refused(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="leave torchrun out"):
        complete_federated(configure())
