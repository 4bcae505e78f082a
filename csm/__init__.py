"""Conversational speech with Sesame's CSM: a script and a voice for each speaker in, a conversation out."""

from csm.errors import InputError
from csm.frames import Segment
from csm.generator import Conversation, Generator, Turn, load
from csm.version import __version__

__all__ = ["Conversation", "Generator", "InputError", "Segment", "Turn", "__version__", "load"]
