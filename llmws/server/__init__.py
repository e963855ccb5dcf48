"""The doors: WebSocket and HTTP on one port. No torch, no transformers, no session state."""
