"""Datasets: their life, and where each file of an export lies."""
