"""A conversation of many turns: read from a script, spoken, redone, carried on, kept, exported."""
