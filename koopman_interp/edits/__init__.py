"""Edits of a fitted operator: the value they all give, and one method a file."""
