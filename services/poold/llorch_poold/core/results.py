"""Results of workloads with inputs as the texts of their tokens: JSON objects that name their input.

    {"index":0,"embedding":[…],"tokens_in":7}        {"index":0,"relevance_score":…,"tokens_in":9}

`tokens_in` is the engine's count of that input, so that a later attempt, which goes on behind what was sent, knows what
the earlier ones have read. Engines compute in single precision: nine digits are exactly the number that they had.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec


class _Counted(msgspec.Struct):
    tokens_in: int = 0


_COUNTED: Final = msgspec.json.Decoder(_Counted)


def embedding_text(index: int, vector: Sequence[float], tokens_in: int) -> str:
    numbers = ",".join(["%.9g" % number for number in vector])  # noqa: UP031  (half the time of format)
    return f'{{"index":{index},"embedding":[{numbers}],"tokens_in":{tokens_in}}}'


def score_text(index: int, score: float, tokens_in: int) -> str:
    return f'{{"index":{index},"relevance_score":{score:.9g},"tokens_in":{tokens_in}}}'


def tokens_read(texts: Iterable[str]) -> int:
    """Tokens of the inputs that these results are of; a text that is no result counts none."""
    count = 0
    for text in texts:
        try:
            count += _COUNTED.decode(text).tokens_in
        except msgspec.DecodeError:
            continue
    return count
