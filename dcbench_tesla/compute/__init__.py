"""What tensors are computed with: networks as functions, compilation, precision, seeds, memory of the C library."""
