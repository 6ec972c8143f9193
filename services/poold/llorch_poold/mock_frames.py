"""The frames of llama-server's completions, as the mock engine sends them.

The mock is also the load source of the benchmarks, so it must cost little: frames are made once and kept.
"""

import time
from typing import Final

import msgspec

LAST_CHUNK: Final = b"0\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def word_frame(index: int, text: str) -> bytes:
    return b'data: {"index":0,"content":"%b","tokens":[%d],"stop":false,"id_slot":-1,"tokens_predicted":%d}\n\n' % (
        text.encode(),
        index,
        index + 1,
    )


_FRAMES: Final[list[bytes]] = []


def frames(first: int, count: int) -> bytes:
    """Frames of words `first` to `first + count - 1`, first at least 1."""
    while len(_FRAMES) < first + count:
        _FRAMES.append(word_frame(len(_FRAMES), f" w{len(_FRAMES)}"))
    return _FRAMES[first] if count == 1 else b"".join(_FRAMES[first : first + count])


def stamped_frames(first: int, count: int) -> bytes:
    text = f" {time.monotonic_ns() // 1000}"
    return b"".join(word_frame(index, text) for index in range(first, first + count))


def weights(word: str, n_probs: int) -> bytes:
    """Every word is sure, and each further one half as likely as the one before."""
    likely = [
        {"id": rank, "token": word if not rank else f" x{rank}", "bytes": None, "logprob": -0.5 * rank}
        for rank in range(n_probs)
    ]
    return msgspec.json.encode([{**likely[0], "top_logprobs": likely}])


def weighed_frame(index: int, word: str, n_probs: int) -> bytes:
    told = weights(word, n_probs)
    return word_frame(index, word).removesuffix(b"}\n\n") + b',"completion_probabilities":%b}\n\n' % told
