"""Flower's network runtime: a SuperLink that is running already, and the SuperNodes connected to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError, RmloraError
from rmlora.federated.flower.server_app import FOLDER, PLACE, word_of
from rmlora.federated.progress import Progress, read_progress
from rmlora.federated.showing import round_lines
from rmlora.federated.site import Site
from rmlora.run.folder import RunFolder

_POLL_SECONDS, _STATUS_SECONDS, _COMMAND_SECONDS = 0.5, 60.0, 120.0

_APP = """[build-system]
requires = []

[project]
name = "rmlora-federated"
version = "1.0.0"
description = "A federated run of rmlora"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "rmlora"

[tool.flwr.app.components]
serverapp = "rmlora.federated.flower.server_app:app"
clientapp = "rmlora.federated.flower.client_app:app"

[tool.flwr.app.config]
folder = ""
cwd = ""
"""

_CONNECTION = """[superlink]
default = "rmlora"

[superlink.rmlora]
address = "{address}"
insecure = true
"""


def run_over_network(site: Site, place: RunFolder, tell: Callable[[str], None]) -> Progress:
    """Hand the rounds that are missing to a SuperLink, and follow them in the run's folder.

    The SuperLink starts the ServerApp in a process of its own, which writes into the run's folder: it has to run on
    this machine. SuperNodes may be anywhere.

    Args:
        site: of the run.
        place: its folder, open.
        tell: told in lines what happens.

    Raises:
        RmloraError: no SuperLink answers, or what ended the rounds.
    """
    word_of(place).unlink(missing_ok=True)
    told = site.config.federated
    with _flower(told.superlink) as (flower, connection):
        run_id = _start(flower, connection, place)
        tell(f"Flower runs it as {run_id} at {told.superlink}")
        try:
            _follow(flower, connection, run_id, site, place, tell)
        except KeyboardInterrupt:
            _call([*flower, "stop", run_id, connection])
            raise
    progress = read_progress(place)
    if progress.rounds < told.rounds:
        raise RmloraError(f"Flower ended run {run_id} after {progress.rounds} of {told.rounds} rounds; see its log")
    return progress


@contextmanager
def _flower(superlink: str) -> Iterator[tuple[list[str], str]]:
    """Yield the words that call Flower's program, and the name of the connection to use.

    host:port is connected to without encryption; any other text is the name of a connection in the user's own Flower
    configuration, which may have certificates and keys.
    """
    program = shutil.which("flwr", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise RmloraError(
            "federated.runtime=network calls the program flwr, which is not on the PATH; activate its venv"
        )
    if ":" not in superlink:
        yield [program], superlink
        return
    with tempfile.TemporaryDirectory(prefix="rmlora-flower-") as home:
        (Path(home) / "config.toml").write_text(_CONNECTION.format(address=superlink), encoding="utf-8")
        before = os.environ.get("FLWR_HOME")
        os.environ["FLWR_HOME"] = home
        try:
            yield [program], "rmlora"
        finally:
            os.environ.pop("FLWR_HOME")
            if before is not None:
                os.environ["FLWR_HOME"] = before


def _start(flower: list[str], connection: str, place: RunFolder) -> str:
    """Submit the run; return its id."""
    with tempfile.TemporaryDirectory(prefix="rmlora-app-") as app:
        (Path(app) / "pyproject.toml").write_text(_APP, encoding="utf-8")
        told = f"{FOLDER}={json.dumps(str(place.path.resolve()))} {PLACE}={json.dumps(str(Path.cwd()))}"
        answer = _call([*flower, "run", app, connection, "--run-config", told, "--format", "json"])
    if not answer.get("success") or "run-id" not in answer:
        raise ConfigError(f"no SuperLink took the run: {_said(answer)}; start one: flower-superlink --insecure")
    return str(answer["run-id"])


def _follow(
    flower: list[str], connection: str, run_id: str, site: Site, place: RunFolder, tell: Callable[[str], None]
) -> None:
    """Tell the rounds as they appear, until the ServerApp says how it ended, or Flower that it did."""
    shown, asked = len(place.rows()), time.monotonic()
    while True:
        ended = word_of(place).is_file()
        rows = place.rows()
        for row in rows[shown:]:
            for line in round_lines(row, site):
                tell(line)
        shown = max(shown, len(rows))
        if ended:
            error = json.loads(word_of(place).read_text(encoding="utf-8"))["error"]
            if error is not None:
                raise RmloraError(error)
            return
        if time.monotonic() - asked > _STATUS_SECONDS:
            asked = time.monotonic()
            found = _call([*flower, "ls", connection, "--run-id", run_id, "--format", "json"])
            status = str((found.get("runs") or [{}])[0].get("status", ""))
            if status.startswith("finished") and not word_of(place).is_file():
                raise RmloraError(f"Flower ended run {run_id} ({status}) without a word from its server; see its log")
        time.sleep(_POLL_SECONDS)


def _call(words: list[str]) -> dict[str, Any]:
    """Call Flower's program; return what it answers as JSON, or under `error-message` what else it said."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return {"success": False, "error-message": str(error)}
    begin = done.stdout.find("{")
    try:
        found = json.loads(done.stdout[begin:]) if begin >= 0 else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"success": False, "error-message": done.stderr or done.stdout}


def _said(answer: dict[str, Any]) -> str:
    return " ".join(str(answer.get("error-message", "it did not say why")).split())[:300]
