"""What the package needs of a host framework."""
