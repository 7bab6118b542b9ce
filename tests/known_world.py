"""A tiny street and networks whose answers are known: they know the class, or the side of the street, of everything."""

from dataclasses import replace

import numpy as np
import torch

from xmodal.data.street import Street
from xmodal.features import Features

SIZE = (96, 320)  # height, width of the images


def world(**settings):
    "Three frames of a street with cars near and far."
    return Street(**dict(frames=3, cameras=2, size=SIZE, beams=16, samples=1, seed=2) | settings)


def knowing(frame, dim=16, noise=0.02, seed=0):
    "Features of which each is near its class's own direction; those of two classes are at right angles, similarity 0.5."
    return _near(dim, noise, seed, frame.semantic, [camera.semantic for camera in frame.cameras])


def halves(frame, dim=16, noise=0.02):
    "Features that know left from right: of the sensor, of the middle of an image."
    right = [np.broadcast_to(np.arange(camera.size[1]) >= camera.size[1] / 2, camera.size) for camera in frame.cameras]
    return _near(dim, noise, 1, frame.points[:, 1] < 0, right)


def _near(dim, noise, seed, points, images):
    random = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=random))[0]
    points, *pixels = (axes[torch.as_tensor(np.array(ids)).long()] for ids in (points, *images))
    points, *pixels = (values + noise * torch.randn(values.shape, generator=random) for values in (points, *pixels))
    return Features(points, [values.permute(2, 0, 1) for values in pixels], [ids.shape for ids in images])


def squares(image):
    "Superpixels of 24 x 32 pixels."
    v, u = np.indices(image.shape[:2])
    return v // 24 * (image.shape[1] // 32) + u // 32


class Frames:
    "A dataset of these frames."

    def __init__(self, *frames, classes=()):
        self.name, self.frames, self.classes, self.ids = "frames", frames, classes, [frame.id for frame in frames]

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, i):
        return self.frames[i]


def with_points(frame, points):
    "The frame with these points of its own, by row."
    return replace(frame, points=frame.points[points], intensity=frame.intensity[points], semantic=frame.semantic[points], instance=frame.instance[points], boxes=None)
