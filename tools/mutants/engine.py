"""Faults of what every engine promises."""

from mutants.planted import Mutant

ENGINE = "tests/contract/engine/test_engine.py::"

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
]  # fmt: skip
