"""Conversational speech with Sesame's CSM: a script and a voice for each speaker in, a conversation out.

What the package lists is imported when it is first asked for, and torch with it: `import csm` takes none of its time.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from csm.errors import InputError
from csm.threads import wait_briefly
from csm.version import __version__

if TYPE_CHECKING:
    from csm import audio
    from csm.engine.frames import Segment
    from csm.speech import voices
    from csm.speech.generator import Conversation, Generator, Turn
    from csm.speech.loading import load

wait_briefly(os.environ)  # before torch

__all__ = ["Conversation", "Generator", "InputError", "Segment", "Turn", "__version__", "audio", "load", "voices"]
_MODULES = {"audio": "csm.audio", "voices": "csm.speech.voices"}
_HOMES = {
    "Conversation": "csm.speech.generator",
    "Generator": "csm.speech.generator",
    "Segment": "csm.engine.frames",
    "Turn": "csm.speech.generator",
    "load": "csm.speech.loading",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = import_module(_MODULES[name])
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'csm' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
