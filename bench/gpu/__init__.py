"""`python -m bench.gpu`: one prepared run, of at most eight minutes, for a machine with a GPU that is lent."""
