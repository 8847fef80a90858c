"""The server's part: round after round, ask, average, measure, note."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from rmlora.errors import RmloraError
from rmlora.federated.averaging import Dropped, State, Update, average, averaging_error, num_bytes, shares_of, sift
from rmlora.federated.evaluating import evaluate, write_predictions
from rmlora.federated.exchange import Exchange
from rmlora.federated.progress import Progress, read_progress, save_progress
from rmlora.federated.showing import round_lines
from rmlora.federated.site import Site
from rmlora.federated.turns import clients_of_round, parts_before, parts_of_round
from rmlora.run.folder import RunFolder
from rmlora.run.record import make_row, refuse_nan
from rmlora.run.wording import duration


def run_rounds(site: Site, place: RunFolder, exchange: Exchange, tell: Callable[[str], None]) -> Progress:
    """Run the rounds that are missing, and write what each leaves into `checkpoints` and metrics.jsonl.

    Args:
        site: the server's.
        place: the run's folder, open; its finished rounds stay.
        exchange: asks the clients.
        tell: told in a line of every round, and of every client that is dropped.

    Returns:
        Everything, finished.

    Raises:
        RmloraError: no client is left in a round; the rounds before are kept.
        DivergedError: the loss of the averaged model is no longer a number.
    """
    progress, told = read_progress(place), site.config.federated
    first, begun = progress.rounds, time.monotonic()
    for number in range(first + 1, told.rounds + 1):
        progress = _run_round(site, place, exchange, progress, tell)
        line = round_lines(progress.rows[-1], site)[-1]
        left = (time.monotonic() - begun) / (number - first) * (told.rounds - number)
        tell(line + (f"  (about {duration(left)} left)" if number < told.rounds else ""))
    return progress


def _run_round(
    site: Site, place: RunFolder, exchange: Exchange, before: Progress, tell: Callable[[str], None]
) -> Progress:
    number, begun = before.rounds + 1, time.monotonic()
    told = site.config.federated
    clients = clients_of_round(told, site.config.training.seed, number)
    whole = site.initial | before.state
    sent = {name: whole[name] for name in site.names(parts_before(told, number))}
    expected = {name: whole[name] for name in site.names(parts_of_round(told, number))}
    updates, dropped = sift(exchange(number, clients, sent), clients, expected)
    for one in dropped:
        tell(f"round {number}: client {one.client} is dropped: {one.why}")
    if not updates:
        raise RmloraError(_nobody(number, dropped))
    after = before.state | average(updates)
    measured, logits = evaluate(site, after)
    row = _row(site, before, updates, dropped, measured)
    row |= {"bytes_down": num_bytes(sent), "bytes_up": num_bytes(expected)}
    names = ("averaging_error", "relative_averaging_error")
    row |= dict(zip(names, averaging_error(whole, updates, whole | after), strict=True))
    refuse_nan(row)
    if number == told.rounds:
        write_predictions(site, place, logits)
    took = round(time.monotonic() - begun, 3)
    progress = Progress(after, [*before.rows, row], [*before.seconds, took])
    save_progress(place, progress)
    return progress


def _row(
    site: Site, before: Progress, updates: list[Update], dropped: list[Dropped], measured: dict[str, Any]
) -> dict[str, Any]:
    """Put a round into a row; it holds nothing that differs between two runs of the same thing."""
    number = before.rounds + 1
    steps = sum(update.steps for update in updates) + (before.rows[-1]["step"] if before.rows else 0)
    loss = sum(share * update.loss for update, share in zip(updates, shares_of(updates), strict=True))
    own = {name: value for name, value in measured.items() if not name.startswith(("train_", "eval_"))}
    found = {name: value for name, value in measured.items() if name not in own}
    state = SimpleNamespace(epoch=number, global_step=steps, log_history=[{"loss": loss}])
    row: dict[str, Any] = make_row(state, found, site.metric) | own
    row["trained"] = sorted(parts_of_round(site.config.federated, number))
    row["clients"] = [update.client for update in updates]
    row["dropped"] = [{"client": one.client, "why": one.why} for one in dropped]
    return row


def _nobody(number: int, dropped: list[Dropped]) -> str:
    first = f"client {dropped[0].client}: {dropped[0].why}"
    kept = f"; round {number - 1} is kept, and --resume goes on from it" if number > 1 else ""
    return f"round {number}: none of its {len(dropped)} clients is left ({first}){kept}"
