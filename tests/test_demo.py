"""The demo: paired runs, honest intervals, files written whole, no network."""

import io
import json
import socket
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from rmlora.demo import run_demo
from rmlora.demo.adaptation import HEAD, adapt, prepare
from rmlora.demo.base_model import cache_file, load_base_model
from rmlora.demo.digits import draw, load_digits
from rmlora.demo.recipe import ARMS, BASELINE, QUICK, Recipe
from rmlora.demo.summary import Summary, summarise
from rmlora.demo.verdict import verdict
from rmlora.errors import ConfigError, RmloraError
from rmlora.methods import METHODS


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the demo must not use the network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(output, seeds=2):
    buffer = io.StringIO()
    outcomes = run_demo(output, seeds=seeds, console=Console(file=buffer, width=80), quick=True)
    return outcomes, buffer.getvalue()


def arm_of(label):
    return next(arm for arm in ARMS if arm.label == label)


def test_it_prints_every_arm_and_leaves_plot_and_rows_and_nothing_else(tmp_path):
    outcomes, text = run(tmp_path / "results")
    for arm in ARMS:
        assert any(line.startswith(arm.label + " ") for line in text.splitlines())
    assert sorted(file.name for file in (tmp_path / "results").iterdir()) == ["demo.png", "rows.jsonl"]
    with Image.open(tmp_path / "results" / "demo.png") as image:
        assert image.format == "PNG"
    rows = [json.loads(line) for line in (tmp_path / "results" / "rows.jsonl").read_text().splitlines()]
    assert [(row["label"], row["seed"]) for row in rows] == [(arm.label, seed) for arm in ARMS for seed in range(2)]
    assert [row["test_accuracy"] for row in rows] == [outcome.test_accuracy for outcome in outcomes]
    assert rows[0]["versions"]["torch"] == torch.__version__
    assert "626 test examples (one is 0.16" in text
    assert "n = 2 seeds" in text


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers_and_the_second_time_reads_the_cache(tmp_path):
    first, text = run(tmp_path / "a", seeds=1)
    assert "kept as" in text
    again, text = run(tmp_path / "b", seeds=1)
    assert "base model from" in text
    assert [replace(row, seconds=0.0) for row in again] == [replace(row, seconds=0.0) for row in first]


def test_the_arms_are_the_methods_of_the_registry():
    assert {arm.method for arm in ARMS} == {"full", "lora", "r-lora", "gm-lora", "rm-lora"}
    for arm in ARMS:
        METHODS[arm.method].build(**arm.knobs)
    assert arm_of(BASELINE).method == "lora"


def test_within_a_seed_all_methods_start_from_the_same_adapter_and_head():
    base, _ = load_base_model(load_digits(), QUICK.pretraining)
    starts = {arm.label: prepare(base, QUICK, arm, seed=5)[0].state_dict() for arm in ARMS}
    heads = [[v for k, v in state.items() if f"{HEAD}." in k and "original" not in k] for state in starts.values()]
    for head in heads[1:]:
        assert all(torch.equal(one, other) for one, other in zip(heads[0], head, strict=True))
    for r in (4, 32):
        same = [starts[arm.label] for arm in ARMS if arm.r == r]
        factors = [key for key in same[0] if "lora_A" in key]
        assert factors
        for state in same[1:]:
            for key, twin in zip(factors, [key for key in state if "lora_A" in key], strict=True):
                assert torch.equal(same[0][key], state[twin])
    other, key = prepare(base, QUICK, arm_of(BASELINE), seed=6)[0].state_dict(), next(iter(starts[BASELINE]))
    assert torch.equal(other[key], starts[BASELINE][key])  # the base is the same,
    key = next(key for key in other if "lora_A" in key)
    assert not torch.equal(other[key], starts[BASELINE][key])  # the adapter is this seed's own


def test_a_run_leaves_the_base_model_alone():
    digits = load_digits()
    base, _ = load_base_model(digits, QUICK.pretraining)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for arm in (arm_of("full"), arm_of("RM-LoRA 2 of 4")):
        adapt(base, digits, QUICK, arm, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_the_baseline_of_the_demo_is_what_peft_alone_gives():
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy

    digits = load_digits()
    base, _ = load_base_model(digits, QUICK.pretraining)
    arm = arm_of(BASELINE)
    ours = adapt(base, digits, QUICK, arm, seed=3)
    torch.manual_seed(3)
    model = prepare(base, QUICK, arm_of("full"), seed=3)[0]
    names = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != HEAD]
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=4 * QUICK.scale, target_modules=names, modules_to_save=[HEAD])
    )
    few = draw(digits.pool, QUICK.shots, 3)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=arm.learning_rate)
    order = torch.Generator().manual_seed(3)
    for step in range(QUICK.num_steps):  # ten examples are less than a batch: every step is an epoch
        batch = few.take(torch.randperm(len(few), generator=order))
        optimizer.param_groups[0]["lr"] = arm.learning_rate * (1 - step / QUICK.num_steps)
        optimizer.zero_grad()
        cross_entropy(model(pixel_values=batch.images).logits, batch.labels).backward()
        optimizer.step()
    right = model.eval()(pixel_values=digits.test.images).logits.argmax(-1) == digits.test.labels
    assert ours.test_accuracy == pytest.approx(100 * right.double().mean().item(), abs=digits.points_per_example / 2)


