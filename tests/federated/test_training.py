import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import rmlora.federated.rounds as rounds
from rmlora.errors import ConfigError, RmloraError, StateError
from rmlora.federated import dry_run_federated, train_federated
from rmlora.scopes import run
from tests import runs
from tests.federated.conftest import Configure

LEFT = ("adapter_model.safetensors", "metrics.jsonl", "predictions.safetensors")


class StopError(Exception):
    """Ctrl-C, but catchable by this test alone."""


@pytest.mark.parametrize("factors", ["alternate", "both", "b"])
def test_a_run_leaves_rows_result_predictions_and_a_plain_adapter(
    configure: Configure, tmp_path: Path, factors: str
) -> None:
    result = run(configure(federated={"factors": factors, "rounds": 3}))
    out, rows = tmp_path / "out", runs.rows(tmp_path / "out")
    assert json.loads((out / "result.json").read_text()) == result
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert result["last"] == rows[-1]
    assert result["examples"]["train"] == sum(result["examples"]["clients"]) == 40
    assert len(result["round_seconds"]) == 3
    for name in ("running_loss", "train_loss", "eval_loss", "eval_accuracy", "gap", "effective_rank", "penalty"):
        assert name in rows[-1], name
    exact = [row["relative_averaging_error"] < 1e-6 for row in rows]
    assert exact == [True] * 3 if factors != "both" else not any(exact[1:])
    assert all(row["clients"] == [0, 1, 2] and row["dropped"] == [] for row in rows)
    predictions = load_file(out / "predictions.safetensors")
    assert float(predictions["correct"].double().mean()) == rows[-1]["eval_accuracy"]
    for name in ("README.md", "curves.png", "environment.json", "config.yaml", "adapter_config.json"):
        assert (out / name).is_file(), name
    assert not (out / ".lock").exists()


def test_the_saved_adapter_in_peft_alone_gives_the_predictions(configure: Configure, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    config = configure(method="rm-lora")
    run(config)
    base = AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=2)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    from rmlora.federated.settings import complete_federated
    from rmlora.federated.site import make_site
    from rmlora.run.predicting import predict_examples

    where = make_site(complete_federated(config))
    logits, _ = predict_examples(model, where.encoded["eval"], where.processor, where.config)
    kept = load_file(tmp_path / "out" / "predictions.safetensors")["logits"]
    torch.testing.assert_close(torch.from_numpy(logits), kept, rtol=0, atol=1e-5)


def test_bytes_are_those_of_the_tensors(configure: Configure, tmp_path: Path) -> None:
    parameters = run(configure())["parameters"]
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    A, B = (4 * sum(t.numel() for n, t in saved.items() if f".lora_{side}." in n) for side in "AB")
    head = 4 * parameters["head"]
    assert 4 * parameters["adapter"] == A + B
    rows = runs.rows(tmp_path / "out")
    assert [row["bytes_up"] for row in rows] == [B + head, A + head, B + head, A + head]
    assert [row["bytes_down"] for row in rows] == [0, B + head, A + B + head, A + B + head]


def test_rows_of_rounds_that_are_not_evaluated_are_summed_up(configure: Configure, tmp_path: Path) -> None:
    run(configure("each", federated={"rounds": 5}))
    run(configure("some", federated={"rounds": 5}, training={"evaluate_every": 2}))
    each, some = runs.rows(tmp_path / "each"), runs.rows(tmp_path / "some")
    assert [row["epoch"] for row in some] == [2, 4, 5]
    for row, own in zip(some, (each[:2], each[2:4], each[4:]), strict=True):
        for name in ("step", "eval_loss", "train_accuracy", "trained", "penalty"):
            assert row[name] == own[-1][name]
        for name in ("bytes_up", "bytes_down"):
            assert row[name] == sum(one[name] for one in own)
        assert row["averaging_error"] == max(one["averaging_error"] for one in own)
        assert row["running_loss"] == pytest.approx(sum(one["running_loss"] for one in own) / len(own))
    assert runs.equal(runs.weights(tmp_path / "each"), runs.weights(tmp_path / "some"))


