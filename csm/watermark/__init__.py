"""Mark what leaves the program, and find the mark again: the last touch on the waveform before it is written.

The mark is that of the package `resemble-perth` (https://github.com/resemble-ai/Perth, MIT): its trained networks,
read from its own weight file, so that anybody's Perth detector finds our mark and ours finds theirs. Its Python
code stays unused: it needs `pkg_resources`, `librosa` and `torchaudio`, resamples twice and loses samples. Perth
looks at 64 ms windows every 10 ms up to 2 kHz at 32 kHz; the same windows and the same bins exist at 24 kHz, so
nothing is resampled here, and only the change below 2 kHz is added to the sound.

Perth has no key: the mark is the same for everyone, says "made by a machine" and nothing else, and whoever has the
package can look for it.
"""

from csm.watermark.live import LiveMark, push_side_by_side
from csm.watermark.whole import THRESHOLD, Detection, detect, mark

__all__ = ["THRESHOLD", "Detection", "LiveMark", "detect", "mark", "push_side_by_side"]
