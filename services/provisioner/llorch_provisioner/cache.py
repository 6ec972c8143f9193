"""This node's cache folder: where engines and models lie, their indexes, and that only one provisioner owns it.

<cache>/engines.json   <cache>/engines/<package>-<version>-<digest>-<python>/
<cache>/models.json    <cache>/models/pypi/<package>-<version>/<path in the wheel>
<cache>/.staging/      what is being made; swept at start
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from llorch_provisioner.adapters import catalog, files
from llorch_provisioner.adapters.venv import python_tag
from llorch_provisioner.core.failure import Failure
from llorch_provisioner.core.plan import InstallPackage, TakeFromWheel


class Cache:
    """An opened cache folder. Raises Failure when it cannot be used: not writable, owned by another provisioner, or
    with an index that this release does not understand."""

    def __init__(self, root: Path) -> None:
        self.root: Final = files.make_folder(root)
        self._lock: Final = _own(self.root)
        try:
            self.swept: Final = files.sweep(self.root)
            self.engines: Final = catalog.engine_index(self.root / "engines.json")
            self.models: Final = catalog.model_index(self.root / "models.json")
        except BaseException:
            self.close()
            raise

    @property
    def models_folder(self) -> Path:
        return self.root / "models"

    @property
    def engines_folder(self) -> Path:
        return self.root / "engines"

    def engine_folder(self, order: InstallPackage, digest: str) -> Path:
        """Where an environment of that wheel lies; another digest or another Python is another folder."""
        name = f"{order.package.name}-{order.package.version}-{digest[:16]}-{python_tag()}"
        return self.engines_folder / name

    def models_root(self, folder: str) -> Path:
        """The folder of models a request means; empty is ours."""
        return Path(folder).expanduser() if folder else self.models_folder

    def model_file(self, order: TakeFromWheel) -> Path:
        package = order.ref.package
        return self.models_root(order.folder) / "pypi" / f"{package.name}-{package.version}" / order.ref.member

    def close(self) -> None:
        """Give the folder up. Safe to call once; the kernel does the same when the process is killed."""
        os.close(self._lock)


def _own(root: Path) -> int:
    path = root / "provisioner.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Failure(
            f"cannot write in {root}: {error.strerror}", "choose another provisioner.cache_dir, or make it writable"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise Failure(
            f"another provisioner uses {root}", "stop it, or give this one its own provisioner.cache_dir"
        ) from error
    return handle
