"""Training, and what is measured on new images."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from deqlm.diagnostics import spectral_radius
from deqlm.reporting.progress import Progress
from examples.vision.data import draw_images
from examples.vision.model import Classifier

BATCH = 16
TEST_IMAGES = 256
RADIUS_IMAGES = 16


def train(model: Classifier, *, name: str, steps: int, lr: float, penalty: float, seed: int) -> dict[str, Any]:
    """Train for so many steps; return the curve of evaluations, failed rows of the last half, and CPU seconds.

    Equal seeds give every model the same images.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    evaluations: list[float] = []
    began = time.process_time()
    with Progress(steps, name=name, unit="step") as bar:
        for _ in range(steps):
            image, label = draw_images(BATCH, generator)
            logits, cost = model(image, penalty=penalty > 0)
            loss = nn.functional.cross_entropy(logits, label)
            optimizer.zero_grad()
            (loss + penalty * cost).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            evaluations.append(evaluations_of(model))
            bar.step(f"loss {loss.item():.3f}, evaluations {evaluations[-1]:.1f}")
    return {"cpu_seconds": time.process_time() - began, "curve": evaluations}


@torch.no_grad()
def test(model: Classifier, seed: int) -> dict[str, float]:
    """Return accuracy on new images and, of a solved model, evaluations, rows that failed and the spectral radius."""
    generator = torch.Generator().manual_seed(seed + 1000)
    image, label = draw_images(TEST_IMAGES, generator)
    model.eval()
    logits, _ = model(image)
    found = {"accuracy": (logits.argmax(dim=-1) == label).double().mean().item(), "evaluations": evaluations_of(model)}
    if model.implicit:
        found["failed"] = int(model.deq.last.failed.sum())
        u = model.inject(image[:RADIUS_IMAGES])
        radii = spectral_radius(lambda z: model.deq.layer(z, u), model.deq(u))
        found["radius"] = radii.double().mean().item()
    return found


def evaluations_of(model: Classifier) -> float:
    """Return the mean over images of the evaluations of the last call; 1 for a layer that is applied once."""
    return model.deq.last.steps.double().mean().item() if model.implicit else 1.0
