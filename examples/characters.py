"""Lines of scikit-learn's descriptions of data sets, a token a character, padded to one length."""

import string

import torch
from sklearn import datasets

from leaveout import Split

TOKENS = {c: k for k, c in enumerate(string.ascii_lowercase + " .,", start=1)}


def data(n_train: int, n_test: int, length: int = 16) -> Split:
    """Return the tokens of each line, 0 where it has ended, and what follows each, -100 there."""
    text = datasets.load_diabetes().DESCR + datasets.load_breast_cancer().DESCR
    lines = [line.strip().lower() for line in text.splitlines() if len(line.strip()) > 3]
    rows = torch.zeros(n_train + n_test, length + 1, dtype=torch.long)
    for row, line in zip(rows, lines, strict=False):
        ids = torch.tensor([TOKENS.get(c, len(TOKENS) + 1) for c in line[: length + 1]])
        row[: len(ids)] = ids
    inputs, targets = rows[:, :-1], rows[:, 1:].where(rows[:, 1:] > 0, -100)
    shown = [line[: length + 1] for line in lines]
    return Split(
        (inputs[:n_train], targets[:n_train]),
        (inputs[n_train:], targets[n_train:]),
        show=(shown[:n_train], shown[n_train : n_train + n_test]),
    )
