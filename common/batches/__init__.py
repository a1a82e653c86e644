"""Batches: their changes, their plan, the jobs of their prompts, and their progress."""

from common.sentences import Sentences

sentence = Sentences(__file__)
