"""From a model and inputs to trajectories."""
