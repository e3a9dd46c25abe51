"""The Koopman autoencoder and its parts."""
