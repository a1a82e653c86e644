"""How `mini-zh` is made: pictures drawn by a program, captions by a grammar, and the networks that learn from them."""
