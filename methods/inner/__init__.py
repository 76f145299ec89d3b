"""Differentiating through the training of a network: a step, and the gradients of what comes out at the end."""
