"""Causal transformer over token ids: GPT-2's blocks (Radford et al. 2019), as nanoGPT has them.

Each block adds attention, then a perceptron, to what comes in, each after a layer norm. Attention
is written out, so that per-sample gradients and second derivatives go through it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Every position looks at itself and those before it."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.weight_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position gathers, (samples, positions, width)."""
        samples, positions, width = x.shape
        parts = self.qkv(x).view(samples, positions, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        later = torch.ones(positions, positions, dtype=torch.bool, device=x.device).triu(1)
        weights = self.weight_dropout(scores.masked_fill(later, float("-inf")).softmax(-1))
        gathered = (weights @ v).transpose(1, 2).reshape(samples, positions, width)
        found: Tensor = self.dropout(self.out(gathered))
        return found


class Block(nn.Module):
    """Attention and a perceptron, each after a norm, each added to what comes in."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, dropout, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block, (samples, positions, width)."""
        x = x + self.attention(self.norm1(x))
        found: Tensor = x + self.dropout(self.down(self.gelu(self.up(self.norm2(x)))))
        return found


class GPT(nn.Module):
    """Logits of the next token at every position."""

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int,
        heads: int,
        width: int,
        dropout: float,
        bias: bool,
        tied: bool,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, bias) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # added up over all layers
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))
            elif parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits, (samples, positions, vocabulary), from token ids, (samples, positions)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.tokens(ids) + self.positions(places))
        x = self.norm(self.blocks(x))
        found: Tensor = self.head(x)
        return found


def build(
    vocabulary: int,
    context: int,
    layers: int,
    heads: int,
    width: int,
    dropout: float,
    bias: bool,
    tied: bool,
) -> GPT:
    """Build the model; arguments as in a setting."""
    return GPT(vocabulary, context, layers, heads, width, dropout, bias, tied)
