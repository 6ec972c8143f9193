"""Clients of a system under faults: they hand tasks in, read, hang up, come back and cancel, and write everything down.

They behave as good clients do: what was not answered is sent again with the same id, a stream that broke is taken up
on the next gateway after its last event. They judge nothing; `checks` does.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import httpx
import msgspec

from chaos import history
from chaos.asks import Ask, Way
from chaos.history import (
    BUS,
    Answered,
    Asked,
    Closed,
    Odd,
    Op,
    Opened,
    Outcome,
    Turned,
    now,
)
from chaos.reading import Reading
from llorch_shared import states, subjects
from llorch_shared.bus.port import BusError, Full
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.task import TaskRef
from llorch_shared.wire.version import Kind, version_headers
from support.client import Refusal, StreamCut, TaskClient
from support.system import System

AGAIN_S = 0.15
BUS_TIMEOUT_S = 2.0
CANCEL_TIMEOUT_S = 7.0
SUBMITTING_MAX = 96
"""Submissions under way at once: with thousands the HTTP client does little else than look for free connections."""


class Clients:
    """All clients of one run. `give_up_at` is when they stop trying, in `history.now()`'s time."""

    def __init__(self, system: System, writer: history.Writer, give_up_at: float) -> None:
        self._system = system
        self._writer = writer
        self._give_up_at = give_up_at
        self._submitting = asyncio.Semaphore(SUBMITTING_MAX)

    async def follow_plan(self, asks: Sequence[Ask]) -> None:
        """Every ask at its time, until the last task has ended or time is up."""
        began = now()
        async with asyncio.TaskGroup() as group:
            for ask in asks:
                group.create_task(self._live(ask, began + ask.at_s), name=ask.request.task_id)

    async def _live(self, ask: Ask, at: float) -> None:
        await asyncio.sleep(at - now())
        try:
            if not await self._hand_in(ask):
                return
            async with asyncio.TaskGroup() as group:
                for number in range(ask.readers):
                    group.create_task(self._read(ask, cuts=ask.cuts if number == 0 else ()))
                if ask.cancel_after_s is not None:
                    group.create_task(self._cancel(ask, ask.cancel_after_s))
                if ask.again_after_s is not None:
                    group.create_task(self._again(ask, ask.again_after_s))
        except* (msgspec.MsgspecError, AssertionError, httpx.HTTPError) as errors:
            for error in errors.exceptions:
                self._odd(ask, repr(error))

    async def _hand_in(self, ask: Ask) -> bool:
        """True once it is accepted."""
        if ask.way is Way.BUS:
            return await self._until_accepted(ask, [BUS])
        gateways = self._gateways_from(ask.gateway)
        if ask.way is Way.TWICE:
            tries = [self._until_accepted(ask, gateways[door:] + gateways[:door]) for door in range(ask.doors)]
            return any(await asyncio.gather(*tries))
        return await self._until_accepted(ask, gateways)

    async def _again(self, ask: Ask, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        gateways = self._gateways_from(ask.gateway + 1)
        await self._until_accepted(ask, gateways)

    async def _until_accepted(self, ask: Ask, vias: Sequence[str]) -> bool:
        turn = 0
        while now() < self._give_up_at:
            via = vias[turn % len(vias)]
            if await self._submit(ask, via) is Outcome.ACCEPTED:
                return True
            turn += 1
            await asyncio.sleep(AGAIN_S)
        return False

    async def _submit(self, ask: Ask, via: str) -> Outcome:
        task, op = ask.request.task_id, self._writer.number()
        tenant = ask.tenant
        self._writer.write(
            Asked(
                at=now(), op=op, task=task, what=Op.SUBMIT, via=via, pool=ask.pool, tenant=tenant, request=ask.request
            )
        )
        outcome, status, code = Outcome.UNSURE, 0, ""
        try:
            if via == BUS:
                await self._publish(ask)
            else:
                async with self._submitting:
                    await self._client(via).submit(ask.request)
            outcome = Outcome.ACCEPTED
        except Full as error:
            outcome, code = Outcome.REFUSED, type(error).__name__
        except (BusError, httpx.TransportError) as error:
            code = type(error).__name__
        except Refusal as refusal:
            status, code = refusal.status, str(refusal.body.code)
            outcome = Outcome.REFUSED if status < 500 else Outcome.UNSURE
            if status not in (429, 503):
                self._odd(ask, f"{via} answered a submission with {refusal}")
        self._writer.write(
            Answered(at=now(), op=op, task=task, what=Op.SUBMIT, via=via, outcome=outcome, status=status, code=code)
        )
        return outcome

    async def _publish(self, ask: Ask) -> None:
        request = ask.request
        await self._system.bus.store(
            subjects.admission(ask.pool, request.priority, ask.tenant),
            msgspec.json.encode(request),
            msg_id=request.task_id,
            headers=version_headers(Kind.ADMISSION, request),
            timeout_s=BUS_TIMEOUT_S,
        )

    async def _cancel(self, ask: Ask, delay_s: float) -> None:
        """From another gateway than the one it was handed in at, or on the bus, until the receipt."""
        await asyncio.sleep(delay_s)
        vias = [*self._gateways_from(ask.gateway + 1), BUS]
        turn = 0 if ask.way is not Way.BUS else len(vias) - 1
        while now() < self._give_up_at:
            via, op = vias[turn % len(vias)], self._writer.number()
            task = ask.request.task_id
            self._writer.write(Asked(at=now(), op=op, task=task, what=Op.CANCEL, via=via))
            outcome, status, code = await self._cancelled(ask, via)
            self._writer.write(
                Answered(at=now(), op=op, task=task, what=Op.CANCEL, via=via, outcome=outcome, status=status, code=code)
            )
            if outcome is Outcome.RECEIPT:
                return
            turn += 1
            await asyncio.sleep(AGAIN_S)

    async def _cancelled(self, ask: Ask, via: str) -> tuple[Outcome, int, str]:
        try:
            if via == BUS:
                return await self._cancelled_on_the_bus(ask)
            status = await self._client(via).cancel(ask.request.task_id)
        except (BusError, httpx.TransportError) as error:
            return Outcome.UNSURE, 0, type(error).__name__
        except Refusal as refusal:
            sure = refusal.status < 500 and refusal.status != 429
            return (Outcome.REFUSED if sure else Outcome.UNSURE), refusal.status, str(refusal.body.code)
        return (Outcome.RECEIPT if status == 204 else Outcome.PENDING), status, ""

    async def _cancelled_on_the_bus(self, ask: Ask) -> tuple[Outcome, int, str]:
        ref = msgspec.json.encode(TaskRef(task_id=ask.request.task_id))
        reply = await self._system.bus.request(subjects.api("tasks.cancel"), ref, timeout_s=CANCEL_TIMEOUT_S)
        if status := int(reply.headers.get("Nats-Service-Error-Code", "0")):
            return (Outcome.REFUSED if status < 500 else Outcome.UNSURE), status, reply.data.decode()[:200]
        view = msgspec.json.decode(reply.data, type=TaskView)
        return (Outcome.RECEIPT if view.state in states.FINAL else Outcome.PENDING), 0, ""

    async def _read(self, ask: Ask, *, cuts: Sequence[int]) -> None:
        """To the end, over as many connections as it takes; hangs up at every one of `cuts`."""
        await asyncio.sleep(ask.read_after_s)
        task, number = ask.request.task_id, self._writer.number()
        gateways = self._gateways_from(ask.gateway if ask.way is Way.STREAM else ask.gateway + 1)
        reading = Reading(self._writer, number, task)
        left, turn = list(cuts), 0  # half of the readers of a gateway go on at either of the others
        while not reading.finished and now() < self._give_up_at:
            via = gateways[turn % len(gateways)]
            turn += 1 if int(task[-1], 16) % 2 else -1
            self._writer.write(Opened(at=now(), reader=number, task=task, via=via, cursor=reading.cursor))
            why = ""
            try:
                events = self._client(via).events(task, after=reading.cursor)
                async with asyncio.timeout(self._give_up_at - now()), contextlib.aclosing(events):
                    async for event in events:
                        reading.take(event)
                        if left and reading.count >= left[0]:
                            why = f"left after {reading.count}"
                            break
            except StreamCut as cut:
                why = str(cut)
            except TimeoutError:
                why = "gave up"
            except Refusal as refusal:
                status, code = refusal.status, str(refusal.body.code)
                self._writer.write(Turned(at=now(), reader=number, task=task, via=via, status=status, code=code))
            reading.flush()
            while left and reading.count >= left[0]:
                left.pop(0)
            if not reading.finished:
                self._writer.write(Closed(at=now(), reader=number, task=task, why=why))
                await asyncio.sleep(0.0 if why.startswith("left") else AGAIN_S / 3)

    def _client(self, gateway: str) -> TaskClient:
        return self._system.clients[self._system.gateways.index(gateway)]

    def _gateways_from(self, first: int) -> list[str]:
        names = self._system.gateways
        return [names[(first + number) % len(names)] for number in range(len(names))]

    def _odd(self, ask: Ask, what: str) -> None:
        self._writer.write(Odd(at=now(), task=ask.request.task_id, what=what[:500]))
