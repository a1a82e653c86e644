"""The domain: what a farm stores and decides. The only place that changes state."""
