"""Forgetting judged at the model's output: edits by gradient, and a choice among all of them."""
