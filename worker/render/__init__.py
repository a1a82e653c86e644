"""The render worker: claim, load, start, render, upload, publish."""
