"""People compare the same line spoken with and without what was said before it: a page that asks, and what it tells."""
