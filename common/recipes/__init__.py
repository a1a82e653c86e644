"""What to draw: recipes, prompts and their tokens, pictures to start from. Pure values."""
