"""How large a configuration's model is, counted on the meta device: no memory is touched."""

from __future__ import annotations

import torch

from csm.config import ModelConfig
from csm.model.module import CSM


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters of the backbone, the depth decoder, everything else (embeddings, projection, heads) and in all."""
    with torch.device("meta"):
        model = CSM(config)

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    total, backbone, decoder = count(model), count(model.backbone), count(model.decoder)
    return {"backbone": backbone, "depth decoder": decoder, "embeddings": total - backbone - decoder, "total": total}