def test_a_share_of_the_clients_trains(configure: Configure, tmp_path: Path) -> None:
    run(configure(federated={"fraction": 0.34, "rounds": 6}))
    chosen = [row["clients"] for row in runs.rows(tmp_path / "out")]
    assert all(len(own) == 1 for own in chosen)
    assert len({own[0] for own in chosen}) > 1


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_equals_one_never_interrupted(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    told: dict[str, Any] = {"method": "rm-lora", "federated": {"fraction": 0.67}}
    told |= {"lora": {"lora_dropout": 0.1}, "training": {"evaluate_every": every}}
    train_federated(configure("whole", **told))
    broken = configure("broken", **told)
    mean = rounds.average

    def stop_in_round_3(updates: Any) -> Any:
        if (tmp_path / "broken" / "checkpoints" / "round-2.safetensors").exists():
            raise StopError
        return mean(updates)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "average", stop_in_round_3)
        with pytest.raises(StopError):
            train_federated(broken)
    assert not (tmp_path / "broken" / "result.json").exists()
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3')
    train_federated(broken, resume=True)
    for name in LEFT:
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_clients_that_die_or_send_nonsense_are_dropped_by_name(
    configure: Configure, tmp_path: Path, faulty: dict[tuple[int, int], str]
) -> None:
    faulty.update({(1, 0): "dies", (2, 1): "nan", (3, 2): "shape"})
    with (tmp_path / "said").open("w") as file:
        run(configure(), console=Console(file=file, width=200))
    said = (tmp_path / "said").read_text()
    assert "round 1: client 0 is dropped: RuntimeError: the machine is gone" in said
    assert "holds nan or infinity" in said
    assert "has the shape" in said
    rows = runs.rows(tmp_path / "out")
    assert [row["clients"] for row in rows] == [[1, 2], [0, 2], [0, 1], [0, 1, 2]]
    assert [[one["client"] for one in row["dropped"]] for row in rows] == [[0], [1], [2], []]
    assert all(torch.isfinite(tensor).all() for tensor in runs.weights(tmp_path / "out").values())


def test_a_round_without_a_client_ends_the_run_and_the_rounds_before_are_kept(
    configure: Configure, tmp_path: Path, faulty: dict[tuple[int, int], str]
) -> None:
    train_federated(configure("whole"))
    faulty.update({(3, client): "dies" for client in range(3)})
    config = configure()
    with pytest.raises(RmloraError, match=r"round 3: none of its 3 clients is left \(client 0: RuntimeError"):
        train_federated(config)
    assert len(runs.rows(tmp_path / "out")) == 2
    faulty.clear()
    train_federated(config, resume=True)
    for name in LEFT:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_folder_with_a_run_is_not_overwritten_unasked(configure: Configure, tmp_path: Path) -> None:
    config = configure(federated={"rounds": 1})
    train_federated(config)
    with pytest.raises(ConfigError, match="holds a finished run"):
        train_federated(config)
    assert train_federated(config, resume=True)["last"]["epoch"] == 1
    with pytest.raises(StateError, match=r"federated.rounds was 1 and is now 2"):
        train_federated(configure(federated={"rounds": 2}), resume=True)
    longer = train_federated(configure(federated={"rounds": 2}), overwrite=True)
    assert longer["last"]["epoch"] == len(runs.rows(tmp_path / "out")) == 2


def test_a_damaged_progress_starts_from_the_beginning(
    configure: Configure, tmp_path: Path, faulty: dict[tuple[int, int], str]
) -> None:
    train_federated(configure("whole", federated={"rounds": 2}))
    faulty.update({(2, client): "dies" for client in range(3)})
    with pytest.raises(RmloraError):
        train_federated(configure(federated={"rounds": 2}))
    faulty.clear()
    (tmp_path / "out" / "checkpoints" / "round-1.safetensors").write_bytes(b"half")
    train_federated(configure(federated={"rounds": 2}), resume=True)
    for name in LEFT:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gm-lora", "method_args": {"directions": 9}}, "directions=9 exceeds r=4"),
        ({"federated": {"clients": 40, "alpha": 0.1}}, "gives no example to client"),
    ],
)
def test_what_no_client_could_do_is_refused_before_anything_is_written(
    configure: Configure, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(RmloraError, match=message):
        train_federated(configure(**changes))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_who_trains_what_and_writes_nothing(configure: Configure, tmp_path: Path) -> None:
    with (tmp_path / "said").open("w") as file:
        dry_run_federated(configure(), Console(file=file, width=200))
    said = (tmp_path / "said").read_text()
    assert "3 clients by Dirichlet(5)" in said
    assert "B and A by turns (RoLoRA)" in said
    assert "Dry run: nothing was written." in said
    assert not (tmp_path / "out").exists()
