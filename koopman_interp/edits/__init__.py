"""Edits of the operator: the values, and one method a file."""
