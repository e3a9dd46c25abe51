"""Training on what a model says: of a surrogate, and of the affine lens that it is judged by."""
