"""Limits of a tenant that each process of the API counts for itself, and what answers say of limits."""
