"""The web app: a page and named endpoints over one model. The last stop of the sound, a player or a file."""
