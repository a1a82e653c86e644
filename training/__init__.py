"""Makes the model `mini-zh`: images drawn by a program, captions from a grammar, and the networks trained on them."""
