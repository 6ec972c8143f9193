"""One run: a system on loopback, its load, its faults, then rest, and all of it in one folder.

<folder>/plan.json       what was to happen: faults and asks
<folder>/history.jsonl   what clients asked and saw
<folder>/leases.json     who decided for which shard
<folder>/faults.json     what the nemesis did, and what its victims did that no fault explains
<folder>/clocks/         how much the clocks of processes are wrong just now
<folder>/engines/        what each engine process generated
<folder>/after.json      what the bus held at the end
<folder>/report.json     and report.txt
<folder>/system/logs/    of every process
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from chaos import report
from chaos.asks import Ask, make_asks
from chaos.checks import check
from chaos.clients import Clients
from chaos.clock import JumpingClock
from chaos.evidence import AFTER, ENGINES, HISTORY, Evidence, load
from chaos.gather import gather
from chaos.history import RunSeen, Writer, now
from chaos.leases import LeaseWatch
from chaos.nemesis import Injected, Nemesis
from chaos.plan import Fault, FaultKind, make_plan
from chaos.real import lay_words, real_pool, use_caches
from chaos.settle import Settling
from chaos.stage import Stage
from llorch_shared import subjects
from llorch_shared.bus.port import Message
from llorch_shared.wire.run import RUN_DECODER
from support import small_disk
from support.link import Link
from support.nats_server import NatsCluster, free_port
from support.system import System, mock_pool

PLAN: Final = "plan.json"
FAULTS: Final = "faults.json"
CLOCKS: Final = "clocks"
PER_S: Final = 6.0
"""Tasks a second: the load is steady, not an overload."""
DISK_MIB: Final = 256
LINK_KINDS: Final = frozenset({FaultKind.CUT, FaultKind.STALL, FaultKind.DELAY})
SETTINGS: Final = {
    "poold": {"drain_timeout_ms": 500, "stable_after_ms": 3_000, "backoff_max_ms": 2_000},
}
"""Engines are killed far more often than `stable_after_ms` expects; a replica is not to be given up for it."""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run is made from, and what followed from it."""

    seed: int
    seconds: float
    kinds: tuple[FaultKind, ...]
    faults: tuple[Fault, ...]
    asks: tuple[Ask, ...]
    stage: Stage = Stage()
    quiet: tuple[Ask, ...] = ()
    """Asked before anything is broken, to their end: what a real engine says to the first of `asks`."""


class FaultsMade(msgspec.Struct, frozen=True, kw_only=True):
    injected: tuple[Injected, ...]
    problems: tuple[str, ...]


async def run(
    folder: Path, *, seed: int, seconds: float, kinds: Sequence[FaultKind], per_s: float = PER_S
) -> report.Report:
    """`folder` is made by this run and holds nothing else."""
    shape = Stage().shape
    planned = Planned(
        seed=seed,
        seconds=seconds,
        kinds=tuple(kinds),
        faults=make_plan(seed, seconds, kinds, shape),
        asks=make_asks(seed, seconds, per_s=per_s, shape=shape),
    )
    await live(folder, planned)
    return judge(folder)


def judge(folder: Path) -> report.Report:
    """From the folder of a run alone."""
    planned, made, evidence = read_planned(folder), read_faults(folder), read_evidence(folder)
    told = report.make_report(
        seed=planned.seed,
        seconds=planned.seconds,
        kinds=planned.kinds,
        injected=made.injected,
        evidence=evidence,
        violations=check(evidence),
    )
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(told)))
    (folder / "report.txt").write_text(report.text(told))
    return told


def read_planned(folder: Path) -> Planned:
    return msgspec.json.decode((folder / PLAN).read_bytes(), type=Planned)


def read_evidence(folder: Path) -> Evidence:
    planned, evidence = read_planned(folder), load(folder)
    lay_words(evidence, planned.asks, planned.quiet)
    return evidence


def read_faults(folder: Path) -> FaultsMade:
    return msgspec.json.decode((folder / FAULTS).read_bytes(), type=FaultsMade)


