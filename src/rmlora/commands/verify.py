"""`rmlora verify`: whether an adapter works elsewhere, proved on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Add the command."""
    app.command(no_args_is_help=True)(verify)


def verify(
    adapter: Annotated[Path, typer.Argument(help="Folder of a run, or of any PEFT LoRA adapter.")],
    target: Annotated[
        list[str] | None,
        typer.Option(help="peft, vllm, llama.cpp, onnx, torch-export or all; may be repeated.", show_default="peft"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="BASE", help="The base model.", show_default="what the adapter names")
    ] = None,
    portable: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Rewrite the adapter for every target into this folder, first.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the certificate as JSON.")] = None,
    card: Annotated[
        bool | None,
        typer.Option("--card/--no-card", help='Write "## Verified" into README.md.', show_default="runs only"),
    ] = None,
    gguf: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the GGUF file of llama.cpp.")] = None,
) -> None:
    """Prove that an adapter works in PEFT, vLLM, llama.cpp, ONNX or torch.export; exit code 1 where it does not.

    rmlora verify runs/rte

    rmlora verify runs/rte --target all --certificate rte.json

    rmlora verify runs/rte --portable rte-portable --target vllm --target llama.cpp
    """
    from rich.console import Console

    from rmlora.verify.running import Request, verify_adapter

    request = Request(adapter, tuple(target or ()), model, portable, certificate, card, gguf)
    if not all(found.passed for found in verify_adapter(request, Console())):
        raise typer.Exit(1)
