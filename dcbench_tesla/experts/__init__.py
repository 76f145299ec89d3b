"""Expert trajectories on disk: how they are trained, stored, and imported from other people's files."""
