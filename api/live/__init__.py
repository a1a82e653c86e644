"""Waits and streams: one subscription and one poll per process serve all clients."""
