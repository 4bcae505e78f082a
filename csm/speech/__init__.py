"""Text in, sound out: voices, prompts, what is heard, and the generator that speaks."""
