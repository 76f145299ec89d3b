"""The campaign: it kills the program at random moments, and damages every kind of file that the program reads.

``uv run python -m tests.campaign --seed 0 --minutes 10`` runs both halves, prints a table of what was tried and what
fell, and exits with code 1 if anything fell. ``uv run pytest`` does not collect it.

*Kills*: a command of every stage is ended by SIGKILL, SIGTERM or SIGINT, at a random moment or just before or after a
file is put in its place. What was finished before must still be there, and the same command, run again, must leave the
same bytes as a run that nothing disturbed.

*Mutations*: one file of one kind is damaged by one operator, and a command that reads it is run. The program must not
end in a traceback, hang, accept a wrong value, or lose a finished result; where it refuses the file, its message must
name it.

Every trial is known by a name such as ``row-evaluate/bit flip/3``, and depends on this name and the seed only:
``--repeat NAME`` runs it again, and keeps its folder.
"""
