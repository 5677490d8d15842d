"""The verbs of the program, one file a verb: its arguments, its help, and what it prints."""
