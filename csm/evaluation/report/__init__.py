"""A long evaluation as one page that needs nothing else: figures, plots and sound."""
