"""Where the time of training the classification layer alone goes: arithmetic, rmlora's hooks, bookkeeping, evaluation.

    python benchmarks/2026-11-25_head-profile/measure.py --before ../before/src

The shape is Banking77's on 384 features; the features are random, so nothing is read and nothing is downloaded.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

HERE = Path(__file__).resolve().parent
TRAIN, HELD_OUT, D, CLASSES, R, BATCH = 10003, 3080, 384, 77, 64, 128
KNOBS = {"rm-lora": {"weight": 1e-3, "directions": 0.5}, "r-lora": {"weight": 1e-3}, "lora": {}, "full": {}}


def make_run(method, epochs):
    """Return a run on random features around a mean for each class, as `prepare` would return it."""
    from rmlora.config import RunConfig
    from rmlora.heads import plan
    from rmlora.heads.features import Features
    from rmlora.heads.settings import complete_head
    from rmlora.tasks.data import Examples, TaskData
    from rmlora.tasks.labels import Classes

    told = {"model": "random", "scope": "head", "method": method, "method_args": KNOBS[method]}
    told |= {"head": {"frozen": "random"}, "lora": {} if method == "full" else {"r": R, "scale": 1.0}}
    told["training"] = {"epochs": epochs, "lr": 1e-3, "batch_size": BATCH, "max_grad_norm": 0}
    config = complete_head(RunConfig.model_validate(told))
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, D, generator=draw)
    parts = []
    for count in (TRAIN, HELD_OUT):
        labels = torch.randint(CLASSES, (count,), generator=draw)
        parts.append((means[labels] + 4 * torch.randn(count, D, generator=draw), labels.tolist()))
    (x, y), (x_held, y_held) = parts
    names = Classes(tuple(map(str, range(CLASSES))), True)
    data = TaskData("text-classification", Examples(((),), y), Examples(((),), y_held), names, ("text", "label"), ())
    features = Features(x, x_held, torch.zeros(D), torch.ones(D), 0, False)
    return plan.HeadRun(**plan._describe(config, data, D, 0), features=features, device=torch.device("cpu"))


class Clock:
    """Processor seconds spent inside some functions, by name; a timed function inside another counts in both."""

    def __init__(self):
        self.spent = {}

    def timed(self, name, function):
        self.spent[name] = 0.0

        def run(*args, **kwargs):
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[name] += time.process_time() - began

        return run


def train(run, watched):
    """Train the layer; return seconds by the clock and of the processor, their parts, and hashes of what came out."""
    from rmlora.binding import Binding
    from rmlora.heads import training
    from rmlora.run.masked_updates import MaskedUpdates

    clock, kept = Clock(), (training.fit, Binding.before_step, Binding.after_step)
    kept_updates = (MaskedUpdates.begin_step, MaskedUpdates.end_step)
    fit = training.fit
    if watched:
        Binding.before_step = clock.timed("before_step", Binding.before_step)
        Binding.after_step = clock.timed("after_step", Binding.after_step)
        MaskedUpdates.begin_step = clock.timed("begin_step", MaskedUpdates.begin_step)
        MaskedUpdates.end_step = clock.timed("end_step", MaskedUpdates.end_step)
        training.fit = lambda m, t, c, after, **more: fit(m, t, c, clock.timed("after_epoch", after), **more)
    try:
        layer = run.draw()
        began = time.perf_counter(), time.process_time()
        rows, _ = training._train(run, layer, Console(quiet=True))
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    finally:
        training.fit, Binding.before_step, Binding.after_step = kept
        MaskedUpdates.begin_step, MaskedUpdates.end_step = kept_updates
    weights = b"".join(p.detach().numpy().tobytes() for p in layer.model.parameters())
    hashes = {"weights": hashlib.sha256(weights).hexdigest()[:16]}
    hashes["rows"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    return {"wall_s": wall, "cpu_s": cpu, "steps": rows[-1]["step"], **hashes, "parts": clock.spent}


def operator_share(run):
    """Share of a profiled run's processor time that torch spends inside operators, by torch's own profiler."""
    from torch.profiler import ProfilerActivity, profile

    from rmlora.heads import training

    layer = run.draw()
    began = time.process_time()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        training._train(run, layer, Console(quiet=True))
    spent = time.process_time() - began
    events = sorted(profiled.key_averages(), key=lambda e: -e.self_cpu_time_total)
    inside = sum(e.self_cpu_time_total for e in events if e.key.startswith(("aten::", "autograd::"))) / 1e6
    top = {e.key: [e.count, round(e.self_cpu_time_total / 1e6, 4)] for e in events[:15]}
    return {"inside_s": inside, "profiled_s": spent, "share": inside / spent, "top": top}


class Bare:
    """The tensor operations of one step of RM-LoRA, written down one by one: no module, no autograd, no optimizer."""

    def __init__(self, run):
        draw = torch.Generator().manual_seed(1)
        self.x, self.y = run.features.train, torch.tensor(run.data.train.labels)
        self.W = 0.02 * torch.randn(CLASSES, D, generator=draw)
        self.A, self.B = torch.randn(R, D, generator=draw) / D**0.5, torch.zeros(CLASSES, R)
        self.b, self.eye = torch.zeros(CLASSES), torch.eye(R)
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in (self.A, self.B, self.b)]
        self.kept = torch.arange(R) % 2 == 0

    def gradients(self, indices):
        """Forward and backward of one batch, and the penalty."""
        x, y = self.x[indices], self.y[indices]
        h = x @ self.A.T
        logits = torch.addmm(self.b, x, self.W.T) + h @ self.B.T
        p = torch.log_softmax(logits, 1)
        nn.functional.nll_loss(p, y)
        g = p.exp()
        g[torch.arange(len(y)), y] -= 1
        g /= len(y)
        dB, dA = g.T @ h, (g @ self.B).T @ x
        dA, dB = torch.where(self.kept[:, None], dA, 0.0), torch.where(self.kept, dB, 0.0)
        dA = torch.addmm(dA, 4e-3 * (self.A @ self.A.T - self.eye), self.A)
        dB = torch.addmm(dB, self.B, 4e-3 * (self.B.T @ self.B - self.eye))
        return torch.where(self.kept[:, None], dA, 0.0), torch.where(self.kept, dB, 0.0), g.sum(0)

    def step(self, indices):
        """One whole step, AdamW's included."""
        for p, grad, (m, v) in zip((self.A, self.B, self.b), self.gradients(indices), self.moments, strict=True):
            m.lerp_(grad, 0.1)
            v.mul_(0.999).addcmul_(grad, grad, value=0.001)
            p.addcdiv_(m, v.sqrt().add_(1e-8), value=-1e-3)

    def seconds_per_step(self, steps):
        """Processor seconds of a step, mean over an epoch and more."""
        order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0)).split(BATCH)[:-1]
        self.step(order[0])
        began = time.process_time()
        for i in range(steps):
            self.step(order[i % len(order)])
        return (time.process_time() - began) / steps


