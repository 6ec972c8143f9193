"""How long prompts and answers are: distributions over tokens, drawn from a given source of chance."""

from math import log
from random import Random

import msgspec


class Fixed(msgspec.Struct, frozen=True, tag="fixed"):
    tokens: int

    def draw(self, _dice: Random) -> int:
        return self.tokens


class Exponential(msgspec.Struct, frozen=True, tag="exponential"):
    """Mean in tokens, rounded to whole ones, at least one."""

    mean: float

    def draw(self, dice: Random) -> int:
        return round(dice.expovariate(1 / self.mean)) or 1


class LogNormal(msgspec.Struct, frozen=True, tag="lognormal"):
    """Half of the draws lie below `median`; `sigma` is the spread of the logarithm; cut at `most`."""

    median: float
    sigma: float
    most: int

    def draw(self, dice: Random) -> int:
        tokens = round(dice.lognormvariate(log(self.median), self.sigma)) or 1
        return tokens if tokens < self.most else self.most


Sizes = Fixed | Exponential | LogNormal
