"""Prediction from Python, with a stand-in network that always sees the same boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.labels.yolo_txt import read_label_file
from tests.networks import tiny_model
from tests.saying import assert_says
from utils.errors import DataError, SettingsError
from utils.geometry.region import Region, dense_masks, no_region, polygon_region
from utils.geometry.rle import decode_region
from utils.image_size import size_on_multiple
from utils.inference.predictor import Predictor, class_numbers
from utils.inference.results import Results
from utils.metrics.coco_eval import coco_results
from utils.precision import choose_precision


class FixedNetwork(nn.Module):
    """Returns fixed rows, (A, 4 + nc) cxcywh in network pixels and probabilities, and records its input's shape."""

    def __init__(self, rows: list[list[float]], names: list[str]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)
        self.names, self.nc, self.stride, self.multiple = names, len(names), [8, 16, 32], 32
        self.channels, self.trained_size, self.static_hw, self.pixel_range = 3, None, None, None
        self.seen: Tensor | None = None

    def deploy(self) -> nn.Module:
        """Return itself: there is nothing to fold."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.rows.T[None].expand(len(images), -1, -1)


CPU = choose_precision("cpu", "off")


def predictor(**settings: object) -> Predictor:
    """A predictor at 320 pixels whose network sees a 'cat' of 100 x 50 at (160, 80) and a weak 'dog'."""
    network = FixedNetwork([[160, 80, 100, 50, 0.9, 0.1], [40, 50, 20, 20, 0.05, 0.3]], ["cat", "dog"])
    return Predictor(network, **({"image_size": 320, "precision": CPU} | settings))


def trained_with(trained: tuple[float, float], **settings: object) -> Predictor:
    """A predictor whose network was trained with a range of pixel values."""
    network = FixedNetwork([[160, 80, 100, 50, 0.9]], ["cat"])
    network.pixel_range = trained
    return Predictor(network, **({"image_size": 320, "precision": CPU} | settings))


def test_boxes_come_back_in_the_images_own_pixels() -> None:
    found = predictor()
    (result,) = found(
        np.full((300, 640, 3), 255, np.uint8)
    )  # ratio 0.5: 150 x 320, padded to 160 x 320 by 5 at the top
    assert tuple(found.net.seen.shape) == (1, 3, 160, 320)
    assert result.boxes_xyxy[0].tolist() == pytest.approx([220, 100, 420, 200])
    assert result.scores.tolist() == pytest.approx([0.9, 0.3])
    assert result.classes.tolist() == [0, 1]
    assert len(result) == 2
    assert set(result.speed) == {"preprocess", "inference", "nms"}


def test_input_is_rgb_between_0_and_1() -> None:
    found = predictor()
    image = np.zeros((320, 320, 3), np.uint8)
    image[..., 0] = 255
    found(image)
    assert found.net.seen.amax((0, 2, 3)).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("hw", "expected"),
    [((320, 320), (320, 320)), ((100, 400), (96, 320)), ((4000, 100), (320, 32)), ((1, 1), (320, 320))],
)
def test_network_sees_the_smallest_multiple_of_the_stride(hw: tuple[int, int], expected: tuple[int, int]) -> None:
    found = predictor()
    found(np.zeros((*hw, 3), np.uint8))
    assert tuple(found.net.seen.shape[2:]) == expected


def test_paths_arrays_and_lists(tmp_path: Path, write_image) -> None:
    path = write_image(tmp_path / "фото.png", (40, 60))
    found = predictor()
    assert [result.path.name for result in found(path)] == ["фото.png"]
    assert [result.path.name for result in found(str(path))] == ["фото.png"]
    assert [result.path.name for result in found([path, np.zeros((5, 6, 3), np.uint8)])] == ["фото.png", "image1"]
    assert found([]) == []


@pytest.mark.parametrize(
    "array", [np.zeros((5, 6), np.uint8), np.zeros((5, 6, 3), np.float32), np.zeros((0, 6, 3), np.uint8)]
)
def test_the_network_gets_nothing_but_uint8_rgb(array: np.ndarray) -> None:
    with pytest.raises(DataError) as caught:
        predictor().predict(array, Path("image0"))
    assert_says(caught.value, "image0", array.shape, array.dtype, "(height, width, 3) uint8")


def test_anything_that_yields_images_is_taken(tmp_path: Path, write_image) -> None:
    paths = [write_image(tmp_path / f"{number}.png", (40, 60)) for number in range(5)]
    found = predictor(batch=2)
    for images in (tuple(paths), iter(paths), (path for path in paths), map(str, paths), dict.fromkeys(paths).keys()):
        assert [result.path for result in found(images)] == paths


def test_deep_images_are_scaled_as_in_training_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    image = np.full((32, 32, 3), 2048, np.uint16)
    found = trained_with((0.0, 4095.0))
    assert np.unique(found(image)[0].image).tolist() == [128]
    (line,) = capsys.readouterr().out.splitlines()
    assert_says(line, "uint16", "2048", "0 to 4095", "as in training")
    found([image, image])
    assert capsys.readouterr().out == ""
    assert np.unique(trained_with((0.0, 4095.0), pixel_range=(0, 2048))(image)[0].image).tolist() == [255]


def test_uint16_without_a_known_range_takes_16_bits_and_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert np.unique(predictor()(np.full((32, 32), 2570, np.uint16))[0].image).tolist() == [10]
    assert_says(capsys.readouterr().out, "0 to 65535", "pixel_range", "--pixel-range", "0 to 4095")


@pytest.mark.parametrize("given", [(1, 0), [1], "12", (0, "x")])
def test_a_range_that_is_none_is_refused(given: object) -> None:
    with pytest.raises(DataError) as caught:
        predictor(pixel_range=given)
    assert_says(caught.value, "pixel_range", "--pixel-range")


def test_a_network_of_other_channels_is_refused() -> None:
    network = FixedNetwork([[160, 80, 100, 50, 0.9]], ["cat"])
    network.channels = 4
    with pytest.raises(SettingsError) as caught:
        Predictor(network, precision=CPU)
    assert_says(caught.value, "4 channels", 3)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg"):
        predictor()(tmp_path / "none.jpg")


def test_settings_act() -> None:
    image = np.zeros((320, 320, 3), np.uint8)
    assert len(predictor(conf_thres=0.5)(image)[0]) == 1
    assert len(predictor(max_det=1)(image)[0]) == 1
    assert predictor(classes=["dog"])(image)[0].classes.tolist() == [1]
    assert predictor(classes=[0])(image)[0].classes.tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"conf_thres": 1.5}, ("--conf-thres 1.5",)),
        ({"iou_thres": -0.1}, ("--iou-thres -0.1",)),
        ({"max_det": 0}, ("--max-det 0",)),
        ({"classes": ["doog"]}, ("--classes doog", "'dog'")),
        ({"classes": [2]}, ("--classes 2", "0..1", "cat, dog")),
        ({"image_size": 0}, ("--img 0",)),
        ({"image_size": (1, 2, 3)}, ("--img 1 2 3",)),
    ],
)
def test_settings_out_of_range(settings: dict[str, object], facts: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as caught:
        predictor(**settings)
    assert_says(caught.value, *facts)


def test_size_is_rounded_up_to_the_stride_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert size_on_multiple(640, 32) == (640, 640)
    assert size_on_multiple([320, 640], 32) == (320, 640)
    assert capsys.readouterr().out == ""
    assert size_on_multiple([100, 333], 32) == (128, 352)
    assert_says(capsys.readouterr().out, "--img 100 333", 32, "128 x 352")


def test_class_numbers() -> None:
    assert class_numbers(None, ["a"]) is None
    assert class_numbers(["1", "a", 0], ["a", "b"]) == [1, 0, 0]
    assert class_numbers(["1"], ["a", "b", "1"]) == [2]  # a name wins over a number


def result() -> Results:
    """Two objects in an image of 200 x 100."""
    boxes = np.array([[20, 10, 60, 50], [150.5, 0, 200, 100]], np.float32)
    image = np.arange(100 * 200 * 3).reshape(100, 200, 3).astype(np.uint8)
    return Results(Path("dir/a.jpg"), image, boxes, np.array([0.75, 0.5], np.float32), np.array([1, 0]), ["cat", "dog"])


def test_txt_rows() -> None:
    assert result().txt_rows() == ["1 0.2 0.3 0.2 0.4", "0 0.87625 0.5 0.2475 1"]
    assert result().txt_rows(with_conf=True)[0] == "1 0.2 0.3 0.2 0.4 0.75"


def test_coco_rows() -> None:
    rows = result().coco_rows(7)
    assert rows[0] == {"image_id": 7, "file_name": "a.jpg", "category_id": 1, "bbox": [20, 10, 40, 40], "score": 0.75}
    assert rows[1]["bbox"] == [150.5, 0, 49.5, 100]


def test_coco_rows_are_those_of_an_evaluation() -> None:
    found = result()
    found.boxes_xyxy[0] = [20.00012, 10, 60, 50]
    found.scores[:] = [0.7500001, 0.75]  # different float32 numbers, which five decimals would make a tie
    rows = np.concatenate((found.boxes_xyxy, found.scores[:, None], found.classes[:, None]), 1)
    expected = coco_results({7: rows}, [0, 1])
    assert expected[0]["score"] > expected[1]["score"]
    assert found.coco_rows(7) == [row | {"file_name": "a.jpg"} for row in expected]


def test_crop_and_counts() -> None:
    assert np.array_equal(result().crop(0), result().image[10:50, 20:60])
    assert result().crop(1).shape == (100, 50, 3)
    assert result().counts() == {"cat": 1, "dog": 1}


def test_a_box_of_no_size_still_gives_a_pixel() -> None:
    flat = result()
    flat.boxes_xyxy[0] = [200, 100, 200, 100]
    assert flat.crop(0).shape == (1, 1, 3)


def test_plot_and_save(tmp_path: Path) -> None:
    drawn = result().plot()
    assert drawn.shape == (100, 200, 3)
    assert not np.array_equal(drawn, result().image)
    assert result().save(tmp_path / "out.jpg").is_file()


class SegmentingNetwork(FixedNetwork):
    """Returns the boxes of `FixedNetwork`; the mask of the first is the image's left half, of the second the right."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        prediction = super().forward(images)
        prototypes = torch.ones(1, 1, images.shape[2] // 4, images.shape[3] // 4)
        prototypes[..., prototypes.shape[3] // 2 :] = -1
        return torch.cat((prediction, torch.tensor([[[1.0, -1.0]]])), 1), prototypes


def segmenter(**settings: object) -> Predictor:
    """As `predictor`, with masks."""
    network = SegmentingNetwork([[160, 80, 100, 50, 0.9, 0.1], [200, 50, 20, 20, 0.05, 0.3]], ["cat", "dog"])
    return Predictor(network, **({"image_size": 320, "precision": CPU} | settings))


@pytest.mark.parametrize("retina", [False, True])
def test_masks_come_at_the_images_size_and_inside_their_boxes(retina: bool) -> None:
    (result,) = segmenter(retina_masks=retina)(np.full((300, 640, 3), 255, np.uint8))
    assert (result.masks.shape, result.masks.dtype) == ((2, 300, 640), bool)
    rows, columns = np.nonzero(result.masks[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
        100,
        199,
        220,
        319,
    )  # the left half of the box 220 … 420
    assert result.masks[0].sum() == 100 * 100
    assert result.masks[1].sum() == 40 * 40
    assert set(result.speed) == {"preprocess", "inference", "nms", "masks"}
    assert not np.array_equal(result.plot()[150, 300], (255, 255, 255))


def test_a_detection_network_has_no_masks() -> None:
    (result,) = predictor()(np.full((300, 640, 3), 255, np.uint8))
    assert result.masks is None


def segmented() -> Results:
    """The two objects of `result`, the first one with a mask of 10 x 20, the second without any pixel."""
    found = result()
    found.regions = [Region(20, 30, np.ones((20, 10), bool)), no_region()]
    return found


def test_txt_rows_of_masks_are_outlines() -> None:
    first, second = segmented().txt_rows()
    number, *outline = first.split()
    assert number == "1"
    points = np.array(outline, float).reshape(-1, 2)
    assert sorted(map(tuple, points.tolist())) == [(0.15, 0.2), (0.15, 0.4), (0.2, 0.2), (0.2, 0.4)]
    assert second == "0 0.87625 0.5 0.2475 1"  # its box
    assert segmented().txt_rows(with_conf=True)[0].endswith(" 0.75")


def test_outlines_can_be_read_back_as_labels(tmp_path: Path) -> None:
    found, ring = segmented(), np.ones((30, 40), bool)
    ring[10:20, 10:30] = False
    ring[25, :] = False  # and a second part below
    found.regions[1] = Region(60, 150, ring)
    (tmp_path / "a.txt").write_text("\n".join(found.txt_rows()))
    labels = read_label_file(tmp_path / "a.txt", 2, (100, 200))
    assert labels.classes == [1, 0]
    masks = dense_masks([polygon_region(polygon, (100, 200)) for polygon in labels.polygons], (100, 200))
    assert np.array_equal(masks, found.masks)


def test_coco_rows_of_masks_have_run_lengths() -> None:
    first, second = segmented().coco_rows(7)
    assert first["segmentation"]["size"] == [100, 200]
    assert decode_region(first["segmentation"]).window == (slice(20, 40), slice(30, 40))
    assert decode_region(second["segmentation"]).area == 0
    assert first["bbox"] == [20, 10, 40, 40]


# --- several images at once


class Brightness(FixedNetwork):
    """Sees in each image one box whose place and score follow from the image's pixels; records sizes of batches."""

    def __init__(self) -> None:
        super().__init__([], ["cat", "dog"])
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        mean = images.mean((1, 2, 3))
        ones = torch.ones_like(mean)
        return torch.stack((20 + 10 * mean, 20 * ones, 10 * ones, 10 * ones, 0.5 + mean / 2, 0.1 * ones), 1)[:, :, None]


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_batches_give_what_single_images_give(batch: int) -> None:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (32, 64), (64, 64), (128, 64), (64, 128), (40, 40), (64, 64)]
    images = [rng.integers(0, 255, (*size_hw, 3), np.uint8) for size_hw in sizes]
    single = Predictor(Brightness(), 64, precision=CPU)
    many = Predictor(Brightness(), 64, precision=CPU, batch=batch)
    expected, found = single(images), many(images)
    assert [str(result.path) for result in found] == [f"image{number}" for number in range(7)]
    for one, other in zip(expected, found, strict=True):
        assert one.image is other.image
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-4)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
        assert set(other.speed) == {"preprocess", "inference", "nms"}
    assert len({round(float(result.scores[0]), 6) for result in found}) > 1
    assert sum(shape[0] for shape in many.net.shapes) == 7
    assert max(shape[0] for shape in many.net.shapes) == {1: 1, 2: 1, 3: 2, 16: 4}[batch]


def test_a_real_network_in_batches() -> None:
    model = tiny_model()
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 255, (64, 32 * (1 + number % 2), 3), np.uint8) for number in range(5)]
    options = {"image_size": 64, "conf_thres": 0.0, "max_det": 20, "precision": CPU}
    expected, found = Predictor(model, **options)(images), Predictor(model, batch=4, **options)(images)
    for one, other in zip(expected, found, strict=True):
        assert len(one) > 1
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_thresholds_by_class() -> None:
    image = np.zeros((320, 320, 3), np.uint8)
    assert predictor(conf_thres={"dog": 0.35})(image)[0].classes.tolist() == [0]
    assert predictor(conf_thres=["cat=0.95", 0.2])(image)[0].classes.tolist() == [1]
