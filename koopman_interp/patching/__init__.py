"""Edited dynamics in a host: the patch, and the motion that it writes."""
