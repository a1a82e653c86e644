"""The control worker: the sweep and the expansion of batches."""
