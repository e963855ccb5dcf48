"""What the engine reaches on a GPU: `python -m bench.gpu`, or `make bench-gpu`; minutes, and no longer than it is told.

Runs where nothing but the packages of the engine is installed. Models have the shapes of real ones and random weights.

- `kernels`: the decode kernels against the textbook, and against the bandwidth of the device's memory.
- `shapes`: models of real shapes, written to folders.
- `streams`: our engine, from its loader to its steps.
- `others`: what transformers does with the same folder.
- `deadline`: what is left out when time is short.

Knows no verdict but the word beside a figure. Invariant: what is compared runs in the same process, one after the
other, on weights from the same files.
"""
