"""Logs that narrate: one line per thing that happened, JSON Lines by default, never one per token.

`narrate()` writes a short sentence for people beside stable fields (actor, action, target and ids) for machines
(ORCH-3300..3311). What could be a secret is masked before it reaches a handler.
"""

import json
import logging
import re
import sys
import time
from typing import Any, Final

import msgspec

_RESERVED: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_SECRET_NAMES: Final = frozenset({"authorization", "x-api-key", "api_key", "token", "auth_token", "password", "secret"})
_SECRETS: Final = re.compile(
    r"(?i)(bearer\s+|authorization[\"']?\s*[:=]\s*[\"']?(?:[a-z]+\s+)?|x-api-key[\"']?\s*[:=]\s*[\"']?"
    r"|(?:token|password|secret|api_key)(?:=|[\"']\s*:\s*)[\"']?)"
    r"[^\s\"'&,;]+"
)
_SECRET_MARKS: Final = re.compile(r"[\s:=]")
"""Every secret above follows one of these: ids and names, most of what is logged, are done after one short search."""
_URL_CREDENTIALS: Final = re.compile(r"(?<=://)(?:[^\s/@]+|[^\s/@:]*:[^\s@\"',]*)(?=@)")
"""Users, too: a token may stand there. A password may hold a slash, although it should not."""


def redact(text: str) -> str:
    """Mask credentials of headers, API keys, `password=…` and the like, and credentials in URLs."""
    if _SECRET_MARKS.search(text) is None:
        return text
    return _URL_CREDENTIALS.sub("***", _SECRETS.sub(r"\1***", text))


def _masked(value: Any, name: str = "") -> Any:
    """`value` fit for a log line: every text in it redacted, what is no JSON as text."""
    if isinstance(value, str):
        return "***" if name.lower() in _SECRET_NAMES else redact(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item) for item in value]
    return redact(str(value))


class JsonLines(logging.Formatter):
    """One JSON object a line, fields of `extra` beside the fixed ones."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "human": redact(record.getMessage()),
        }
        for key, value in record.__dict__.items():
            if key not in _RESERVED and value not in (None, ""):
                line[key] = _masked(value, key)
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        try:
            return msgspec.json.encode(line).decode()
        except (UnicodeEncodeError, OverflowError):
            return json.dumps(line)  # lone surrogates of a file name, or a number beyond 64 bits


class Pretty(logging.Formatter):
    """For a terminal: time, service, sentence."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname[:4].lower()} {self._service:<11} {redact(record.getMessage())}"
        if record.exc_info:
            text += "\n" + redact(self.formatException(record.exc_info))
        return text


def configure(service: str, *, level: str = "info", style: str = "json") -> None:
    """Send every log line of this process to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service) if style == "json" else Pretty(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("nats", "httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def narrate(
    log: logging.Logger,
    human: str,
    *,
    actor: str,
    action: str,
    target: str = "",
    level: int = logging.INFO,
    **fields: Any,
) -> None:
    """One sentence (present tense, up to about 100 characters) with its taxonomy and ids."""
    log.log(level, human, extra={"actor": actor, "action": action, "target": target, **fields})
