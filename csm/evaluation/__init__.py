"""How well a model speaks: sentences it never saw, a recogniser that listens, and the figures beside each other."""
