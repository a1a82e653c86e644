"""Models on disk and which of them are resident: import, hub, store, verification."""
