"""`orchctl dead`: messages that were set aside because nobody could work on them."""

import base64
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.text import Text

from llorch_ctl import bus_client, dead_letters
from llorch_ctl.commands.status import plain_table
from llorch_ctl.dead_letters import Hopeless, Kept
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, run, settings_from, write_json
from llorch_shared.bus.port import Bus, Full, NoStream
from llorch_shared.settings import Settings
from llorch_shared.wire.dead import Reason

PROBLEM_SHOWN: Final = 60
PAYLOAD_SHOWN_BYTES: Final = 2_000
"""On a terminal; --json has all of it."""
_LIST: Final = "orchctl dead list"

app = typer.Typer(
    help="Dead letters: admissions and placements that nobody could read, kept for 14 days as they were. A letter has "
    "the id that `list` shows. undecodable: no release can read it; unknown_version: a newer release wrote it; "
    "too_large: over what a placement can carry; unprocessable: its reader broke on it.",
    no_args_is_help=True,
)

ReasonOption = Annotated[Reason | None, typer.Option("--reason", help="Only letters with this reason.")]
IdsArgument = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Ids of letters.", min=1)]
AllOption = Annotated[bool, typer.Option("--all", help="Every letter, or with --reason every one with that reason.")]


@app.command("list")
def list_(reason: ReasonOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What was set aside, oldest first."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        found = await dead_letters.each(bus, reason=reason)
        if as_json:
            write_json({"letters": [_facts(kept) for kept in found]})
        else:
            _print_list(found)
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


@app.command("show")
def show(
    letter: Annotated[int, typer.Argument(metavar="ID", help="Id of a letter.", min=1)],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """One letter whole: why it was set aside, where it came from, its headers and its payload."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        kept = await _found(bus, letter)
        if as_json:
            write_json({**_facts(kept), "headers": kept.letter.headers, **_payload(kept.letter.data)})
        else:
            _print_letter(kept)
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


@app.command("replay")
def replay(
    letters: IdsArgument = None,
    *,
    everything: AllOption = False,
    reason: ReasonOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the original again, where it was published, and remove the letter. What is still wrong with it makes it a
    letter again. Exit code 1 when one of them could not be replayed; it stays a letter."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        done: list[dict[str, Any]] = []
        for kept in await _chosen(bus, letters or [], everything=everything, reason=reason):
            try:
                stored = await dead_letters.replay(bus, await _found(bus, kept.id))
            except (Hopeless, Full, NoStream) as error:
                done.append({"id": kept.id, "replayed": False, "problem": _why_not(error)})
            else:
                done.append({"id": kept.id, "replayed": True, "stream": stored.stream, "seq": stored.seq})
        if as_json:
            write_json({"letters": done})
        for one in [] if as_json else done:
            told = f"is message {one['seq']} of {one['stream']}" if one["replayed"] else f"stays: {one['problem']}"
            OUT.print(f"letter {one['id']} {told}", markup=False)
        if not done and not as_json:
            OUT.print("no dead letters")
        return Exit.OK if all(one["replayed"] for one in done) else Exit.FAILED

    raise typer.Exit(_on_bus(settings, main))


@app.command("drop")
def drop(
    letters: IdsArgument = None,
    *,
    everything: AllOption = False,
    reason: ReasonOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete letters for good. Asks first."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        chosen = await _chosen(bus, letters or [], everything=everything, reason=reason)
        if chosen and not yes:
            _confirm(len(chosen))
        for kept in chosen:
            await dead_letters.drop(bus, kept)
        if as_json:
            write_json({"dropped": [kept.id for kept in chosen]})
        else:
            OUT.print(f"{_letters(len(chosen))} dropped" if chosen else "no dead letters")
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


def _confirm(count: int) -> None:
    """Raises Problem without a terminal to ask at, or when the answer is no."""
    if not sys.stdin.isatty():
        raise Problem(f"{_letters(count)} would be gone for good", fix="say --yes", exit_code=Exit.USAGE)
    if not typer.confirm(f"Drop {_letters(count)} for good?", err=True):
        raise Problem("nothing is dropped")


async def _chosen(bus: Bus, ids: list[int], *, everything: bool, reason: Reason | None) -> list[Kept]:
    """In the order in which they were set aside. Raises Problem for an id that is none, or when nothing is chosen."""
    if everything and ids:
        raise Problem("give ids or --all, not both", fix=_LIST, exit_code=Exit.USAGE)
    if everything:
        return await dead_letters.each(bus, reason=reason)
    if not ids:
        raise Problem("which letters?", fix=f"give ids ({_LIST}), or --all", exit_code=Exit.USAGE)
    found = [await _found(bus, one) for one in sorted(set(ids))]
    return [kept for kept in found if reason in (None, kept.letter.reason)]


async def _found(bus: Bus, letter_id: int) -> Kept:
    kept = await dead_letters.one(bus, letter_id)
    if kept is None:
        raise Problem(f"there is no dead letter {letter_id}", fix=_LIST)
    return kept


def _on_bus(settings: Settings, main: Callable[[Bus], Awaitable[int]]) -> int:
    async def connected() -> int:
        async with bus_client.connected(settings.nats) as bus:
            return await main(bus)

    return run(connected)


def _why_not(error: Exception) -> str:
    match error:
        case Full():
            return "its queue is full, try again later"
        case NoStream():
            return "its queue is not there: has its pool been removed?"
        case _:
            return str(error)


def _facts(kept: Kept) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(kept.letter)
    del told["headers"], told["data"]
    return {"id": kept.id, **told, "bytes": kept.size}


def _payload(data: bytes) -> dict[str, str]:
    try:
        return {"payload": data.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(data).decode()}


def _print_list(found: list[Kept]) -> None:
    if not found:
        OUT.print("no dead letters")
        return
    table = plain_table("id", "since", "what", "pool", "reason", "task", "")
    for kept in found:
        letter = kept.letter
        problem = letter.problem if len(letter.problem) <= PROBLEM_SHOWN else letter.problem[: PROBLEM_SHOWN - 1] + "…"
        row = (str(kept.id), _clock(letter.at_ms), letter.what, letter.pool_id, letter.reason, letter.task_id, problem)
        table.add_row(*map(Text, row))
    OUT.print(table)


def _print_letter(kept: Kept) -> None:
    letter = kept.letter
    facts = {
        "id": str(kept.id),
        "what": letter.what,
        "pool": letter.pool_id,
        "reason": letter.reason,
        "problem": letter.problem,
        "since": _clock(letter.at_ms),
        "given up by": letter.actor,
        "task": letter.task_id,
        "subject": letter.subject,
        "place": f"message {letter.seq} of {letter.stream}",
        "bytes": f"{kept.size} of {letter.cut_bytes}" if letter.cut_bytes else str(kept.size),
    }
    for name, value in facts.items():
        if value:
            OUT.print(f"{name:<12} {value}", markup=False)
    for name, value in letter.headers.items():
        OUT.print(f"header       {name}: {value}", markup=False)
    OUT.print(f"payload      {_shown(letter.data)}", markup=False)


def _shown(data: bytes) -> str:
    """What a terminal can take of it."""
    text = data[:PAYLOAD_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    plain = "".join(character if character.isprintable() or character == "\n" else "·" for character in text)
    return plain + (f" … ({len(data)} bytes, --json has all)" if len(data) > PAYLOAD_SHOWN_BYTES else "")


def _letters(count: int) -> str:
    return "1 letter" if count == 1 else f"{count} letters"


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).astimezone().isoformat(" ", "seconds")[:19]
