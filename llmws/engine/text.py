"""From token ids to the text of a completion: decoding piece by piece, stop strings, and when it is finished.

Knows no model and no tokenizer, only a function from ids to text. Invariant: all state is a function of the ids that
were pushed, so replaying a stream's logged ids rebuilds it, and a stream that was cut at any token says the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from llmws.engine_api import GenerationRequest
from llmws.errors import ModelInvalidError
from llmws.protocol.messages import FinishReason

Decode = Callable[[Sequence[int]], str]
"""Ids to text, special tokens left out; ends in U+FFFD where the ids end inside a character."""

_REPLACEMENT = "\ufffd"
_MAX_PENDING = 64
"""Tokens that may pass without a character boundary. No text does that; noise from a broken model may."""


class Detokenizer:
    """Decodes a stream of ids so that the pieces join to the decoding of all of them.

    Decoders look back: a first word loses its space, a word may end in a suffix, a character spans tokens. So each id
    is decoded in a window that begins with tokens whose text is out already, and only what it adds counts. The window
    moves on at character boundaries; a token costs two short decodings, however long the text.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._context = 0  # tokens at the front of the window, there only to be looked back at
        self._sent = 0  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """Adds an id; returns the text that is certain now, often none."""
        self._window.append(token_id)
        text = self._decode(self._window)
        pending = len(self._window) - self._context
        certain = text if pending > _MAX_PENDING else text.rstrip(_REPLACEMENT)
        piece = certain[self._sent :]
        self._sent = max(self._sent, len(certain))
        if len(certain) < len(text):
            return piece
        if piece or pending > _MAX_PENDING:
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._sent = len(self._decode(self._window))
        elif self._context:
            # A token without text, such as a special one, would only make the window longer.
            self._window.pop()
        return piece

    def flush(self) -> str:
        """The rest, a character cut in half as U+FFFD. Nothing may be pushed after it."""
        return self._decode(self._window)[self._sent :]


class StopStrings:
    """Looks for the first of some strings to be complete in a text that comes in pieces, however it is cut."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Adds text; returns what can no longer be part of a stop string, or is before the one that was `found`."""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.found = True
            self._held = ""
            _, start = min(found)
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back; the text is at its end."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Completion:
    """One request's completion so far, in text.

    The emitted ids are replayed, and whether they end the request is decided again: a server that died between the last
    token and the end of a request must not sample beyond it.

    Args:
        request: its emitted ids and text, stop strings, `ignore_eos` and `max_new_tokens` count.
        decode: of the model's tokenizer.
        eos_ids: end the completion; they have no text.

    Attributes:
        count: ids so far, the emitted ones included.
        finish: why it ended, None while it goes on.

    Raises:
        ModelInvalidError: the emitted text is not what these ids say; another tokenizer has made it.
    """

    def __init__(self, request: GenerationRequest, *, decode: Decode, eos_ids: Container[int]) -> None:
        self._detokenizer = Detokenizer(decode)
        stop = request.sampling.stop or []
        self._stop = StopStrings([stop] if isinstance(stop, str) else stop)
        self._eos_ids: Container[int] = () if request.sampling.ignore_eos else eos_ids
        self._max_new_tokens = request.max_new_tokens
        self._unsent = ""
        self.count = 0
        self.finish: FinishReason | None = None
        for token_id in request.emitted_ids:
            self.push(token_id)
        replayed = self.take()
        if not replayed.startswith(request.emitted_text):
            raise ModelInvalidError("the text sent so far is not what the model's tokenizer makes of its tokens")
        self._unsent = replayed[len(request.emitted_text) :]

    def push(self, token_id: int, *, is_last: bool = False) -> None:
        """Adds a sampled id; after one that `is_last` there is no room. Once there is `finish`, ids only count."""
        self.count += 1
        if self.finish is not None:
            return
        if token_id in self._eos_ids:
            self._end("stop")
            return
        self._unsent += self._stop.push(self._detokenizer.push(token_id))
        if self._stop.found:
            self.finish = "stop"
        elif is_last or self.count >= self._max_new_tokens:
            self._end("length")

    def take(self) -> str:
        """The text that became safe to send since the last call."""
        text, self._unsent = self._unsent, ""
        return text

    def _end(self, finish: FinishReason) -> None:
        self._unsent += self._stop.push(self._detokenizer.flush())
        # Half a character at the end may complete a stop string; then the text stops before it.
        self.finish = "stop" if self._stop.found else finish
        self._unsent += self._stop.flush()
