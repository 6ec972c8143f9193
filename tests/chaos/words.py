"""What the engines said for one task, by index of its stream. Pure.

A task that lost its engine is generated again: a strict one from its beginning, with the same words; a sampled one from
its prompt and the text so far, or anew behind it. Where one generation ends in the stream and the next begins cannot be
seen from the engines, which may have said more than was sent. So the streams are followed: each token must be the next
word of the generation that is being told, or the first word of one that an engine began with exactly what had been said
until there. What nobody began is nobody's words.
"""

from collections.abc import Sequence
from itertools import count, takewhile
from typing import NamedTuple

from chaos.evidence import Story
from chaos.history import Tokens
from llorch_poold.mock_text import text_of
from llorch_shared.wire.task import Determinism, Failover


class Words(NamedTuple):
    """`anew`: indices at which the output was begun anew."""

    words: list[str]
    anew: tuple[int, ...] = ()


def engine_words(story: Story) -> Words:
    """Followed along the longest telling, the token log first; to the end of the last generation told. Empty when no
    engine has begun the task. Of a real engine: what it says when nothing is broken."""
    if story.words is not None:
        return Words(story.words)
    return max((_follow(story, told) for told in _tellings(story)), key=lambda each: each[0])[1]


def is_sampled(story: Story) -> bool:
    return story.request is not None and story.request.determinism is not Determinism.STRICT


def _tellings(story: Story) -> list[list[str]]:
    log = story.stream.texts
    readers = [
        [text for entry in entries if isinstance(entry, Tokens) for text in entry.texts]
        for entries in story.readers.values()
    ]
    return [[log[index] for index in takewhile(log.__contains__, count())], *readers]


def _follow(story: Story, told: Sequence[str]) -> tuple[int, Words]:
    """How far the engines' words agree with what was told, and all that they say then."""
    begun = [generation.behind for generation in story.generations]
    restarts = story.request is not None and story.request.failover is Failover.RESTART
    current, said = _said(story, ""), 0
    words: list[str] = []
    anew: list[int] = []
    for text in told:
        if said < len(current) and current[said] == text:
            said += 1
        else:
            behind = "" if restarts else "".join(words)
            times = len(anew) + 2 if restarts else 1
            following = _said(story, behind)
            if not is_sampled(story) or begun.count(behind) < times or following[:1] != [text]:
                break
            if restarts:
                anew.append(len(words))
            current, said = following, 1
        words.append(text)
    return len(words), Words(words + current[said:], tuple(anew))


def _said(story: Story, behind: str) -> list[str]:
    """All words of the generation that was given `behind` after the task's prompt."""
    same = [generation for generation in story.generations if generation.behind == behind]
    if not same or story.request is None or story.request.prompt is None:
        return []
    longest = max(same, key=lambda generation: generation.total)
    return [f" {word}" for word in text_of(story.request.prompt + behind, longest.seed, longest.total).split()]
