"""One cell of a benchmark: its identity, its data and network, its files, its memory and time, and how it is run."""
