"""What RM-LoRA adds to a training step: beside plain LoRA, step by step in turn, and inside its own hooks.

    python benchmarks/2026-11-22_overhead/measure.py

The model has the geometry of DeBERTa-v3-base with random weights; nothing is downloaded.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

import rmlora

HERE = Path(__file__).resolve().parent
PROJECTIONS = ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense", "output.dense"]
DEBERTA_V3_BASE = DebertaV2Config(
    vocab_size=128100,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
    relative_attention=True,
    position_buckets=256,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type="p2c|c2p",
    max_relative_positions=-1,
    position_biased_input=False,
    type_vocab_size=0,
    layer_norm_eps=1e-7,
    pooler_hidden_size=768,
    pooler_hidden_act="gelu",
    num_labels=2,
)


class Others:
    """The share of the machine that other processes use, so that disturbed pairs can be told."""

    def __init__(self):
        self.began = self.read()

    @staticmethod
    def read():
        words = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
        return time.perf_counter(), sum(ticks) - ticks[3] - ticks[4], time.process_time()

    def busy(self):
        """Return the cores that others kept busy since this was made, as a share of all."""
        wall, system, own = (now - then for now, then in zip(self.read(), self.began, strict=True))
        return round(max(0.0, system - own) / wall / os.cpu_count(), 3)


def wait_for_quiet(limit_seconds):
    """Wait until others leave nine tenths of the machine alone, but not for ever."""
    deadline = time.perf_counter() + limit_seconds
    while time.perf_counter() < deadline:
        others = Others()
        time.sleep(1.0)
        if others.busy() < 0.1:
            return


class Run:
    """One model in training, with its own optimizer and batches."""

    def __init__(self, model, options):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        self.batch = make_batch(options)

    def step(self):
        """Train one step on the same batch; return its seconds by the clock and of all cores together."""
        torch.manual_seed(0)  # the same dropout on both sides
        began = time.perf_counter(), time.process_time()
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began[0], time.process_time() - began[1]


def make_batch(options):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, DEBERTA_V3_BASE.vocab_size, (options.batch, options.length), generator=draw)
    labels = torch.randint(2, (options.batch,), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def make_plain(options):
    torch.manual_seed(0)
    base = DebertaV2ForSequenceClassification(DEBERTA_V3_BASE)
    config = LoraConfig(
        r=options.r,
        lora_alpha=4 * options.r,
        target_modules=PROJECTIONS,
        modules_to_save=["pooler", "classifier"],
        task_type=TaskType.SEQ_CLS,
    )
    return get_peft_model(base, config)


def watch_hooks(handle):
    """Time everything rmlora does around any optimizer's step; return a dict that adds up the seconds."""
    binding, spent = handle._binding, {"seconds": 0.0}

    def timed(function):
        def run(*args):
            began = time.perf_counter()
            result = function(*args)
            spent["seconds"] += time.perf_counter() - began
            return result

        return run

    binding.before_step = timed(binding.before_step)
    binding.after_step = timed(binding.after_step)
    return spent


def time_gates(handle, repeats=20):
    """Time what the gates add to forward and backward: the masked weights of all pairs, and their gradients."""
    gates = [gate for pair in handle.pairs for gate in handle._binding.gates[pair]]
    weights = [parameter for pair in handle.pairs for parameter in pair.parameters]
    gradients = [torch.ones_like(weight) for weight in weights]
    x, seconds = torch.zeros(1), []
    for _ in range(repeats):
        began = time.perf_counter()
        for gate, weight in zip(gates, weights, strict=True):
            gate.leave(weight, gate.enter(weight, x))
        masked = [gate.weigh(weight) for gate, weight in zip(gates, weights, strict=True)]
        torch.autograd.grad(masked, weights, gradients)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def describe_machine(options):
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return {
        "kind": "machine",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip(),
        **vars(options),
    }


def measure(options):
    """Yield one row per pair of steps, then one for the hooks."""
    plain = make_plain(options)
    ours = copy.deepcopy(plain)
    handle = rmlora.attach(ours, rmlora.rm_lora(weight=options.weight, directions=options.directions))
    spent = watch_hooks(handle)
    runs = {"plain": Run(plain, options), "rmlora": Run(ours, options)}
    for _ in range(options.warmup):
        for run in runs.values():
            run.step()
    for index in range(options.pairs):
        wait_for_quiet(options.wait)
        order = ("plain", "rmlora") if index % 2 == 0 else ("rmlora", "plain")
        spent["seconds"], others, row = 0.0, Others(), {"kind": "pair", "first": order[0]}
        for name in order:
            row[f"{name}_s"], row[f"{name}_cpu_s"] = runs[name].step()
        row["ratio"] = row["rmlora_s"] / row["plain_s"]
        row["cpu_ratio"] = row["rmlora_cpu_s"] / row["plain_cpu_s"]
        yield row | {"hooks_s": spent["seconds"], "others_busy": others.busy()}
    yield {"kind": "gates", "gates_s": time_gates(handle)}


def summarise(rows):
    pairs = [row for row in rows if row["kind"] == "pair"]
    middle = {key: statistics.median(row[key] for row in pairs) for key in pairs[0] if key not in ("kind", "first")}
    (gates,) = (row["gates_s"] for row in rows if row["kind"] == "gates")
    ratios = sorted(row["ratio"] for row in pairs)
    quarter = len(ratios) // 4
    return {
        "kind": "summary",
        "pairs": len(pairs),
        **{f"{key}_median": value for key, value in middle.items()},
        "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]],
        "gates_s": gates,
        "direct_share": (middle["hooks_s"] + gates) / middle["plain_s"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16, help="interleaved pairs of steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each before measuring")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens per example")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--weight", type=float, default=1e-3)
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for a quiet machine before each pair")
    parser.add_argument("--rows", default="rows.jsonl", help="where the rows go, beside this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [describe_machine(options)]
    for row in measure(options):
        rows.append(row)
        print(json.dumps(row), flush=True)
    rows.append(summarise(rows))
    print(json.dumps(rows[-1], indent=2))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    unfinished = HERE / f"{options.rows}.tmp"
    unfinished.write_text(text)
    unfinished.replace(HERE / options.rows)


if __name__ == "__main__":
    main()
