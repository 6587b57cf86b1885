"""A small BERT of the `transformers` package, with dictionaries as batches: whose line is it?"""

import torch
from sklearn import datasets
from transformers import BertConfig, BertForSequenceClassification

from leaveout import Split


def data(n_train: int, n_test: int, length: int = 12) -> Split:
    """Return lines of two descriptions of data sets in turn, padded, and which each is from."""
    texts = [datasets.load_wine().DESCR, datasets.load_breast_cancer().DESCR]
    lines = [[line.strip() for line in text.splitlines() if len(line) > 9] for text in texts]

    def part(samples: range) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        ids = torch.zeros(len(samples), length, dtype=torch.long)
        for row, k in zip(ids, samples, strict=True):
            line = lines[k % 2][k // 2].encode("ascii", "replace")[:length]
            row[: len(line)] = torch.tensor([*line])
        labels = torch.tensor([k % 2 for k in samples])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}, labels

    return Split(part(range(n_train)), part(range(n_train, n_train + n_test)))


def model(width: int = 16, layers: int = 2) -> torch.nn.Module:
    """Return the model with random weights."""
    config = BertConfig(
        vocab_size=128, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    return BertForSequenceClassification(config)
