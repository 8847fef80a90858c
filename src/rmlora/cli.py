"""The command line: parse, call, print. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rmlora.commands import bench, compare, doctor, predict, replay, report, reproduce, verify
from rmlora.commands.configuring import configure
from rmlora.errors import ConfigError, RmloraError

app = typer.Typer(
    name="rmlora",
    help="Train LoRA adapters whose directions do not repeat each other, and look into any LoRA adapter.",
    epilog="First look, no network and no GPU needed: rmlora demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Typer's own usage errors share this ancestor, wherever a version of it keeps click.
_USAGE_ERROR: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> None:
    """Run the command line: the one place where an error becomes one line and an exit code.

    Args:
        argv: words after the program's name; None takes the process's.

    Raises:
        SystemExit: 0 done, 1 `doctor` or `verify` found something wrong or a replay differs, 2 something the user can
            put right, 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        code = app(args=words, standalone_mode=False)
    except RmloraError as error:
        _fail(str(error))
    except _USAGE_ERROR as error:
        message = error.format_message()
        if not message:  # no words at all: the help has been printed
            raise SystemExit(0) from None
        _fail(f"{message} (see rmlora --help)")
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # Typer turns Ctrl-C into this code, its older versions raise
        print(_after_interrupt(words), file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _after_interrupt(words: list[str]) -> str:
    if words[:1] == ["compare"]:
        return f"interrupted: finished cells are safe; the same command goes on: rmlora {' '.join(words)}"
    if words[:1] != ["train"]:
        return "interrupted"
    again = " ".join(w for w in words if w not in ("--resume", "--overwrite"))
    return f"interrupted: continue with --resume: rmlora {again} --resume"


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"rmlora {version('rmlora')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold what belongs to no command."""


@app.command(no_args_is_help=True)
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="SETTINGS", help="A YAML or JSON file, and key=value words; `rmlora schema` lists all."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or local folder.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="text-classification, text-regression or image-classification.", show_default="text-classification"
        ),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Training file (.jsonl .csv .tsv .parquet .npz) or image folder.")
    ] = None,
    eval: Annotated[str | None, typer.Option(help="Held-out file or folder.")] = None,
    dataset: Annotated[str | None, typer.Option(help='Hub data set instead of files, e.g. "glue/rte".')] = None,
    method: Annotated[str | None, typer.Option(help="See `rmlora methods`.", show_default="rm-lora")] = None,
    r: Annotated[int | None, typer.Option("--r", help="Directions of each module.", show_default="8")] = None,
    weight: Annotated[
        float | None, typer.Option(help="Strength of the orthogonality penalty.", show_default="the method's")
    ] = None,
    directions: Annotated[
        str | None,
        typer.Option(
            metavar="<number>",
            help="Directions trained per step: 4 is a count, 0.5 a share of r.",
            show_default="the method's",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", show_default="3")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="1e-3; full: 2e-5")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step.", show_default="32")] = None,
    seed: Annotated[int | None, typer.Option(help="Of head, data order, dropout and masks.", show_default="0")] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the results.", show_default="runs/...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
) -> None:
    """Train a model on your data; leaves a plain PEFT adapter, its metrics and a plot.

    rmlora train run.yaml lr=5e-4 lora.r=16

    rmlora train --model FOLDER --train train.jsonl --eval dev.jsonl --method rm-lora --r 8
    """
    flags = {
        "model": model,
        "task": task,
        "data.train": train,
        "data.eval": eval,
        "data.dataset": dataset,
        "method": method,
        "lora.r": r,
        "method_args.weight": weight,
        "method_args.directions": _number(directions),
        "training.epochs": epochs,
        "training.lr": lr,
        "training.batch_size": batch_size,
        "training.seed": seed,
        "output": output,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run, --overwrite replaces it: give one of them")
    config = configure(words or [], given, resume)
    from rich.console import Console

    from rmlora.scopes import foretell, run

    if dry_run:
        foretell(config, Console())
    else:
        run(config, resume=resume, overwrite=overwrite, console=Console())


def _number(text: str | None) -> int | float | None:
    if text is None:
        return None
    try:
        return float(text) if any(c in text for c in ".eE") else int(text)
    except ValueError:
        raise ConfigError(f'--directions: expected a count or a share of r, got "{text}"') from None


@app.command()
def schema() -> None:
    """Print the JSON schema of a config file: every setting, its default and its range."""
    from rmlora.config import RunConfig

    print(json.dumps(RunConfig.model_json_schema(), indent=2))


@app.command()
def methods() -> None:
    """List the methods, one line each."""
    from rmlora.methods import METHODS

    width = max(map(len, METHODS))
    for method in METHODS.values():
        print(f"{method.name:<{width}}  {method.summary}")


@app.command()
def inspect(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA-style PEFT adapter.")],
    plot: Annotated[Path | None, typer.Option(help="Write a plot of the spectra to this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what an adapter has become: ranks, orthogonality, module by module."""
    from rich.console import Console

    from rmlora.analysis.adapters import inspect_adapter
    from rmlora.analysis.present import plot_report, print_report

    report = inspect_adapter(adapter)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_report(report, Console())
    if plot is not None:
        plot_report(report, plot)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the table, the rows and the plot.")] = Path("demo-results"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs per method.")] = 3,
) -> None:
    """Compare the methods on handwritten digits: three minutes, no network, no GPU."""
    from rich.console import Console

    from rmlora.demo import run_demo

    run_demo(output, seeds, Console())


for command in (bench, compare, doctor, predict, replay, report, reproduce, verify):
    command.add(app)


if __name__ == "__main__":
    main()
