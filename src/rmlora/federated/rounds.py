"""The server's part: round after round, ask, average, measure, note."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from rmlora.errors import RmloraError
from rmlora.federated.averaging import Dropped, State, average, averaging_error, num_bytes, shares_of, sift
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
        line = f"round {number}/{told.rounds}  loss {progress.since[-1]['loss']:.4f}" if progress.since else ""
        line = line or round_lines(progress.rows[-1], site)[-1]
        left = (time.monotonic() - begun) / (number - first) * (told.rounds - number)
        tell(line + (f"  (about {duration(left)} left)" if number < told.rounds else ""))
    return progress


def _run_round(
    site: Site, place: RunFolder, exchange: Exchange, before: Progress, tell: Callable[[str], None]
) -> Progress:
    number, begun = before.rounds + 1, time.monotonic()
    rounds, every = site.config.federated.rounds, site.config.training.evaluate_every
    state, told = _train(site, exchange, before, tell)
    since, rows = [*before.since, told], before.rows
    if number % every == 0 or number == rounds:
        measured, logits = evaluate(site, state)
        rows, since = [*rows, _row(site, before, since, measured)], []
        if number == rounds:
            write_predictions(site, place, logits)
    progress = Progress(state, rows, [*before.seconds, round(time.monotonic() - begun, 3)], since)
    save_progress(place, progress)
    return progress


def _train(
    site: Site, exchange: Exchange, before: Progress, tell: Callable[[str], None]
) -> tuple[State, dict[str, Any]]:
    """Let clients train a round; return the average, and what is to be said of the round."""
    number, told = before.rounds + 1, site.config.federated
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
    error, relative = averaging_error(whole, updates, whole | after)
    shares = shares_of(updates)
    return after, {
        "trained": sorted(parts_of_round(told, number)),
        "clients": [update.client for update in updates],
        "dropped": [{"round": number, "client": one.client, "why": one.why} for one in dropped],
        "bytes_down": num_bytes(sent),
        "bytes_up": num_bytes(expected),
        "averaging_error": error,
        "relative_averaging_error": relative,
        "steps": sum(update.steps for update in updates),
        "loss": sum(share * update.loss for share, update in zip(shares, updates, strict=True)),
    }


def _row(site: Site, before: Progress, rounds: list[dict[str, Any]], measured: dict[str, Any]) -> dict[str, Any]:
    """Put the rounds since the last row into one; it holds nothing that differs between two runs of the same thing.

    Bytes are summed, the dropped are all there, of the errors the largest counts; `trained` and `clients` are the last
    round's.
    """
    steps = sum(one["steps"] for one in rounds) + (before.rows[-1]["step"] if before.rows else 0)
    loss = sum(one["loss"] for one in rounds) / len(rounds)
    found = {name: value for name, value in measured.items() if name.startswith(("train_", "eval_"))}
    state = SimpleNamespace(epoch=before.rounds + 1, global_step=steps, log_history=[{"loss": loss}])
    row: dict[str, Any] = make_row(state, found, site.metric)
    refuse_nan(row)
    row |= {name: value for name, value in measured.items() if name not in found}
    row |= {name: rounds[-1][name] for name in ("trained", "clients")}
    row["dropped"] = [one for own in rounds for one in own["dropped"]]
    row |= {name: sum(own[name] for own in rounds) for name in ("bytes_down", "bytes_up")}
    row |= {name: max(own[name] for own in rounds) for name in ("averaging_error", "relative_averaging_error")}
    return row


def _nobody(number: int, dropped: list[Dropped]) -> str:
    first = f"client {dropped[0].client}: {dropped[0].why}"
    kept = f"; round {number - 1} is kept, and --resume goes on from it" if number > 1 else ""
    return f"round {number}: none of its {len(dropped)} clients is left ({first}){kept}"
