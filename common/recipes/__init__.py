"""Recipes: prompts, their tokens and weights, and the images that they start from. Pure values."""

from common.sentences import Sentences

sentence = Sentences(__file__)
