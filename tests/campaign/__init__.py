"""A campaign of odd requests at every door of the app: `python -m tests.campaign --cases 10000 --seed 1`.

`server` runs the app over a small random model, `inputs` makes what strangers send, `doors` makes requests of it, and
`judge` sends them and says what is wrong with the answers.
"""
