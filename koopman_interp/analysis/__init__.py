"""What a fitted operator says, and how far to believe it: one question a file."""
