"""Tiny wheels made on the fly, and where the real pip fetches them from: a folder, or a slow index on loopback."""

import base64
import hashlib
import os
import random
import stat
import threading
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress, the same in every run."""
    return random.Random(seed).randbytes(size)


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    files: Mapping[str, bytes] | None = None,
    *,
    links: Mapping[str, str] | None = None,
) -> Path:
    """A pure wheel that pip installs. `links` are members that a zip marks as symbolic links to their value."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    members = {f"{module}/__init__.py": f"__version__ = {version!r}\n".encode(), **(files or {})}
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{path},{_record(data)},{len(data)}\n" for path, data in members.items())
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        for member, target in (links or {}).items():
            link = zipfile.ZipInfo(member)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, target)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path


def pip_from_folder(folder: Path) -> dict[str, str]:
    """Environment in which pip sees only that folder, whatever this machine is configured to."""
    return {**_without_pip_settings(), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def pip_from_index(url: str) -> dict[str, str]:
    """Environment in which pip sees only that index, and gives up at the first trouble."""
    settings = {"PIP_INDEX_URL": url, "PIP_RETRIES": "0", "PIP_RESUME_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "30"}
    return {**_without_pip_settings(), **settings}


class SlowIndex:
    """A package index on loopback. Of each wheel it sends half; then it waits for `release()`, or hangs up when
    `truncate` is set."""

    def __init__(self, folder: Path, *, truncate: bool = False) -> None:
        self._folder = folder
        self._truncate = truncate
        self._released = threading.Event()
        self.half_sent = threading.Event()
        self.downloads = 0
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/simple"

    def release(self) -> None:
        """Send everything from now on."""
        self._released.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rstrip("/").rpartition("/")[2]
        wheel = self._folder / name
        if name.endswith(".whl") and wheel.is_file():
            self._send_wheel(request, wheel.read_bytes())
            return
        links = "".join(f'<a href="/files/{path.name}">{path.name}</a>\n' for path in self._folder.glob("*.whl"))
        body = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        self._head(request, "text/html", len(body))
        request.wfile.write(body)

    def _send_wheel(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        self.downloads += 1
        self._head(request, "application/octet-stream", len(data))
        try:
            request.wfile.write(data[: len(data) // 2])
            request.wfile.flush()
            self.half_sent.set()
            if self._truncate:
                request.close_connection = True
                return
            self._released.wait(60)
            request.wfile.write(data[len(data) // 2 :])
        except OSError:
            request.close_connection = True

    @staticmethod
    def _head(request: BaseHTTPRequestHandler, kind: str, length: int) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(length))
        request.end_headers()


def _record(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _without_pip_settings() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}
