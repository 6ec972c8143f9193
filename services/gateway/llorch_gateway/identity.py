"""Who calls: what was presented goes to the verifiers in turn. The token file is read again when it changes."""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from llorch_shared import token_file
from llorch_shared.auth import LOCAL, AuthPolicy, Caller, Identity, KnownTokens, Verifier, bad_token
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.settings import GatewaySettings, OidcSettings, Secret
from llorch_shared.token_file import TokenFileError
from llorch_shared.wall_clock import now_ms

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0


class Identities:
    """The door: every authenticated request goes through `identify`."""

    def __init__(self, policy: AuthPolicy, verifiers: Sequence[Verifier]) -> None:
        self._policy: Final = policy
        self._verifiers: Final = tuple(verifiers)

    async def identify(self, caller: Caller) -> Identity:
        """Raises OrchError MISSING_TOKEN, BAD_TOKEN or NON_LOOPBACK_WITHOUT_TOKEN."""
        token = self._policy.presented(caller)
        if token is None:
            return LOCAL
        for verifier in self._verifiers:
            identity = await verifier.verify(token)
            if identity is not None:
                return identity
        raise bad_token()


class TokenTable:
    """AUTH_TOKEN and the token file. A file that cannot be used changes nothing: what was read before stays in effect,
    and `problem` says so."""

    def __init__(self, static: Secret, path: Path | None, metrics: Metrics) -> None:
        """Raises TokenFileError: what cannot be read at the start was never in effect."""
        self._static: Final = static
        self._path: Final = path
        self._stale: Final = metrics.gauge("tokens_file_stale")
        self._count: Final = metrics.gauge("tokens_known")
        self._seen = token_file.signature(path) if path is not None else None
        self.problem = ""
        self._take(token_file.read(path) if path is not None else ())

    async def verify(self, token: str) -> Identity | None:
        return self._known.identify(token, now_ms() / 1000)

    def look(self) -> None:
        """Read the file again if it has changed."""
        if self._path is None or (found := token_file.signature(self._path)) == self._seen:
            return
        self._seen = found
        try:
            entries = token_file.read(self._path)
        except TokenFileError as error:
            self.problem = f"{error}; the tokens read before stay in effect"
            self._stale.set(1)
            narrate(
                log,
                self.problem,
                actor="gateway",
                action="tokens.refused",
                target=str(self._path),
                level=logging.ERROR,
            )
            return
        self._take(entries)
        narrate(
            log,
            f"reads {len(entries)} tokens from its token file",
            actor="gateway",
            action="tokens.read",
            target=str(self._path),
        )

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def _take(self, entries: Sequence[token_file.TokenEntry]) -> None:
        self._known = KnownTokens(self._static, entries)
        self._count.set(len(entries) + bool(self._static))
        self._stale.set(0)
        self.problem = ""


def is_guarded(wanted: GatewaySettings, token: Secret) -> bool:
    """Whether callers have to show who they are: any way to do so is configured."""
    return bool(token) or bool(wanted.tokens_file) or bool(wanted.oidc.issuer)


def oidc(wanted: OidcSettings) -> tuple[Verifier, ...]:
    """None where no issuer is named. Only with one is the library for it loaded. Raises SettingsError."""
    if not wanted.issuer:
        return ()
    from llorch_gateway.issuer_keys import IssuerKeys
    from llorch_gateway.oidc import Oidc

    return (Oidc(wanted, IssuerKeys(wanted, time.monotonic)),)
