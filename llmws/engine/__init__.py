"""Engines: what turns token ids into streams. Importing this package imports neither torch nor transformers.

| module | owns |
|---|---|
| `local` | `LocalEngine`, the engine of this machine, put together from the rest |
| `worker` | the one thread that owns the device: loads, admission, steps, the end of every stream |
| `mailbox` | the way from that thread to the event loop |
| `runner` | what the worker needs of a loaded model |
| `text`, `sampler` | ids to text and finish; logits to ids. Both can be replayed |
| `fallback`, `loading` | any transformers causal model as a `Runner`; reading it from its folder |
| `memory`, `digest`, `probe` | what fits; which model it is; what the device has |
| `scripted` | a deterministic engine for tests |

It knows neither sessions nor sockets.
"""
