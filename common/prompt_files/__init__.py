"""Prompt files: text, JSON Lines, CSV and Parquet, read line by line."""
