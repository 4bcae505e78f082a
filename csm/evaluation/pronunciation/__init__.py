"""Which of a word's two pronunciations is said: lists, a judge that must choose, and how often the judge is right."""
