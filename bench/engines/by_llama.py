"""llama.cpp, through the low-level calls of llama-cpp-python: a contestant's side; see `remote`.

Runs in any interpreter that has `llama_cpp`; imports nothing else of ours than `remote`. Keys and values are float32 as
everybody's are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import llama_cpp
import numpy as np

from bench.engines.remote import serve

_F32 = 0
"""Source: `GGML_TYPE_F32` in ggml.h."""

_BATCH_TOKENS = 2_048
"""The default of llama.cpp."""


class LlamaCpp:
    """Streams that are prefilled together and then decoded a token each a step.

    Args:
        file: in GGUF.
        streams: at once, at most.
        stream_tokens: of each, at most.
    """

    def __init__(self, file: str, streams: str, stream_tokens: str) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp does not read the file")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._streams, self._stream_tokens = int(streams), int(stream_tokens)
        self._batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy ids."""
        context = self._context()
        try:
            return self._generate(context, prompts, new_tokens)
        finally:
            llama_cpp.llama_free(context)

    def _context(self) -> ctypes.c_void_p:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._streams * self._stream_tokens
        params.n_batch = _BATCH_TOKENS
        params.n_seq_max = self._streams
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = _F32
        context: ctypes.c_void_p = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError("llama.cpp makes no context")
        return context

    def _generate(self, context: ctypes.c_void_p, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        at_once = max(1, _BATCH_TOKENS // len(prompts[0]))
        answers: list[list[int]] = []
        for first in range(0, len(prompts), at_once):
            some = prompts[first : first + at_once]
            answers += [[token] for token in self._step(context, some, first_stream=first, position=0)]
        for index in range(new_tokens - 1):
            last = [answer[-1:] for answer in answers]
            tokens = self._step(context, last, first_stream=0, position=len(prompts[0]) + index)
            for answer, token in zip(answers, tokens, strict=True):
                answer.append(token)
        return answers

    def _step(
        self, context: ctypes.c_void_p, parts: Sequence[Sequence[int]], *, first_stream: int, position: int
    ) -> list[int]:
        """Decodes a part of each of some streams; the likeliest next id of each."""
        batch, last = self._batch, []
        batch.n_tokens = 0
        for stream, part in enumerate(parts, first_stream):
            for offset, token in enumerate(part):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, position + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, stream
                batch.logits[at] = offset == len(part) - 1
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
        if (code := llama_cpp.llama_decode(context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        return [self._likeliest(context, at) for at in last]

    def _likeliest(self, context: ctypes.c_void_p, at: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(context, at)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax())


def main() -> None:
    """`python -m bench.engines.by_llama FD FILE STREAMS STREAM_TOKENS`."""
    fd, *arguments = sys.argv[1:]
    llama = LlamaCpp(*arguments)
    serve(int(fd), {"generate": llama.generate})


if __name__ == "__main__":
    main()
