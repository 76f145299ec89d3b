"""Expert trajectories on disk: how they are trained, stored, and taken over from other people."""