async def live(folder: Path, planned: Planned) -> None:
    """Do what is planned to a real system, and leave all that was seen in `folder`, which is made here."""
    folder.mkdir(parents=True)
    (folder / PLAN).write_bytes(msgspec.json.format(msgspec.json.encode(planned)))
    stage, shape = planned.stage, planned.stage.shape
    environment = {"LLORCH_MOCK_LOG": str(folder / ENGINES)}
    pools = [
        real_pool(pool, capacity=stage.capacity)
        if stage.real
        else mock_pool(pool, replicas=1, slots=stage.slots, rate=stage.rate, capacity=stage.capacity, env=environment)
        for pool in shape.pools
    ]
    cluster = NatsCluster(folder / "system" / "cluster", linked=True) if stage.servers > 1 else None
    wants_disk = any(fault.kind is FaultKind.DISK_FULL for fault in planned.faults)
    system = System(
        folder / "system",
        pools=pools,
        gateways=shape.gateways,
        schedulers=shape.schedulers,
        nodes=shape.nodes,
        settings=SETTINGS,
        supervised_bus=wants_disk,
        cluster=cluster,
    )
    if stage.real:
        use_caches(system, shape)
    links = {name: Link(free_port(), system.nats.port) for name in shape.linked if _needs_link(name, planned.faults)}
    for name, link in links.items():
        system.processes[name].environment["NATS_URL"] = link.url
    clocks = {
        name: JumpingClock(folder / CLOCKS / name)
        for name in shape.services
        if any(fault.target == name and fault.kind is FaultKind.CLOCK for fault in planned.faults)
    }
    for name, clock in clocks.items():
        system.processes[name].environment.update(clock.environment)
    writer = Writer(folder / HISTORY)
    with contextlib.closing(writer):
        every_link = [*links.values(), *(cluster.links.values() if cluster is not None else ())]
        async with _links_up(every_link), _small_disk(system, wanted=wants_disk) as ballast, system:
            settling = Settling(system)
            await settling.start()
            await system.bus.subscribe(subjects.ALL_RUNS_LIVE, _recorder(writer))
            leases = LeaseWatch()
            await leases.start(system.bus)
            nemesis = Nemesis(system, links, clocks, ballast)
            if planned.quiet:
                await Clients(system, writer, give_up_at=now() + stage.patience_s).follow_plan(planned.quiet)
            clients = Clients(system, writer, give_up_at=now() + planned.seconds + stage.patience_s)
            await asyncio.gather(nemesis.follow_plan(planned.faults), clients.follow_plan(planned.asks))
            unsettled = nemesis.problems + await settling.wait()
            leases.write(folder)
            after = await gather(system, unsettled)
            made = FaultsMade(injected=tuple(nemesis.injected), problems=tuple(nemesis.problems))
            (folder / FAULTS).write_bytes(msgspec.json.encode(made))
            (folder / AFTER).write_bytes(msgspec.json.encode(after))


def _needs_link(name: str, faults: Sequence[Fault]) -> bool:
    """A proxy in our own process costs as much as what it connects: only where one is to be cut."""
    return any(fault.target == name and fault.kind in LINK_KINDS for fault in faults)


def _recorder(writer: Writer):  # type: ignore[no-untyped-def]
    def seen(message: Message) -> None:
        run = RUN_DECODER.decode(message.data)
        writer.write(RunSeen(at=now(), task=run.task_id, seq=message.seq, state=str(run.state), attempt=run.attempt))

    return seen


@contextlib.asynccontextmanager
async def _links_up(links: Sequence[Link]) -> AsyncIterator[None]:
    for link in links:
        await link.start()
    try:
        yield
    finally:
        for link in links:
            await link.close()


@contextlib.asynccontextmanager
async def _small_disk(system: System, *, wanted: bool) -> AsyncIterator[Path | None]:
    """A small memory disk under the bus's store, where this process may mount one; yields the file that can fill it."""
    store = system.nats.config.store_dir
    if not wanted or not await asyncio.to_thread(small_disk.mount, store, mib=DISK_MIB):
        yield None
        return
    try:
        yield store / "ballast"
    finally:
        await asyncio.to_thread(small_disk.unmount, store)