def test_the_two_halves_and_the_splits_do_not_overlap():
    digits = load_digits()
    assert len(digits.first) + len(digits.pool) + len(digits.test) == 1797
    pool = {tuple(image.flatten().tolist()) for image in digits.pool.images}
    assert not any(tuple(image.flatten().tolist()) in pool for image in digits.test.images)
    assert draw(digits.pool, 16, seed=0).labels.bincount().tolist() == [16] * 5
    assert not torch.equal(draw(digits.pool, 16, seed=0).images, draw(digits.pool, 16, seed=1).images)


def test_a_damaged_cache_is_made_again():
    digits = load_digits()
    base, _ = load_base_model(digits, QUICK.pretraining)
    file = cache_file(QUICK.pretraining)
    file.write_bytes(file.read_bytes()[:100])
    again, came_from = load_base_model(digits, QUICK.pretraining)
    assert "made now and kept" in came_from
    assert all(torch.equal(one, other) for one, other in zip(base.parameters(), again.parameters(), strict=True))
    assert "base model from" in load_base_model(digits, QUICK.pretraining)[1]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert "not kept" in load_base_model(load_digits(), QUICK.pretraining)[1]


def test_every_recipe_has_its_own_cache_file():
    changed = replace(QUICK.pretraining, num_steps=QUICK.pretraining.num_steps + 1)
    assert len({cache_file(QUICK.pretraining), cache_file(changed), cache_file(Recipe().pretraining)}) == 3


def test_an_unwritable_output_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RmloraError, match="cannot write"):
        run(tmp_path / "file" / "results")
    assert not (tmp_path / "cache").exists()


def test_no_seeds_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        run(tmp_path / "results", seeds=0)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_one_seed_claims_nothing(tmp_path):
    _, text = run(tmp_path / "results", seeds=1)
    assert "One seed has no interval" in text
    assert "inf" not in text
    assert "nan" not in text


@pytest.mark.slow
def test_the_callers_random_state_and_threads_are_kept(tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    run(tmp_path / "results", seeds=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.fixture
def planted(tmp_path):
    """Runs of three arms with chosen accuracies."""
    base, _ = load_base_model(load_digits(), QUICK.pretraining)
    one = adapt(base, load_digits(), QUICK, arm_of(BASELINE), seed=0)

    def row(label, accuracies):
        return [replace(one, label=label, seed=s, test_accuracy=a) for s, a in enumerate(accuracies)]

    return row(BASELINE, [70, 80, 75]) + row("better", [75.1, 85.2, 80.0]) + row("same", [60, 92, 75])


def test_differences_are_paired_by_seed_and_words_follow_the_intervals(planted):
    summaries = summarise(list(reversed(planted)))
    better = next(summary for summary in summaries if summary.label == "better")
    assert better.difference.estimate == pytest.approx(5.1)
    assert better.difference.half_width < 0.5  # unpaired it would be ten
    text = " ".join(verdict(summaries))
    assert "higher than LoRA r=4 altogether: better (+5.1 points" in text
    assert "Not to be told from LoRA r=4: same." in text
    assert "lower" not in text


def test_equal_differences_are_no_certainty(planted):
    above = {0: 71.0, 1: 81.0, 2: 76.0}  # one point above the baseline with every seed
    runs = [replace(run, test_accuracy=above[run.seed]) if run.label != BASELINE else run for run in planted]
    text = " ".join(verdict(summarise(runs)))
    assert "Not to be told from LoRA r=4: better, same." in text
    assert "points would show" not in text
    assert "inf" not in text


def test_the_words_say_lower_where_it_is_lower(planted):
    worse = [replace(row, test_accuracy=row.test_accuracy - 12) if row.label == "better" else row for row in planted]
    text = " ".join(verdict(summarise(worse)))
    assert "lower than LoRA r=4 altogether: better (-6.9 points" in text
    assert "higher than LoRA" not in text


def test_an_arm_without_a_number_has_no_mean(planted):
    summary = Summary("x", (replace(planted[0], gram_residual=None),), None)
    assert summary.mean("gram_residual") is None
    assert summary.spread is None
