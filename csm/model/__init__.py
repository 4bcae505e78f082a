"""The network: backbone, depth decoder and sampling. Rows of ids in, codes out; no audio and no text here."""

from csm.model.module import CSM
from csm.model.sampling import Sampling, sample
from csm.model.transformer import KVCache, Transformer

__all__ = ["CSM", "KVCache", "Sampling", "Transformer", "sample"]
