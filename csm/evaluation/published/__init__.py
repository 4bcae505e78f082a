"""Figures that others publish, by their names, lists and formats, so that a model can stand in their tables."""
