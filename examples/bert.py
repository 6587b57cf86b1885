"""A small BERT of the `transformers` package, with dictionaries as batches: which text is it from?"""

import torch
from sklearn import datasets
from transformers import BertConfig, BertForSequenceClassification

from leaveout import Split


def data(n_train: int, n_test: int, length: int = 12) -> Split:
    """Return lines of two descriptions of data sets, padded, and which of them each is from."""
    texts = [datasets.load_wine().DESCR, datasets.load_breast_cancer().DESCR]
    lines = [
        (line.strip().encode()[:length], label)
        for pair in zip(*(text.splitlines() for text in texts))
        for label, line in enumerate(pair)
        if len(line.strip()) > 3
    ]
    ids = torch.tensor([[*line, *[0] * (length - len(line))] for line, _ in lines])
    inputs = {"input_ids": ids.clamp(max=127), "attention_mask": (ids > 0).long()}
    labels = torch.tensor([label for _, label in lines])
    part = lambda rows: ({name: x[rows] for name, x in inputs.items()}, labels[rows])  # noqa: E731
    return Split(part(slice(n_train)), part(slice(n_train, n_train + n_test)))


def model(width: int = 16, layers: int = 2) -> torch.nn.Module:
    """Return the model with random weights."""
    sizes = dict(hidden_size=width, intermediate_size=2 * width, max_position_embeddings=64)
    heads = dict(num_hidden_layers=layers, num_attention_heads=2, attn_implementation="eager")
    return BertForSequenceClassification(BertConfig(vocab_size=128, num_labels=2, **sizes, **heads))
