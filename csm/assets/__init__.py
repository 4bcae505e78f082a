"""What travels with the code: the embedded model, measured figures and, in a wheel, the shipped voices."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
PACKAGED = ASSETS / "prompts"  # in a wheel; in a clone they lie at its top
PROMPTS = PACKAGED if PACKAGED.is_dir() else ASSETS.parents[1] / "prompts"
