"""Outages: what a process of the farm holds while a service is away, and whether it grows."""
