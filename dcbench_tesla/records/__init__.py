"""What a run leaves on disk: files that are whole or absent, the results folder, rows, environment, progress."""
