"""HTTP, one noun a file: what a route takes and answers, nothing else."""
