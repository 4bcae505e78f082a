"""The network: backbone, depth decoder and sampling. Rows of ids in, codes out; no audio and no text here."""

from csm.model.module import CSM
from csm.model.sampling import RowSampling, frame_noise, sample, width_for
from csm.model.transformer import KVCache, SideBySide, SlotCache, Transformer

__all__ = [
    "CSM",
    "KVCache",
    "RowSampling",
    "SideBySide",
    "SlotCache",
    "Transformer",
    "frame_noise",
    "sample",
    "width_for",
]
