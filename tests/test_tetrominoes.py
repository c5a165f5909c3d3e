import numpy as np
import torch

from air.data import Tetrominoes
from air.data.tetrominoes import CELL, COLOURS, draw_pieces, orientations


def test_there_are_nineteen_pieces_of_four_connected_cells():
    pieces = orientations()
    assert len(pieces) == 19 and all(piece.sum() == 4 for piece in pieces)
    assert len({(piece.shape, piece.tobytes()) for piece in pieces}) == 19
    for piece in pieces:
        cells = [tuple(cell) for cell in np.argwhere(piece)]
        reached = {cells[0]}
        for _ in range(3):
            reached |= {cell for cell in cells for other in reached if np.abs(np.subtract(cell, other)).sum() == 1}
        assert reached == set(cells) and piece.any(0).all() and piece.any(1).all()


def test_scenes_show_three_whole_pieces():
    scenes = Tetrominoes().generate(True, 200, (3,))
    assert scenes.images.shape == (200, 3, 35, 35) and (scenes.counts == 3).all()
    pieces, touching = orientations(), 0
    for image, mask, boxes, labels, colours in zip(scenes.images, scenes.masks, scenes.boxes.int().tolist(),
                                                   scenes.labels.tolist(), scenes.colours):
        known = torch.cat((torch.zeros(1, 3, dtype=torch.uint8), colours))
        assert (image == known.T[:, mask.long()]).all()
        for t, ((x0, y0, x1, y1), label) in enumerate(zip(boxes, labels), 1):
            pixels = np.kron(pieces[label], np.ones((CELL, CELL), int))
            assert ((mask == t).numpy()[y0:y1, x0:x1] == pixels).all() and (mask == t).sum() == 100
        beside = (mask[:, 1:] != mask[:, :-1]) & (mask[:, 1:] > 0) & (mask[:, :-1] > 0)
        touching += bool((beside & (image[:, :, 1:] == image[:, :, :-1]).all(0)).any())
    assert touching > 5  # of one colour, side by side


def test_pieces_and_colours_are_uniform():
    objects = draw_pieces(np.random.default_rng(0), 9500)
    share = np.bincount(objects.labels, minlength=19) / 9500
    assert (abs(share - 1 / 19) < 4 * (1 / 19 / 9500)**0.5).all()
    colour = (objects.colours[:, None] == COLOURS).all(-1).argmax(-1)
    assert (abs(np.bincount(colour) / 9500 - 1 / 6) < 4 * (1 / 6 / 9500)**0.5).all()
    assert (objects.patches == objects.alpha[:, None] * (objects.colours[:, :, None, None] > 0)).all()
