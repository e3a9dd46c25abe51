"""The run folder and its page."""
