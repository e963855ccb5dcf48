"""Faults of the paged decode kernels, and of what leads to them."""

from mutants.planted import Mutant

DECODE = "llmws/engine/triton_decode.py"
GRAPHS = "llmws/engine/graphs.py"
REPLAYS = "tests/unit/engine/test_graphs.py"
TESTS = "tests/integration/engine/test_triton_decode.py"

MUTANTS = [
    Mutant("a window is one token too wide", DECODE,
           "start = tl.maximum(length - window, 0)", "start = tl.maximum(length - window - 1, 0)", TESTS),
    Mutant("a window does not move the first tile", DECODE,
           "begin = first + split * tiles", "begin = split * tiles", TESTS),
    Mutant("positions are looked up in the wrong page", DECODE,
           "+ position // PAGE_TOKENS,", "+ (position + 1) // PAGE_TOKENS,", TESTS),
    Mutant("the last position is not seen", DECODE,
           "(position < length)", "(position < length - 1)", TESTS),
    Mutant("query heads go to another KV head", DECODE,
           "head = kv_head * GROUP + in_group", "head = in_group * kv_heads + kv_head", TESTS),
    Mutant("what was summed before a higher score is not scaled down", DECODE,
           "mixed = mixed * shrunk[:, None] + tl.dot", "mixed = mixed + tl.dot", TESTS),
    Mutant("the softmax's denominator is not scaled down", DECODE,
           "total = total * shrunk +", "total = total +", TESTS),
    Mutant("the softcap is twice as soft", DECODE,
           "tl.sigmoid(2.0 * scores / SOFTCAP)", "tl.sigmoid(scores / SOFTCAP)", TESTS),
    Mutant("sinks take no share", DECODE,
           "whole += tl.exp(tl.load(sinks + head).to(tl.float32) - highest)", "whole += 0.0", TESTS),
    Mutant("padding divides by nothing", DECODE,
           "tl.where(whole > 0.0, whole, 1.0)", "whole", TESTS),
    Mutant("the parts are merged without their weights", DECODE,
           "tl.sum(part * weights[:, None], axis=0)", "tl.sum(part, axis=0)", TESTS),
    Mutant("the end of an odd head is read from its neighbour", DECODE,
           "mask=seen[:, None] & (in_key[None, :] < KEY_DIM),", "mask=seen[:, None],", TESTS),
    Mutant("values that are wider than a program's part are cut off", DECODE,
           "tl.program_id(2) * BLOCK_VALUE + tl.arange", "tl.arange", TESTS),
    Mutant("beside a prompt, decodes do not see their own token", "llmws/engine/paged.py",
           "lengths = [each.start + 1 for each in slices]", "lengths = [max(1, each.start) for each in slices]", TESTS),
    Mutant("alone, decodes do not see their own token", "llmws/engine/fast.py",
           "[each.start + 1 for each in slices]", "[max(1, each.start) for each in slices]", TESTS),
    Mutant("padding keeps the lengths of earlier streams", GRAPHS,
           "        numbers[1, count:bucket] = 0\n", "", REPLAYS),
    Mutant("padding writes where earlier streams wrote", GRAPHS,
           "torch.where(self.lengths > 0, pages * page_tokens + positions % page_tokens, 0)", "pages * page_tokens + positions % page_tokens", REPLAYS),
    Mutant("a table that grows is not followed", GRAPHS,
           "known is not table or done < len(table)", "known is not table", REPLAYS),
    Mutant("a new stream's table continues the old one's", GRAPHS,
           "begin = done if known is table else 0", "begin = done", REPLAYS),
    Mutant("a recording keeps the tensors of another size", GRAPHS,
           "if bucket not in self._replays:", "if not self._replays:", REPLAYS),
]  # fmt: skip
