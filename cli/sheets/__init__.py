"""A grid's contact sheet and page."""
