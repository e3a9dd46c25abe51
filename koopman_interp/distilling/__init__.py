"""Training on what a host says: of a surrogate, and of the affine lens that it is judged by."""
