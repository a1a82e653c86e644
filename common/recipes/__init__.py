"""Recipes: prompts, their tokens and weights, and the images that they start from. Pure values."""
