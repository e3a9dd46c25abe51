"""What the operator says: eigenvalues, modes and how far they can be trusted."""
