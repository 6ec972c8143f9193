"""Reads the header of a GGUF file: sizes for the VRAM plan. Arrays are skipped, so a large tokenizer costs little."""

import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

from llorch_poold.core.vram import ModelFacts

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING: Final = 8
_ARRAY: Final = 9
_STRING_BYTES_MAX: Final = 16 * 1024 * 1024
_ENTRIES_MAX: Final = 1_000_000
_ARRAY_ITEMS_MAX: Final = 10_000_000


class NotGguf(ValueError):
    """The file is not a GGUF model, or it is damaged."""


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file: Final = file

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        data = self._file.read(size)
        if len(data) < size:
            raise NotGguf("the header ends too early")
        return struct.unpack(code, data)[0]

    def text(self) -> str:
        length = self.scalar("<Q")
        if length > _STRING_BYTES_MAX:
            raise NotGguf(f"a header string of {length} bytes")
        return self._file.read(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A scalar or string; for an array its length."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._skip_array()
        raise NotGguf(f"unknown value type {kind}")

    def _skip_array(self) -> int:
        kind, count = self.scalar("<I"), int(self.scalar("<Q"))
        if count > _ARRAY_ITEMS_MAX:
            raise NotGguf(f"an array of {count} items")
        if kind in _SCALARS:
            self._file.seek(count * struct.calcsize(_SCALARS[kind]), 1)
        elif kind == _STRING:
            for _ in range(count):
                length = self.scalar("<Q")
                self._file.seek(length, 1)
        else:
            raise NotGguf(f"an array of type {kind}")
        return count

    def position(self) -> int:
        return self._file.tell()


def read_facts(path: Path) -> ModelFacts:
    """Raises NotGguf, OSError. Blocking: call it in a thread."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise NotGguf(f"{path.name} is not a GGUF file")
        reader = _Reader(file)
        version = reader.scalar("<I")
        if version not in (2, 3):
            raise NotGguf(f"GGUF version {version} is not known")
        tensors, entries = reader.scalar("<Q"), reader.scalar("<Q")
        if entries > _ENTRIES_MAX or tensors > _ENTRIES_MAX:
            raise NotGguf("the header counts are not plausible")
        meta: dict[str, Any] = {}
        for _ in range(entries):
            key = reader.text()
            meta[key] = reader.value(reader.scalar("<I"))
        for _ in range(tensors):
            reader.text()
            for _ in range(reader.scalar("<I")):
                reader.scalar("<Q")
            reader.scalar("<I")
            reader.scalar("<Q")
        return _facts(meta, weights_bytes=size - reader.position())


def _facts(meta: dict[str, Any], *, weights_bytes: int) -> ModelFacts:
    family = str(meta.get("general.architecture", ""))

    def number(key: str, default: int = 0) -> int:
        value = meta.get(f"{family}.{key}", default)
        return int(value) if isinstance(value, int | float) else default

    n_embd, n_head, n_layer = number("embedding_length"), number("attention.head_count"), number("block_count")
    if not (family and n_embd and n_head and n_layer):
        raise NotGguf("the header lacks the model's sizes")
    return ModelFacts(
        weights_bytes=weights_bytes,
        n_layer=n_layer,
        n_embd=n_embd,
        n_ff=number("feed_forward_length", 4 * n_embd),
        n_head=n_head,
        n_head_kv=number("attention.head_count_kv", n_head),
        key_length=number("attention.key_length", n_embd // n_head),
        value_length=number("attention.value_length", n_embd // n_head),
        n_vocab=number("vocab_size") or int(meta.get("tokenizer.ggml.tokens", 0)),
        n_ctx_train=number("context_length"),
    )
