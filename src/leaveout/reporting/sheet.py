"""A sheet of small pictures with frames and words, laid out in inches from the upper left."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from leaveout.reporting.figures import STYLE, WIDTH

SIZE = 0.48
"""Inches, of a small picture's longer side."""
STEP = 0.535
"""Inches from one small picture to the next."""
_PIXELS = 28
"""Smaller pictures are enlarged to about this many, so that no viewer blurs them."""


@dataclass(frozen=True)
class Frame:
    """How a picture is framed.

    Attributes:
        colour: Of the frame.
        width: In points.
        dash: Its dashes.
        marked: Whether its corner has a black triangle.
    """

    colour: str
    width: float
    dash: str | tuple[int, tuple[int, ...]] = "-"
    marked: bool = False


class Sheet:
    """A figure of small pictures; :meth:`figure` draws all of them at once.

    Pixels are shown dark on light, as in print: the largest value is black.
    """

    def __init__(self, images: NDArray[Any], full_scale: float | None) -> None:
        """Prepare for pictures of one size.

        Args:
            images: Any of them, (picture, height, width), or (picture, height, width, 3) in colour.
            full_scale: The value that is drawn black; None for pictures that are drawn as they are,
                in colour or not: 255, or 1 of floats, is white.
        """
        longer = max(images.shape[1:3])
        self._times = max(1, round(_PIXELS / longer))
        self._inch = longer * self._times / SIZE  # so many pixels
        self._full_scale = full_scale
        self._pictures: list[tuple[float, float, NDArray[Any]]] = []
        self._artists: list[Any] = []
        self._words: list[tuple[float, float, str, dict[str, Any]]] = []

    def words(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write a text whose upper left corner, unless ``style`` says otherwise, is at a place."""
        style = {"fontsize": 8, "ha": "left", "va": "top", **style}
        self._words.append((x, y, text, style))

    def picture(
        self, x: float, y: float, image: NDArray[Any] | str, lines: Sequence[str], frame: Frame
    ) -> None:
        """Put a picture in a frame, with words below it.

        Args:
            x: Of its upper left corner.
            y: The same.
            image: (height, width), or (height, width, 3); or a text instead, which is cut to fit.
            lines: The words, a line each; the first one in bold, in the frame's colour.
            frame: The frame.
        """
        if isinstance(image, str):
            down = across = SIZE
            text = "\n".join(textwrap.wrap(image, 9)[:5])
            self.words(x + 0.03, y + 0.03, text, fontsize=5.5)
        else:
            down, across = (side * self._times / self._inch for side in image.shape[:2])
            self._pictures.append((x, y, image))
        self.frame(x, y, across, down, frame)
        for k, line in enumerate(lines):
            style: dict[str, Any] = {"fontweight": "bold", "color": frame.colour} if k == 0 else {}
            self.words(x + across / 2, y + down + 0.03 + 0.125 * k, line, ha="center", **style)

    def frame(self, x: float, y: float, across: float, down: float, frame: Frame) -> None:
        """Draw a frame whose upper left corner is at a place."""
        self._artists.append(
            Rectangle(
                (x, y), across, down, fill=False, edgecolor=frame.colour, linewidth=frame.width,
                linestyle=frame.dash,
            )
        )  # fmt: skip
        if frame.marked:
            corner = [(x + across, y), (x + 0.6 * across, y), (x + across, y + 0.4 * down)]
            self._artists.append(
                Polygon(corner, facecolor="black", edgecolor="white", linewidth=0.6)
            )

    def line(self, y: float) -> None:
        """Draw a line across the sheet."""
        self._artists.append(Line2D([0.05, WIDTH - 0.05], [y, y], color="0.75", linewidth=0.8))

    def _enlarged(self, image: NDArray[Any]) -> NDArray[Any]:
        if self._full_scale is not None:
            return np.kron(image, np.ones((self._times, self._times)))
        image = image if image.ndim == 3 else image[..., None].repeat(3, 2)
        scaled = image / 255 if image.dtype == np.uint8 else image.clip(0, 1)
        large: NDArray[Any] = scaled.repeat(self._times, 0).repeat(self._times, 1)
        return large

    def figure(self, height: float) -> Figure:
        """Return all of it as a figure so many inches high."""
        with rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, height))
            axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
            axes.set_axis_off()
            down, across = (int(inches * self._inch) + 1 for inches in (height, WIDTH))
            colour = self._full_scale is None
            canvas = np.ones((down, across, 3)) if colour else np.zeros((down, across))
            for x, y, image in self._pictures:
                large = self._enlarged(image)
                top, left = round(y * self._inch), round(x * self._inch)
                canvas[top : top + large.shape[0], left : left + large.shape[1]] = large
            axes.imshow(
                canvas, cmap="gray_r", vmin=0, vmax=self._full_scale, interpolation="none",
                extent=(0, across / self._inch, down / self._inch, 0), aspect="auto",
            )  # fmt: skip
            for artist in self._artists:
                axes.add_artist(artist)
            for x, y, text, style in self._words:
                axes.text(x, y, text, **style)
            axes.set_xlim(0, WIDTH)
            axes.set_ylim(height, 0)
        return figure
