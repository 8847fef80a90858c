"""The ServerApp that Flower's network runtime starts: it runs the rounds of the run whose folder it is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rmlora.config_source import read_config, resolve
from rmlora.federated.exchange import reason_of
from rmlora.federated.flower.grid import GridExchange
from rmlora.federated.rounds import run_rounds
from rmlora.federated.settings import complete_federated
from rmlora.federated.site import make_site
from rmlora.files import write_text
from rmlora.run.folder import RunFolder
from rmlora.run.trainer import quieten

FOLDER, PLACE = "folder", "cwd"
"""What `rmlora train` tells it: the run's folder, and where its relative paths begin."""

__all__ = ["app"]  # noqa: F822


def __getattr__(name: str) -> Any:
    """Make the ServerApp when Flower asks for it: this module is read without Flower, too."""
    if name != "app":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from flwr.serverapp import ServerApp

    made = ServerApp()
    made.main()(main)
    return made


def main(grid: Any, context: Any) -> None:
    """Run the rounds that are missing, and leave word in the folder how that ended."""
    place = RunFolder(Path(str(context.run_config[FOLDER])))
    restore = quieten()
    try:
        os.chdir(str(context.run_config[PLACE]))
        config = complete_federated(resolve(read_config(place.config), str(place.config)))
        site = make_site(config)
        run_rounds(site, place, GridExchange(grid, site), lambda line: None)
        write_word(place, None)
    except Exception as error:
        write_word(place, reason_of(error))
    finally:
        restore()


def word_of(place: RunFolder) -> Path:
    """Where the ServerApp says how it ended."""
    return place.checkpoints / "ended.json"


def write_word(place: RunFolder, error: str | None) -> None:
    """Say that all rounds are run, or what ended them."""
    write_text(word_of(place), json.dumps({"error": error}) + "\n")
