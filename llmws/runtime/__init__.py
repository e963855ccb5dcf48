"""The driver: feeds the hub and carries out its commands. The only room where hub, engine, store and prompts meet."""
