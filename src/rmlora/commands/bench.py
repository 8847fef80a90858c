"""`rmlora bench`: training steps of a frozen model, PEFT's LoRA and RM-LoRA, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_ALL = "floor,peft,reference,rmlora"


def add(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(bench)


def bench(
    model: Annotated[
        str | None,
        typer.Option(help="A name of --list, or a folder with config.json.", show_default="all of --list"),
    ] = None,
    r: Annotated[int, typer.Option("--r", help="Directions of each module.")] = 8,
    directions: Annotated[
        int | None, typer.Option(help="Directions trained per step.", show_default="the method's")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Strength of the orthogonality penalty.", show_default="the method's")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Examples per step.", show_default="the model's")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a text.", show_default="the model's")] = None,
    dtype: Annotated[str, typer.Option(help="Of the frozen weights: float32 or bfloat16.")] = "float32",
    autocast: Annotated[bool, typer.Option("--autocast", help="Forward under autocast to bfloat16.")] = False,
    rounds: Annotated[int, typer.Option(help="Measured steps of each contender.")] = 20,
    warmup: Annotated[int, typer.Option(help="Steps of each before.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Of PyTorch.", show_default="as it chooses")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    output: Annotated[Path, typer.Option(help="File of the rows; replaced if it is there.")] = Path("bench.jsonl"),
    profile: Annotated[bool, typer.Option("--profile", help="Also the operators of a step, by self time.")] = False,
    contenders: Annotated[str, typer.Option(help="Which, with commas between.")] = _ALL,
    listed: Annotated[bool, typer.Option("--list", help="Name the models and their batches; measure nothing.")] = False,
) -> None:
    """Measure what LoRA and RM-LoRA add to a training step; random weights, no download.

    rmlora bench --model gpt2 --r 16 --rounds 50
    """
    from rich.console import Console

    from rmlora.bench.present import show_subjects
    from rmlora.bench.running import run_bench
    from rmlora.bench.settings import BenchSettings
    from rmlora.bench.subjects import choose_subjects

    if listed:
        show_subjects(Console())
        return
    settings = BenchSettings(
        r=r,
        directions=directions,
        weight=weight,
        batch=batch,
        length=length,
        dtype=dtype,
        autocast=autocast,
        rounds=rounds,
        warmup=warmup,
        threads=threads,
        device=device,
        contenders=tuple(name.strip() for name in contenders.split(",") if name.strip()),
        profile=profile,
    )
    run_bench(choose_subjects(model, length), settings, output, Console())
