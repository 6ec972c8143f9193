"""When a supervised process is started again, and when that is given up.

A process that was ready once always comes back, after a delay that doubles up to a limit and is spread by luck so that
several do not return in step. A process that has never been ready is given up after a few starts: its configuration is
wrong, and starting it for ever would hide that. Time and luck are arguments.
"""

from enum import StrEnum

import msgspec


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    STOPPED = "stopped"
    FAILED = "failed"


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Delays in seconds."""

    initial_s: float = 0.2
    factor: float = 2.0
    max_s: float = 15.0
    spread: float = 0.3
    """Share of a delay that luck may take off."""
    stable_after_s: float = 30.0
    """A process that was ready this long starts its delays anew."""
    starts_max: int = 3
    """Starts without ever becoming ready before it is given up."""

    def delay_s(self, failures: int, luck: float) -> float:
        """Seconds before start number `failures` + 1; `luck` in [0, 1)."""
        grown = min(self.max_s, self.initial_s * self.factor ** min(failures - 1, 60))
        return grown * (1 - self.spread * luck)


class Life:
    """One supervised process over all its starts. Every method takes the time in seconds of one monotonic clock."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._ready_since: float | None = None
        self._ever_ready = False
        self._stopping = False
        self._again = False
        self.phase = Phase.STOPPED
        self.failures = 0
        """Ends in a row without a stable run in between."""
        self.restarts = 0

    def started(self) -> None:
        if self.phase is not Phase.STOPPED:
            self.restarts += 1
        self.phase = Phase.STARTING
        self._ready_since = None

    def became_ready(self, now: float) -> None:
        self.phase = Phase.READY
        self._ready_since = now
        self._ever_ready = True

    def stop_wished(self) -> None:
        """From here on an end is what was asked for."""
        self._stopping = True

    def restart_wished(self) -> None:
        """The next end is no failure, and the next start comes at once."""
        self._again = True

    def ended(self, now: float, luck: float) -> float | None:
        """The process ended. Returns the delay before its next start, or None: it does not come back (see `phase`)."""
        if self._stopping:
            self.phase = Phase.STOPPED
            return None
        if self._again:
            self._again = False
            self.phase = Phase.BACKOFF
            return 0.0
        if self._ready_since is not None and now - self._ready_since >= self._policy.stable_after_s:
            self.failures = 0
        self.failures += 1
        if not self._ever_ready and self.failures >= self._policy.starts_max:
            self.phase = Phase.FAILED
            return None
        self.phase = Phase.BACKOFF
        return self._policy.delay_s(self.failures, luck)
