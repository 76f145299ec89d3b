"""Data sets: where their files come from, and how their images are split, preprocessed and augmented."""
