"""The scripts that the page offers to begin with."""

EXAMPLE_SCRIPT = """\
A: Good morning! Did you sleep well?
B: Not really. The wind kept me awake all night.
A: Then you need some coffee. I just made a fresh pot.
B: You are a good friend. Thank you."""

EXAMPLES = {
    "Over coffee": EXAMPLE_SCRIPT,
    "Three friends": """\
Anna: Where shall we go this summer?
Ben: I want to see the mountains again.
Cleo: And I would like to swim in the sea.
Anna: Then we need a place that has both.""",
    "At the door": """\
A: Hello! Is anybody at home?
B: Just a moment, please. I am coming.
A: I have a letter for you.""",
}
