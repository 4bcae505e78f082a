"""Talk: a voice comes in, any language model answers, and what is spoken has heard how it was said."""
