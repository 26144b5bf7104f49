"""Depth values at points and the mean of D, against the definitions."""

import pytest
import torch

from depthg.kernels.reference import RELATIONS, depth_relation
from depthg.training.depth_term import at_points, cloud, inclination, kernel_relation, mean_relation


@pytest.mark.parametrize("relation", RELATIONS)
def test_mean_of_d_without_the_matrix(relation):
    size = {"normals": (3, 9, 4), "euclidean": (3, 9, 3)}.get(relation, (3, 9))
    a, b = torch.rand(size), torch.rand(size)
    a[0, :3] = 0
    expected = depth_relation(a, b, relation, 0.4).mean()
    torch.testing.assert_close(mean_relation(a, b, relation, 0.4), expected, rtol=1e-5, atol=1e-6)


def test_values_at_cells_and_coordinates():
    depth, normals = torch.rand(2, 12), torch.rand(2, 12, 4)
    cells = torch.randint(12, (2, 5))
    assert torch.equal(at_points(depth, cells, (3, 4)), depth.gather(1, cells))
    for n in range(2):
        assert torch.equal(at_points(normals, cells, (3, 4))[n], normals[n, cells[n]])
    corner = torch.tensor([[[1.0, -1.0]]]).expand(2, 1, 2)  # x right, y up: the last cell of the first row
    torch.testing.assert_close(at_points(depth, corner, (3, 4))[:, 0], depth[:, 3])


def test_cloud_is_the_unprojected_depth():
    depth = torch.rand(2, 12)
    points = cloud(depth, (3, 4), 90.0)
    assert points.shape == (2, 12, 3)
    torch.testing.assert_close(points[..., 2], depth)
    torch.testing.assert_close(points[:, 0, 0], depth[:, 0] * (0.5 - 2) / 2)


def test_inclination_forgets_the_compass_direction_only():
    left, right, front = [1.0, 0, 0, 0], [-1.0, 0, 0, 0], [0, 0, -1.0, 0]
    ground, roof, sky = [0, -1.0, 0, 0], [0.6, -0.8, 0, 0], [0, 0, 0, 1.0]
    values = inclination(torch.tensor([[left, right, front, ground, roof, sky]]))
    cosine = depth_relation(values, values, kernel_relation("inclination"))[0]
    expected = torch.tensor(
        [
            [1, 1, 1, 0, 0.6, 0],
            [1, 1, 1, 0, 0.6, 0],
            [1, 1, 1, 0, 0.6, 0],
            [0, 0, 0, 1, 0.8, 0],
            [0.6, 0.6, 0.6, 0.8, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ]
    )
    torch.testing.assert_close(cosine, expected)
    assert [kernel_relation(name) for name in ("product", "normals")] == ["product", "normals"]
