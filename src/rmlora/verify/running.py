"""`rmlora verify` from folder to verdict: rewriting, checking, printing, the certificate's file and the card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from rmlora.errors import ConfigError
from rmlora.files import check_writable, write_text
from rmlora.run.environment import describe_model
from rmlora.run.folder import RunFolder
from rmlora.run.trainer import quieten
from rmlora.run.wording import say
from rmlora.verify.base_model import BaseModel, base_of
from rmlora.verify.card_section import write_section
from rmlora.verify.certificate import Certificate, Check
from rmlora.verify.portable import Portable, write_portable
from rmlora.verify.subject import Subject, open_subject
from rmlora.verify.targets import Target, choose_targets


@dataclass(frozen=True)
class Request:
    """What to verify.

    Attributes:
        adapter: folder of a run, or of any PEFT LoRA adapter.
        targets: names; empty is `peft`, or none where `portable` is given.
        model: the base, where it lies elsewhere than adapter_config.json says.
        portable: folder to rewrite the adapter into; it is then what is verified.
        certificate: JSON file to write.
        card: whether to write the card; None writes that of a run of rmlora.
        gguf: file to keep the GGUF of target `llama.cpp` in.
    """

    adapter: Path
    targets: tuple[str, ...] = ()
    model: str | None = None
    portable: Path | None = None
    certificate: Path | None = None
    card: bool | None = None
    gguf: Path | None = None


def verify_adapter(request: Request, console: Console | None = None) -> tuple[Certificate, ...]:
    """Verify an adapter for its targets.

    Args:
        request: what to verify.
        console: where to say it; None says nothing.

    Returns:
        A certificate for each target; they may say that it failed.

    Raises:
        RmloraError: folder, base or target are wrong, so that nothing could be verified.
    """
    console = console or Console(quiet=True)
    restore = quieten()
    try:
        names = list(request.targets) or ([] if request.portable else ["peft"])
        targets = choose_targets(names)
        _check(request, targets)
        subject = open_subject(request.adapter)
        base = base_of(subject, request.model)
        if request.portable is not None:
            made = write_portable(subject, base, request.portable)
            _show_portable(console, made)
            subject = open_subject(made.folder)
            base = base_of(subject, request.model or base.name)
        found = tuple(_judge(console, request, subject, base, name, target) for name, target in targets.items())
        _write(console, request, subject, found)
        return found
    finally:
        restore()


def _check(request: Request, targets: dict[str, Target]) -> None:
    if request.gguf is not None and "llama.cpp" not in targets:
        raise ConfigError("--gguf keeps the file of --target llama.cpp: add that target")
    for option, path in (("--certificate", request.certificate), ("--gguf", request.gguf)):
        if path is None:
            continue
        if path.is_dir():
            raise ConfigError(f'{option} "{path}" is a folder; give a file')
        if not targets:
            raise ConfigError(f"{option} needs a --target")
        check_writable(path.parent)


def _judge(
    console: Console, request: Request, subject: Subject, base: BaseModel, name: str, target: Target
) -> Certificate:
    checks = target.check(subject, base, request.gguf)
    certificate = Certificate(
        target=name,
        method=target.method,
        checks=tuple(checks),
        versions=target.versions(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        adapter=subject.hashes(),
        base=describe_model(base.name, base),
    )
    _show(console, certificate, subject)
    return certificate


def _write(console: Console, request: Request, subject: Subject, found: tuple[Certificate, ...]) -> None:
    if not found:
        return
    if request.certificate is not None:
        told: dict[str, Any] = {"adapter": str(subject.path), "passed": all(one.passed for one in found)}
        told["certificates"] = [one.to_dict() for one in found]
        write_text(request.certificate, json.dumps(told, indent=2) + "\n")
        say(console, f"Certificate: {request.certificate}")
    folder = RunFolder(subject.path)
    is_run = folder.config.is_file() and folder.result.is_file()
    if request.card if request.card is not None else is_run:
        write_section(folder.card, found)
        say(console, f'Card: "## Verified" in {folder.card}')


def _show(console: Console, certificate: Certificate, subject: Subject) -> None:
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in certificate.versions.items())
    verdict = "passed" if certificate.passed else "FAILED"
    say(console, f"{certificate.target}: {verdict}  {subject.path} on {certificate.base['name']}, {certificate.date}")
    for check in certificate.checks:
        say(console, f"  {_line(check)}")
        if not check.passed and check.remedy:
            say(console, f"         -> {check.remedy}")
    say(console, f"  How: {certificate.method}.")
    say(console, f"  With: {versions}.")


def _line(check: Check) -> str:
    measured = "" if check.error is None else f": {check.error:.1e} (at most {check.tolerance:.0e})"
    detail = f"; {check.detail}" if check.detail and measured else f": {check.detail}" if check.detail else ""
    return f"{'ok' if check.passed else 'FAILED':<6} {check.name}{measured}{detail}"


def _show_portable(console: Console, made: Portable) -> None:
    said = [f"r = {made.r} and lora_alpha = {made.lora_alpha:g} everywhere"]
    if made.padded:
        said.append(f"{made.padded} modules padded with zeros")
    if made.rescaled:
        said.append(f"B of {made.rescaled} rescaled")
    if made.head:
        said.append(f"{len(made.head)} parameters of the head beside it")
    said.append(f"base revision {made.revision}" if made.revision else "no revision of the base is known to pin")
    say(console, f"Portable: {made.folder}: {', '.join(said)}; dW differs by at most {made.error:.1e}")
