"""Bilevel methods: the loss on real images, differentiated through the training of a fresh network."""
