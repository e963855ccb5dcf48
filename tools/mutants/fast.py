"""Faults of the fast tier: its attention, its batches, its steps and its self-check."""

from mutants.planted import Mutant

FAMILIES = "tests/integration/engine/test_families.py::"
TIER = FAMILIES + "test_its_tier_is_that_of_what_it_can_do"
"""The self-check finds most faults at the load, and the model is served in the other tier."""
BATCH = FAMILIES + "test_in_a_batch_of_eight"
CHECK = "tests/integration/engine/test_selfcheck.py"
LAYERS = "tests/integration/engine/test_linears.py"
FAULTS = "tests/integration/engine/test_isolation.py"
ATTENTION, PAGED, FAST = "llmws/engine/attention.py", "llmws/engine/paged.py", "llmws/engine/fast.py"
SELFCHECK, LINEARS = "llmws/engine/selfcheck.py", "llmws/engine/linears.py"

MUTANTS = [
    Mutant("a query sees the token after its own", ATTENTION,
           "mask = others <= at\n", "mask = others <= at + 1\n", f"{TIER}[llama] {BATCH}[llama]"),
    Mutant("a query sees a token less than its window", ATTENTION,
           "others > at - self._window", "others > at - self._window + 1", f"{TIER}[mistral] {BATCH}[mistral]"),
    Mutant("scores are not capped", ATTENTION,
           "torch.tanh(scores / self._softcap) * self._softcap", "scores", f"{TIER}[gemma2] {BATCH}[gemma2]"),
    Mutant("sinks are left out", ATTENTION,
           "        if self._sinks is not None:\n            sinks =", "        if False:\n            sinks =", f"{TIER}[gpt-oss] {BATCH}[gpt-oss]"),
    Mutant("values go where keys of another layer are", ATTENTION,
           "pool.keys[slot], pool.values[slot]", "pool.keys[slot], pool.values[0]", f"{TIER}[llama] {BATCH}[llama]"),
    Mutant("a window that the code ignores is believed", ATTENTION,
           "    if window != batch.window:\n", "    if sliding_window is not _UNSAID and window != batch.window:\n", CHECK),
    Mutant("a window's first page is cut off", PAGED,
           "table[first // size : -(-end // size)]", "table[-(-first // size) : -(-end // size)]", f"{TIER}[gemma3] {BATCH}[gemma3]"),
    Mutant("positions begin at nought in every chunk", PAGED,
           "positions += range(each.start, each.start + len(each.ids))", "positions += range(len(each.ids))", f"{TIER}[llama] {BATCH}[llama]"),
    Mutant("a chunk's keys all go to its first page", PAGED,
           "table[at // size] * size + at % size for at", "table[each.start // size] * size + at % size for at", f"{TIER}[llama] {BATCH}[llama]"),
    Mutant("one stream's fault ends all of the step", FAST,
           "            if len(slices) == 1:\n", "            if True:\n", FAULTS),
    Mutant("what failed is found again as if it had been computed", FAST,
           "            if isinstance(outcome, LlmwsError):\n                self.free(key)\n", "", FAULTS),
    Mutant("an error keeps the memory of its step", FAST,
           "error.with_traceback(None)", "error", CHECK),
    Mutant("a refused start stays in the schedule", FAST,
           "            self._scheduler.free(request.key)\n            raise\n", "            raise\n", FAULTS + " " + CHECK),
    Mutant("a freed stream's sampler stays", FAST,
           "        self._sampler.remove(key)\n", "", FAULTS),
    Mutant("the model is not looked at beside a far stream", SELFCHECK,
           "shift if each.key == str(_FAR) else 0", "0", CHECK),
    Mutant("a refused model keeps the fast attention", SELFCHECK,
           "        network.set_attn_implementation(before)\n", "", CHECK),
    Mutant("a refused model keeps its weights twice", SELFCHECK,
           "            network.tie_weights()\n", "", CHECK),
    Mutant("a packed layer forgets its bias", LINEARS,
           "self._weight, self.bias, ", "self._weight, None, ", LAYERS),
    Mutant("rows that were filled up are answered too", LINEARS,
           "[..., :-missing, :]", "[..., missing:, :]", LAYERS),
]  # fmt: skip
