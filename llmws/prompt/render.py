"""A job to its answer: rendering, tokenising and making the context fit.

Pure but for the tokenizer it is handed: no process, no files, no clock of its own. Invariant: `render` answers every
job; the ids that it returns are at least one and fewer than `max_context`.

A system turn that the template has no place for (Gemma's raises) is not folded into the user's text: the job fails with
the template's own words. Folding would say to the model what nobody wrote, and would do so silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from llmws.engine_api import MAX_IMAGES, PromptFailed, PromptJob, PromptReady, Turn
from llmws.errors import PromptError
from llmws.prompt.limits import MAX_CONTENT_BYTES
from llmws.prompt.model_text import ModelText
from llmws.protocol import ErrorCode


def render(job: PromptJob, model: ModelText) -> PromptReady | PromptFailed:
    """The token ids of a job, or why there are none."""
    try:
        if job.input_ids is not None:
            turns: Sequence[Turn] = job.turns
            ids = _checked(job.input_ids, model.vocab_size)
        else:
            ids, turns = _fitted(job, model)
            if ids and max(ids) >= model.vocab_size:
                # Out of the embedding's bounds, it would be an error of the whole device.
                message = f"the model's tokenizer made id {max(ids)}; the model's vocabulary has {model.vocab_size} ids"
                raise PromptError(ErrorCode.MODEL_FAILED, message)
        if not ids:
            raise PromptError(ErrorCode.MODEL_FAILED, "the prompt is empty")
        if (images := _images(turns)) > MAX_IMAGES:
            raise PromptError(ErrorCode.CONTEXT_TOO_LONG, f"the prompt has {images} images; {MAX_IMAGES} are taken")
        # How many tokens images take is an estimate until the engine sees them: it drops turns, but refuses nobody.
        if len(ids) >= job.max_context:
            raise _too_long(len(ids), job.max_context)
    except PromptError as error:
        return PromptFailed(key=job.key, code=error.code, message=str(error))
    return PromptReady(key=job.key, ids=tuple(ids), images=images, dropped_turns=len(job.turns) - len(turns))


def tokenize(turns: Sequence[Turn], model: ModelText) -> list[int]:
    """The ids of a conversation, equal to `apply_chat_template(…, add_generation_prompt=True)`; an image takes one.

    Without a template: of the contents one after another, as the tokenizer encodes a plain text.

    Raises:
        PromptError: the template refuses or fails, or the text is too long.
    """
    if not turns:
        return []
    if model.template is not None:
        if _images(turns):
            # A text that says how an image is written shows none.
            turns = [msgspec.structs.replace(turn, content=model.spelled(turn.content)) for turn in turns]
        return model.tokenize_rendered(model.template.render(turns))
    return model.tokenize("".join(turn.content for turn in turns), special_tokens=True)


def _fitted(job: PromptJob, model: ModelText) -> tuple[list[int], Sequence[Turn]]:
    """The ids, and the turns that are left so that `reserve` tokens are free, or else the last exchange."""
    head, exchanges = _split(job.turns)
    first = _first_within(exchanges, limit_bytes=MAX_CONTENT_BYTES - _bytes(head)) if job.droppable else 0
    _check_bytes(head, exchanges[first:])
    room = job.max_context - job.reserve
    fitting: dict[int, list[int]] = {}

    def turns_from(start: int) -> tuple[Turn, ...]:
        return (*head, *(turn for exchange in exchanges[start:] for turn in exchange))

    def fits(start: int) -> bool:
        turns = turns_from(start)
        ids = tokenize(turns, model)
        if is_fitting := _length(ids, turns, job) <= room:
            fitting[start] = ids
        return is_fitting

    ids, start, last = tokenize(turns_from(first), model), first, len(exchanges) - 1
    length = _length(ids, turns_from(first), job)
    if job.droppable and first < last and length > room:
        guess = _guess(exchanges, first, excess=1 - room / length)
        start = smallest(fits, first + 1, last, guess)
        ids = fitting[start] if start in fitting else tokenize(turns_from(start), model)
    return ids, turns_from(start)


def _images(turns: Sequence[Turn]) -> int:
    return sum(turn.images for turn in turns)


def _length(ids: Sequence[int], turns: Sequence[Turn], job: PromptJob) -> int:
    """About as many tokens as the prompt has once each image is as many as it takes."""
    return len(ids) + _images(turns) * max(0, job.image_tokens - 1)


def _split(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], list[list[Turn]]]:
    """A leading system turn, and the exchanges: each a user turn with what answered it."""
    head = tuple(turns[:1]) if turns and turns[0].role == "system" else ()
    exchanges: list[list[Turn]] = []
    for turn in turns[len(head) :]:
        if turn.role == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    return head, exchanges


def _bytes(exchange: Sequence[Turn]) -> int:
    return sum(len(turn.content.encode()) for turn in exchange)


def _first_within(exchanges: Sequence[Sequence[Turn]], *, limit_bytes: int) -> int:
    """The first exchange from which on text and images are no more than may be; at most the last one."""
    total_bytes = images = 0
    for index in range(len(exchanges) - 1, -1, -1):
        total_bytes += _bytes(exchanges[index])
        images += _images(exchanges[index])
        if total_bytes > limit_bytes or images > MAX_IMAGES:
            return min(index + 1, len(exchanges) - 1)
    return 0


def _check_bytes(head: Sequence[Turn], exchanges: Sequence[Sequence[Turn]]) -> None:
    total = _bytes(head) + sum(map(_bytes, exchanges))
    if total > MAX_CONTENT_BYTES:
        raise PromptError(
            ErrorCode.CONTEXT_TOO_LONG, f"the prompt has {total} bytes; at most {MAX_CONTENT_BYTES} are taken"
        )


def _guess(exchanges: Sequence[Sequence[Turn]], first: int, *, excess: float) -> int:
    """The exchange before which about the share `excess` of the text from `first` on lies."""
    remaining = excess * sum(map(_bytes, exchanges[first:]))
    for index in range(first, len(exchanges)):
        if remaining <= 0:
            return index
        remaining -= _bytes(exchanges[index])
    return len(exchanges) - 1


def smallest(fits: Callable[[int], bool], low: int, high: int, guess: int) -> int:
    """The smallest number in low..high that fits; `high`, which is never asked about, if none below it does.

    `fits` is false up to a point and true after it. A right guess takes two questions, a wrong one O(log n): away from
    it in doubling steps until the answer lies between two that were asked about, then by halves.
    """
    below, above, probe, step = low - 1, high, guess, 1
    while above - below > 1:
        probe = min(max(probe, below + 1), above - 1)
        if fits(probe):
            above, direction = probe, -1
        else:
            below, direction = probe, 1
        bracketed = below >= low and above < high
        probe = (below + above) // 2 if bracketed else probe + direction * step
        step *= 2
    return above


def _checked(ids: Sequence[int], vocab_size: int) -> Sequence[int]:
    for index, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise PromptError(
                ErrorCode.MODEL_FAILED, f"input_ids[{index}] is {token}; the model's vocabulary has {vocab_size} ids"
            )
    return ids


def _too_long(length: int, max_context: int) -> PromptError:
    return PromptError(
        ErrorCode.CONTEXT_TOO_LONG,
        f"the prompt has {length} tokens; the model's context is {max_context}, of which one is for the answer",
    )
