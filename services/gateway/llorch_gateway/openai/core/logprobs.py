"""Log-probabilities in the two shapes of OpenAI's interface: of chats, and of text completions."""

from collections.abc import Sequence
from typing import Any, Final

from llorch_gateway.openai.core.request import Asked
from llorch_shared.wire.frames import TokenLogprob


class Weights:
    """Of one answer; text completions count the characters before each token."""

    def __init__(self, asked: Asked) -> None:
        self._chat: Final = asked.chat
        self._offset = 0

    def told(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        if self._chat:
            return {"content": tokens or None, "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.token)
        return {
            "text_offset": offsets,
            "token_logprobs": [token.logprob for token in tokens],
            "tokens": [token.token for token in tokens],
            "top_logprobs": [{each.token: each.logprob for each in token.top_logprobs} for token in tokens],
        }
