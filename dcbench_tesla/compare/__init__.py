"""Comparisons over finished cells and over methods: what ``dcbench compare`` shows."""
