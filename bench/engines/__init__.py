"""What a token costs, against what else serves the same model: `python -m bench.engines`, or `make bench-engine`.

Three rounds take about a quarter of an hour of an idle machine, `--rounds 1` a third of that.

Everyone serves one random Llama in float32 on one thread, in a process that lives through the whole run, and is asked
in turn for the same greedy streams; the figure is tokens per second of the serving process's CPU. Ratios are taken
round by round.

- `workload`: the model's shape, the prompts, how much is asked.
- `model`, `gguf_file`: the model's folder, and the same weights for llama.cpp.
- `remote`: one contestant, in a process and an interpreter of its own.
- `by_transformers`, `by_llama`, `by_llmws`: the contestants' side of that.
- `serving`: the two servers, and clients of both.
- `contestants`: who takes part on this machine.
- `comparing`: from answers to ratios and targets.
- `alone`: what is measured of our engine by itself.

Knows no verdict but the word beside a figure. Invariant: whoever is compared gives the tokens that `generate()` gives,
or the table says so.
"""
