"""Raw images by name and source, checked against pinned digests, with the samples' official ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from leaveout.config.catalogue import DATASETS
from leaveout.data import fashion_mnist, idx, mnist, slices
from leaveout.data.raw import RawDataset
from leaveout.errors import LeaveoutError


def load(
    name: str,
    source: str,
    n_train: int,
    n_test: int,
    cache_dir: Path | None = None,
    classes: Sequence[int] | None = None,
) -> RawDataset:
    """Load the first samples of a data set.

    Args:
        name: ``mnist``, ``fashion_mnist`` or ``digits``.
        source: ``bundled`` (no network), ``idx`` (the official files of MNIST or Fashion-MNIST, in
            a folder of the user's) or, for MNIST, ``hub`` (the pinned Hugging Face revision).
        n_train: How many training samples, from the first on.
        n_test: How many test samples, from the first on.
        cache_dir: Where ``hub`` keeps its downloads; by default the Hugging Face cache.
        classes: Only samples of these, in file order, labelled 0, 1, ... in the order given here;
            by default all, with their official labels.

    Raises:
        LeaveoutError: Unknown name or source, more samples than there are, or data that are damaged
            or out of reach.
    """
    facts = {str(known): of for known, of in DATASETS.items() if of.full_scale is not None}
    if name not in facts:
        raise LeaveoutError(f"unknown data set {name!r}: {_choices(name, facts)}.")
    if source not in facts[name].sources:
        raise LeaveoutError(
            f"unknown source {source!r} for data set {name!r}: "
            f"{_choices(source, facts[name].sources)}."
        )
    # Imported when asked for: pyarrow, huggingface_hub and scikit-learn are slow to start.
    if name == "digits":
        from leaveout.data import digits

        return digits.load(n_train, n_test, classes)
    if source == "hub":
        from leaveout.data import hub

        return hub.load(n_train, n_test, cache_dir, classes=classes)
    of = {"mnist": mnist.MNIST, "fashion_mnist": fashion_mnist.FASHION_MNIST}[name]
    if source == "idx":
        return idx.load(of, n_train, n_test, classes)
    return slices.load(of, n_train, n_test, classes)


def _choices(given: str, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    near = get_close_matches(given.lower(), valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose one of {', '.join(valid)}"
