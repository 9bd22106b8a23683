"""The model of train_single_test.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CharTransformer(nn.Module):
    """A decoder-only transformer: (B, T) characters in, (B, T, vocabulary) logits out."""

    def __init__(
        self, vocabulary: int, context: int, layers: int, width: int, heads: int
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(
            width,
            heads,
            4 * width,
            # It would need a random state per rank in every checkpoint.
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(width)
        self.blocks = nn.TransformerEncoder(
            block, layers, norm, enable_nested_tensor=False
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, T, vocabulary) of the next character at each place of x (B, T)."""
        positions = torch.arange(x.shape[1], device=x.device)
        mask = nn.Transformer.generate_square_subsequent_mask(
            len(positions), device=x.device
        )
        embedded = self.token(x) + self.position(positions)
        return self.head(self.blocks(embedded, mask=mask, is_causal=True))
