"""The three Jacobians side by side."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

LEAST, MOST = 1e-4, 1.0


def draw(jacobians: dict[str, Tensor], path: Path) -> None:
    """Draw the sizes of the entries, one panel per Jacobian, on one logarithmic scale; zeros are white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(jacobians), sharey=True)
    titles = {"autograd": "implicit, through the solve", "closed form": "implicit, closed form", "explicit": "explicit"}
    for axis, (name, J) in zip(axes, jacobians.items(), strict=True):
        sizes = J.abs().numpy()
        image = axis.imshow(sizes, norm=LogNorm(LEAST, MOST), cmap="YlGnBu", interpolation="nearest")
        axis.set(title=titles.get(name, name), xlabel="j: number of the state before")
    axes[0].set_ylabel("i: number of the state after")
    figure.colorbar(image, ax=axes, label="size of the derivative", extend="both")
    figure.savefig(path, metadata={"Date": None})
