import torch

from utils.geometry.placement import Placement, unletterbox


def test_unletterbox_undoes_scale_and_padding_and_clips() -> None:
    # an image of 200 x 100 (h x w) at half size with 7 pixels added left and 10 above
    boxes = torch.tensor([[7.0, 10, 57, 110], [0, 0, 999, 999], [17, 20, 27, 40]])
    assert unletterbox(boxes, Placement((200, 100), (0.5, 0.5), (7, 10))).tolist() == [
        [0, 0, 100, 200],
        [0, 0, 100, 200],
        [20, 20, 40, 60],
    ]
    assert unletterbox(torch.tensor([[8.0, 9, 10, 12]]), Placement((50, 50), (2.0, 3.0), (0, 0))).tolist() == [
        [4, 3, 5, 4]
    ]
    assert unletterbox(torch.zeros(0, 4), Placement((5, 5), (1, 1), (0, 0))).shape == (0, 4)
