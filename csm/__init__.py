"""Conversational speech with Sesame's CSM: a script and a voice for each speaker in, a conversation out."""

import os

from csm.threads import wait_briefly

wait_briefly(os.environ)  # before torch, which what follows imports

# isort: split
from csm import audio
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.speech import voices
from csm.speech.generator import Conversation, Generator, Turn
from csm.speech.loading import load
from csm.version import __version__

__all__ = ["Conversation", "Generator", "InputError", "Segment", "Turn", "__version__", "audio", "load", "voices"]
