"""The views of the dashboard, one a file: what it reads, shows and does."""
