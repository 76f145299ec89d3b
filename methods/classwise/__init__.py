"""Matching class by class: `dc`, `dsa` and `dm`."""
