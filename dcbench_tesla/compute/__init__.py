"""Basics of computing with PyTorch: networks as functions, compilation, precision, seeds, and memory on a CPU."""
