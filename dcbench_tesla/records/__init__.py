"""What a run leaves on disk: complete files, the results folder, rows and environment; and progress on the terminal."""
