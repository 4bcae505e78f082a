"""Conversational speech with Sesame's CSM: a script and a voice for each speaker in, a conversation out."""

from csm.errors import InputError
from csm.frames import Segment
from csm.generator import Conversation, Generator, Turn, load

__version__ = "0.1.0"
__all__ = ["Conversation", "Generator", "InputError", "Segment", "Turn", "load"]
