"""From trajectories to a surrogate."""
