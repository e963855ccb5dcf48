"""Engines: what turns token ids into streams. Importing this package imports neither torch nor transformers.

| module | owns |
|---|---|
| `local` | `LocalEngine`, the engine of this machine, put together from the rest |
| `worker` | the one thread that owns the device: loads, admission, steps, the end of every stream |
| `mailbox` | the way from that thread to the event loop |
| `runner` | what the worker needs of a loaded model; a batched tier would be another `Runner` |
| `text`, `sampler` | ids to text and finish; logits to ids. Both can be replayed |
| `fallback` | any transformers causal model as a `Runner` |
| `loading`, `weights`, `digest`, `devices` | from a folder to a runner: what is read, how it is named, where it goes |
| `memory`, `measure` | what a context costs, by its configuration; what real forwards hold |
| `probe` | what the machine has |
| `scripted` | a deterministic engine for tests |

It knows neither sessions nor sockets.
"""
