"""The permutohedral lattice written out with dictionaries: slow, what the compiled code is compared with.

Sums are in float64. Places are rounded to float32, as those of the compiled code: which vertices a pixel on the face of
a simplex touches is decided by rounding, and a vertex that is touched with a share of 0 takes part in the blur.
"""

import numpy as np


class SlowLattice:
    """Gaussian filter of standard deviation 1 for points of d features ``[N, d]`` (Adams, Baek and Davis, 2010)."""

    def __init__(self, features):
        features = np.asarray(features, np.float32)
        d = self.d = features.shape[1]
        self.ids, self.entries = {}, []
        stretch = np.float64(np.float32(np.sqrt(2 / 3) * (d + 1)))
        i = np.arange(d)
        scaled = features * (stretch / np.sqrt((i + 1) * (i + 2))).astype(np.float32)  # along orthonormal rows
        points, above = np.zeros((len(features), d + 1), np.float32), np.zeros(len(features), np.float32)
        for i in range(d, 0, -1):  # row i - 1 has i ones, then -i
            points[:, i] = above - np.float32(i) * scaled[:, i - 1]
            above = above + scaled[:, i - 1]
        points[:, 0] = above
        for point in points:
            found = [(self.ids.setdefault(key, len(self.ids)), share) for key, share in self.corners(point)]
            self.entries.append(found)

    def corners(self, point):
        """The vertices of the simplex around a point, by remainder, and its barycentric coordinates."""
        d = self.d
        nearest = np.floor(point * np.float32(1 / (d + 1)) + 0.5) * (d + 1)
        rank = np.argsort(np.argsort(nearest - point, kind="stable"), kind="stable") + round(nearest.sum() / (d + 1))
        nearest += (d + 1) * ((rank < 0).astype(int) - (rank > d))
        rank %= d + 1
        falling = np.sort((point - nearest) / (d + 1))[::-1]
        for k in range(d + 1):
            vertex = nearest + np.where(rank <= d - k, k, k - (d + 1))
            share = falling[d - k] - falling[d + 1 - k] if k else 1 + falling[d] - falling[0]
            yield tuple(vertex.astype(int).tolist()), share

    def __call__(self, values, backwards=False):  # [N, C] -> [N, C]
        d, at = self.d, np.zeros((len(self.ids), values.shape[1]))
        for row, entries in zip(values, self.entries, strict=True):
            for vertex, share in entries:
                at[vertex] += share * row
        for j in reversed(range(d + 1)) if backwards else range(d + 1):
            blurred = at.copy()
            for key, vertex in self.ids.items():
                for sign in (1, -1):
                    other = tuple(x + sign * (1 - (d + 1) * (i == j)) for i, x in enumerate(key))
                    if other in self.ids:
                        blurred[vertex] += at[self.ids[other]] / 2
            at = blurred
        sums = [sum(share * at[vertex] for vertex, share in entries) for entries in self.entries]
        return np.array(sums) / (1 + 2.0**-d)  # the constant of the paper


def lattices(image, settings):
    """Weights and lattices of the kernels whose weight is not 0."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    place, colour = np.stack([x, y], -1).reshape(-1, 2), image[..., ::-1].reshape(-1, 3).astype(float)
    found = []
    if settings.gaussian_weight:
        found.append((settings.gaussian_weight, SlowLattice(place / settings.gaussian_sxy)))
    if settings.bilateral_weight:
        features = np.concatenate([place / settings.bilateral_sxy, colour / settings.bilateral_srgb], 1)
        found.append((settings.bilateral_weight, SlowLattice(features)))
    return found


def softmax(energy):  # [N, L]
    e = np.exp(energy - energy.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def slow_mean_field(unary, image, settings):  # [L, H, W], [H, W, 3] -> [L, H, W]
    filters = []
    for weight, lattice in lattices(image, settings):
        norm = 1 / np.sqrt(lattice(np.ones((image.shape[0] * image.shape[1], 1))) + 1e-20)
        filters.append((weight, norm, lattice))
    energy = np.asarray(unary, np.float64).reshape(len(unary), -1).T
    q = softmax(-energy)
    for _ in range(settings.iterations):
        q = softmax(-energy + sum(weight * norm * lattice(norm * q) for weight, norm, lattice in filters))
    return q.T.reshape(unary.shape)
