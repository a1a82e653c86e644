"""The domain: what the API, the workers and the command line share, and the only place that changes state."""
