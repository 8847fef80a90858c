"""Verdicts from rows and predictions made by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rmlora.compare.arms import choose_baseline, sort_into_arms
from rmlora.compare.predictions import Predictions, read_predictions
from rmlora.compare.verdicts import Comparison, compare_methods
from rmlora.errors import ConfigError, DataError

N = 500


def answers(accuracy: float, seed: int) -> Predictions:
    """A classifier right on about this share; which examples are hard is the same for all."""
    luck = np.random.default_rng(99).random(N)
    noise = np.random.default_rng([seed, int(accuracy * 1e6)]).normal(0, 0.02, N)
    right = luck + noise < accuracy
    return Predictions(np.ones(N), np.eye(2)[right.astype(int)], right)


def row(label: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    value = {"eval_accuracy": float(answers(accuracy, seed).correct.mean())}
    base = {"label": label, "method": label, "task": "t", "model": "m", "r": 8, "kind": "final", "metric": "accuracy"}
    return base | {"seed": seed, "best": value, "last": value, "at": accuracy} | changes


def study(**methods: float) -> list[dict[str, Any]]:
    return [row(name.replace("_", "-"), seed, accuracy) for name, accuracy in methods.items() for seed in range(4)]


def read(found: Any) -> Predictions:
    return answers(found["at"], found["seed"])


def last(rows: list[dict[str, Any]], **options: Any) -> dict[str, Comparison]:
    compared = compare_methods(rows, read, num_resamples=500, **options)
    return {one.label: one for one in compared if one.epoch == "last"}


def test_better_and_worse_and_no_evidence() -> None:
    found = last(study(lora=0.7, rm_lora=0.8, r_lora=0.6, gm_lora=0.7))
    assert {label: one.verdict for label, one in found.items()} == {
        "rm-lora": "better",
        "r-lora": "worse",
        "gm-lora": "no evidence",
    }
    assert all(one.num_examples == N and len(one.mcnemar) == 4 for one in found.values())
    assert found["rm-lora"].over_examples.interval.low > 0


def test_vb_lora_1_both_epochs_are_always_judged() -> None:
    compared = compare_methods(study(lora=0.7, rm_lora=0.8), read, num_resamples=100)
    assert [one.epoch for one in compared] == ["last", "best"]
    assert compared[0].over_examples is not None
    assert compared[1].over_examples is None  # of which no predictions are kept


def test_a_difference_must_hold_on_other_examples_too() -> None:
    # Every seed gains about one example of 500: very regular over seeds, nothing over examples.
    rows = study(lora=0.7, rm_lora=0.7)
    for one in rows:
        gain = 0.002 + 1e-4 * one["seed"] if one["label"] == "rm-lora" else 0.0
        one["last"] = {"eval_accuracy": 0.7 + gain}
    found = last(rows)["rm-lora"]
    assert not found.over_seeds.contains_zero
    assert found.over_examples.interval.contains_zero
    assert found.verdict == "no evidence"
    assert "other examples could undo it" in found.reason


def test_galore_25_one_seed_is_no_evidence_however_large_the_difference() -> None:
    found = last([row("lora", 0, 0.5), row("rm-lora", 0, 0.9)])["rm-lora"]
    assert (found.verdict, found.mcnemar[0].p_value < 1e-9) == ("no evidence", True)
    assert "one seed" in found.reason
    assert math.isnan(found.p_adjusted)


def test_no_common_seed_is_said() -> None:
    found = last([row("lora", 0, 0.5), row("rm-lora", 1, 0.9)])["rm-lora"]
    assert found.reason == "no seed was run by both."


def test_holm_covers_the_whole_family() -> None:
    alone = last(study(lora=0.7, rm_lora=0.72))["rm-lora"]
    among = last(study(lora=0.7, rm_lora=0.72, a=0.7, b=0.7, c=0.7))["rm-lora"]
    assert alone.p_adjusted == alone.p_value == among.p_value
    assert among.p_adjusted > alone.p_adjusted


def test_what_only_holm_undoes_says_that_more_seeds_could_tell() -> None:
    rows = study(lora=0.7, a=0.7, b=0.7, c=0.7, d=0.7, e=0.7)
    for one in rows:
        gain = (0.01, 0.02, 0.03, 0.02)[one["seed"]] if one["label"] == "a" else 0.0
        one["last"] = {"eval_accuracy": 0.7 + gain}
    found = next(one for one in compare_methods(rows) if one.label == "a")
    assert found.verdict == "no evidence"
    assert found.p_value < 0.05 < found.p_adjusted
    assert found.reason.endswith("before: more seeds could tell.")


def test_without_predictions_seeds_alone_decide() -> None:
    compared = compare_methods(study(lora=0.7, rm_lora=0.8))
    assert compared[0].over_examples is None
    assert compared[0].verdict == "better"


def test_predictions_on_other_examples_are_not_compared() -> None:
    def other(found: Any) -> Predictions:
        whole = answers(found["at"], found["seed"])
        return (
            whole if found["label"] == "lora" else Predictions(whole.labels[1:], whole.outputs[1:], whole.correct[1:])
        )

    assert compare_methods(study(lora=0.7, rm_lora=0.8), other)[0].over_examples is None


def test_a_lower_loss_is_better() -> None:
    rows = study(lora=0.7, rm_lora=0.8)
    for one in rows:
        one["metric"] = "perplexity"
        one["last"] = {"eval_perplexity": 9.0 - one["at"] + 0.001 * one["seed"] * one["at"]}
    assert compare_methods(rows)[0].verdict == "better"


def test_selection_runs_are_not_compared() -> None:
    rows = [*study(lora=0.7, rm_lora=0.8), row("rm-lora", 9, 0.1, kind="select"), row("lora", 9, 0.9, kind="select")]
    assert last(rows)["rm-lora"].seeds == (0, 1, 2, 3)


def test_full_fine_tuning_stands_beside_every_r() -> None:
    rows = [row("lora", 0, 0.7, r=r) for r in (4, 8)] + [row("full", 0, 0.7, r=None)]
    assert [(arm.label, arm.setting.r) for arm in sort_into_arms(rows)] == [
        ("lora", 4),
        ("full", 4),
        ("lora", 8),
        ("full", 8),
    ]


def test_a_baseline_is_named_or_lora() -> None:
    rows = study(lora=0.7, rm_lora=0.8)
    assert last(rows, baseline="rm-lora")["lora"].verdict == "worse"
    with pytest.raises(ConfigError, match=r'"rm-lroa" is not in the study .did you mean "rm-lora"'):
        choose_baseline(rows, "rm-lroa")
    with pytest.raises(ConfigError, match="no lora to compare with; name a baseline: rm-lora"):
        choose_baseline(study(rm_lora=0.8))
    grid = [row(f"rm {weight}", 0, 0.7, method="rm-lora") for weight in (1, 2)]
    with pytest.raises(ConfigError, match="any of rm 1, rm 2"):
        choose_baseline(grid, "rm-lora")


def test_predictions_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "predictions.safetensors"
    logits = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    save_file({"logits": logits, "labels": np.array([0, 0])}, path)
    assert read_predictions(path).correct.tolist() == [True, False]
    save_file({"exact_match": np.array([1.0, 0.0, 1.0])}, path)
    assert read_predictions(path).score("exact_match").value() == pytest.approx(2 / 3)


def test_damaged_predictions_are_a_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "predictions.safetensors"
    path.write_bytes(b"\x10\0\0\0")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        read_predictions(path)
    save_file({"logits": np.zeros((3, 2)), "labels": np.zeros(2)}, path)
    with pytest.raises(DataError, match="one entry per example"):
        read_predictions(path)
