"""One cell of a benchmark: what defines it, what it is made of, where it lies, and how it runs."""
