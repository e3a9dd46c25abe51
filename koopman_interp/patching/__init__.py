"""Edited dynamics in a model: the patch, and the motion that it writes."""
