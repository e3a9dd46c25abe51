"""Sources of rows: trajectories in memory, stores on disk and streams, behind one small protocol."""
