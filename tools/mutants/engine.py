"""Faults of what every engine promises."""

from mutants.planted import Mutant

ENGINE = "tests/contract/engine/test_engine.py::"
SAMPLER = "tests/property/test_sampler.py"

MUTANTS = [
    Mutant("an engine runs ahead of whoever listens", "llmws/engine/mailbox.py",
           "self._closed or len(self._steps) < self._capacity", "True", ENGINE + "test_an_engine_that_nobody_listens_to_stops"),
    Mutant("a take tells a request's steps one by one", "llmws/engine/mailbox.py",
           "            if at == len(merged):", "            if True:", ENGINE + "test_a_take_holds_one_chunk_of_a_request"),
    Mutant("a cancel is not heard", "llmws/engine/worker.py",
           "if self._running.pop(key, None) is not None and", "if self._running.get(key) is None and", ENGINE + "test_a_cancelled_stream_falls_silent_within_one_step"),
    Mutant("a failed load takes the old model with it", "llmws/engine/worker.py",
           "        if self._runner is not None or old is None or self._loader is None:\n            return old", "        return None", ENGINE + "test_a_failed_load_says_what_is_kept_and_that_goes_on"),
    Mutant("a load does not wait for what came before", "llmws/engine/worker.py",
           "if not self._running and not events:", "if True:", ENGINE + "test_loads_and_requests_keep_their_order"),
    Mutant("a continuation counts its tokens from zero", "llmws/engine/worker.py",
           "self._index = len(request.emitted_ids)", "self._index = 0", ENGINE + "test_a_stream_that_is_cut_at_any_token_goes_on_alike"),
    Mutant("equals are drawn from as topk happens to return them", "llmws/engine/draw.py",
           ".long().mul_(2**32).sub_(ids)", ".long().mul_(2**32).sub_(torch.arange(ids.shape[1]).flip(0))", SAMPLER),
    Mutant("a block too few is looked into", "llmws/engine/draw.py",
           "_first(body.amax(2), blocks, count)", "_first(body.amax(2), blocks, max(1, count - 1))", SAMPLER),
    Mutant("the ids after the last whole block are forgotten", "llmws/engine/draw.py",
           "torch.cat([_parts(_ids_of(_first(maxima, blocks, count)), _PART), ids], dim=1)", "_parts(_ids_of(_first(maxima, blocks, count)), _PART)", SAMPLER),
    Mutant("the noise does not depend on the position", "llmws/engine/draw.py",
           "(mix64(seed) + position * _GAMMA)", "(mix64(seed) + 0 * position)", SAMPLER),
    Mutant("a row's filters are its neighbour's", "llmws/engine/draw.py",
           "within = ranks < limits", "within = ranks < limits.roll(1, 0)", SAMPLER),
    Mutant("top-p counts what top-k left out", "llmws/engine/draw.py",
           "scores.masked_fill(~within, -_INFINITY)", "scores", SAMPLER),
    Mutant("a NaN is passed over", "llmws/engine/draw.py",
           "nan=_INFINITY, posinf", "nan=-_INFINITY, posinf", SAMPLER),
    Mutant("the answers of a mixed batch come in the order of its groups", "llmws/engine/sampler.py",
           "[by_row[row] for row in range(len(requests))]", "list(by_row.values())", SAMPLER),
    Mutant("a row without use counts as a token", "llmws/engine/sampler.py",
           "                outcomes.append(ModelInvalidError", "                self._requests[key].append(0)\n                outcomes.append(ModelInvalidError", SAMPLER),
    Mutant("penalties go to the row before", "llmws/engine/penalties.py",
           "torch.arange(rows) * width", "(torch.arange(rows) - 1).clamp(min=0) * width", SAMPLER),
    Mutant("what prompt and answer share is penalised twice", "llmws/engine/penalties.py",
           "1.0 if token_id in self._prompt_ids else self._repetition", "self._repetition", SAMPLER),
    Mutant("log-probabilities are those after bias and penalties", "llmws/engine/sampler.py",
           "part = part.to(torch.float32, copy=part is logits)", "part = part.to(torch.float32)", SAMPLER),
]  # fmt: skip
