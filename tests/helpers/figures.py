"""What is drawn in a picture, and written in a figure."""

import io

import torch
from matplotlib.figure import Figure
from PIL import Image


def check_picture(content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as picture:
        assert min(picture.size) > 250
        assert max(picture.size) < 2500
        gray = picture.convert("L")
        counts = torch.tensor(gray.histogram()).double()
        assert (counts > 0).sum() > 20
        # Something is drawn, and the rest is paper.
        assert 0.005 < 1 - counts[255] / counts.sum() < 0.95


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda o: hasattr(o, "get_text")))
