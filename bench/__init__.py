"""What the session path costs on this machine: `python -m bench`, or `make bench`; about two minutes.

One file measures one family of figures; each has a `measure` that is given an empty folder and returns figures:

- `starting`: the real command, from its start to its listening socket.
- `streaming`: CPU a message of fifty and five hundred streams, against an echo server and against a store in memory.
- `latency`: how late tokens and the event loop are while an engine holds the interpreter.
- `resuming`: a client that comes back, to a session in memory and to one on disk.
- `memory`: what an idle connection, a detached session and a client that never reads take.

They share `servers` (the measured processes), `engine` (the one that is put into them), `client` (who loads them) and
`figures` (medians, targets, the table); `__main__` runs them. Knows no verdict but the word beside a figure. Invariant:
a ratio compares processes that live side by side and are loaded in turn, by the same client, in the same run. CPU is
counted in seconds of the measured process, because the machine may be busy with other things.
"""
