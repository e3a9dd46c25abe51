"""What an edit really did: the call and its value, and one question a file."""
