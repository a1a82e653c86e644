"""A dataset in a folder: drawn again."""
