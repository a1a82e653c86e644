"""Batches: their changes, their plan, the jobs of their prompts, and their progress."""
