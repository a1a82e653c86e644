"""Batches: their life, their plan, how prompts become jobs, and how far they are."""
