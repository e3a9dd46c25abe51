"""Host adapters of koopman-interp, one framework a module; found by entry point, never imported by name."""
