"""The pure core: sessions, their windows and queues, and the hub. No I/O, no asyncio, no torch."""
