"""What one request may ask for, in one place: beyond it stands one sentence. docs/security.md lists the same. No torch.

Bytes bound what is received, the rest what is done with it, so that a small file can't ask for much work.
"""

from __future__ import annotations

from csm.errors import InputError

MB = 1 << 20

# A request
LONGEST_BODY = MB  # bytes of JSON from the page or a Gradio client
MOST_ASKED = 400_000  # values in any JSON that is received: all of it is read at once, and everybody waits meanwhile
LARGEST_UPLOAD = 256 * MB  # bytes of a file
SILENT_SECONDS = 60.0  # for which a client may take nothing of what is there for it

LARGEST_VOICE = 12 * MB  # bytes of a recording that a program brings: 30 s at any usual rate

# A sound file
RATES = (4_000, 384_000)  # Hz
MOST_CHANNELS = 16
LONGEST_SOUND = 3_600.0  # seconds that are read of it
MOST_SAMPLES = 400_000_000  # in all channels: half an hour of stereo at 96 kHz

# A script
MOST_TURNS = 2_000  # of a conversation on the page, of `/generate` and of MCP
LONGEST_TURN = 20_000  # letters
LONGEST_SCRIPT = 200_000  # letters
LONGEST_SCRIPT_FILE = MB  # bytes
LONGEST_DICTIONARY = 200_000  # letters of its pronunciation dictionary
LONGEST_SPEECH = 3_600.0  # seconds that a conversation on the server may come to
LONGEST_WHOLE = 300.0  # seconds of one that a program is sent only when all of it is made: it waits for a minute

# A project file
MOST_TURNS_SAVED = 20_000  # the command line speaks longer scripts than the page
MOST_JSON = 32 * MB  # bytes of its document ...
MOST_VALUES = 2_000_000  # ... and the numbers, texts, lists and objects in it
MOST_CODES = 256 * MB  # bytes
MOST_RECORDING = 64 * MB  # bytes of one voice: 30 s fit at any rate
MOST_ENTRIES = 256  # files inside
FREE_UNPACKED = 8 * MB  # what any zip may unpack to; beyond it ...
MOST_UNPACKED = 100  # ... a byte may become as many

# A page, and what all of them together keep
MOST_PAGES = 256
MOST_PAGE_BYTES = 2_048 * MB  # on the disk
KEPT_SECONDS = 3_600.0  # how long what nobody asks for stays there


def values_in(json: bytes) -> int:
    """About how many values JSON has, and never much fewer: counted before it is read."""
    return sum(map(json.count, (b",", b"[", b"{")))


def check_script(text: str) -> None:
    """Raise `InputError` for more letters than a script may have."""
    if len(text) > LONGEST_SCRIPT:
        raise InputError(
            f"The script has {len(text):,} letters and at most {LONGEST_SCRIPT:,} fit: speak it in parts.", "too_long"
        )


def check_turns(texts: list[str], most: int = MOST_TURNS) -> None:
    """Raise `InputError` for more turns than fit, or one with too many letters."""
    if len(texts) > most:
        told = f"The script has {len(texts):,} turns and at most {most:,} fit: speak it in parts."
        raise InputError(told, "too_long")
    for number, text in enumerate(texts, 1):
        if len(text) > LONGEST_TURN:
            raise InputError(
                f"Turn {number} has {len(text):,} letters and at most {LONGEST_TURN:,} fit: cut it into several.",
                "too_long",
            )


def check_speech(seconds: float) -> None:
    """Raise `InputError` for a script that should take more seconds than are spoken at once."""
    if seconds > LONGEST_SPEECH:
        raise InputError(
            f"This would come to about {seconds / 60:.0f} minutes of speech and at most {LONGEST_SPEECH / 60:.0f} are "
            "spoken here: make it shorter, or speak it in parts.",
            "too_long",
        )