def child(options):
    """Measure this interpreter's rmlora once; print one row per method."""
    torch.set_num_threads(1)
    for method in KNOBS:
        run = make_run(method, options.epochs)
        train(make_run(method, 1), watched=False)  # what is done once per process is not measured
        row = {"kind": "run", "method": method, **train(run, watched=False)}
        row["parts"] = train(run, watched=True)["parts"]
        if method == "rm-lora":
            row["bare_step_s"] = Bare(run).seconds_per_step(row["steps"])
        print(json.dumps(row), flush=True)
    if options.profile:
        for method in ("rm-lora", "lora"):
            print(json.dumps({"kind": "profile", "method": method, **operator_share(make_run(method, 3))}))


def describe_machine(options):
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    known = {"kind": "machine", "cpu": cpu, "cores": os.cpu_count(), "threads": 1}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "commit": commit.stdout.strip()}
    load = round(os.getloadavg()[0], 2)
    return known | versions | {"load_before": load, "epochs": options.epochs, "repeats": options.repeats}


def summarise(rows):
    """Medians over the repeats, in milliseconds of processor time per step."""
    found = []
    runs = [row for row in rows if row["kind"] == "run"]
    for version in dict.fromkeys(row["version"] for row in runs):
        for method in KNOBS:
            own = [row for row in runs if (row["version"], row["method"]) == (version, method)]
            told = {"kind": "summary", "version": version, "method": method}
            told["step_ms"] = statistics.median(1e3 * row["cpu_s"] / row["steps"] for row in own)
            told["step_wall_ms"] = statistics.median(1e3 * row["wall_s"] / row["steps"] for row in own)
            for part in own[0]["parts"]:
                told[f"{part}_ms"] = statistics.median(1e3 * row["parts"][part] / row["steps"] for row in own)
            if "bare_step_s" in own[0]:
                told["bare_ms"] = statistics.median(1e3 * row["bare_step_s"] for row in own)
            told["hashes"] = sorted({f"{row['weights']} {row['rows']}" for row in own})
            found.append(told)
    return found


def compare(options):
    """Measure both versions in turn, each time in a process of its own, and write the rows."""
    versions = {"after": HERE.parents[1] / "src"}
    if options.before:
        versions = {"before": options.before.resolve(), **versions}
    rows = [describe_machine(options)]
    for repeat in range(options.repeats):
        for version in list(versions) if repeat % 2 == 0 else list(reversed(versions)):
            words = [sys.executable, __file__, "--child", "--epochs", str(options.epochs)]
            words += ["--profile"] if repeat == 0 else []
            environment = os.environ | {"PYTHONPATH": str(versions[version])}
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            rows += [json.loads(line) | {"version": version} for line in done.stdout.splitlines()]
            print(f"repeat {repeat + 1}, {version}: done", flush=True)
    rows += summarise(rows)
    unfinished = HERE / "rows.jsonl.tmp"
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows))
    unfinished.replace(HERE / "rows.jsonl")
    for row in rows:
        if row["kind"] in ("summary", "machine"):
            print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="src folder of the version to compare with")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each version, in turn")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
