"""What the program hears: recordings judged before they become voices, and the codes of a clip opened up to be seen.

It stands beside the way from script to sound, and listens at both ends of it.
"""
