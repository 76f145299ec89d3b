"""What a run leaves on disk: complete files, the results folder, rows, the environment; and progress on the terminal."""
