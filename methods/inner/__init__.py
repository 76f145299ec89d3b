"""Differentiating through the training of a network: single steps, and gradients of the distance at the end."""
