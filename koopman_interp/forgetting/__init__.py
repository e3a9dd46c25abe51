"""Forgetting judged at the host's output: edits by gradient, and a choice among all of them."""
