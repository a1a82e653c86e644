"""The benches, one a file."""
