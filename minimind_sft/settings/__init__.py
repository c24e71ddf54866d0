"""Every flag of every program: its name, default, range and help line, in one file per concern."""
