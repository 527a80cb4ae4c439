"""The features: fixed, bounded, indifferent to slant and place, and good enough to be linear on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from flower_app.data import Dataset, Split, encode, load_dataset, load_inputs, typical
from flower_app.data.features import (
    DIRECTIONS,
    FEATURE_HIGH,
    FEATURE_LOW,
    FEATURES,
    gradient_features,
    hog_features,
    upright,
)
from tools.typical import written

ANY_IMAGE = arrays(
    np.uint8, (28, 28), elements=st.sampled_from([0, 1, 128, 254, 255]), fill=st.just(0)
)


@settings(max_examples=200, deadline=None)
@given(ANY_IMAGE)
def test_every_image_stays_within_the_declared_range(image: NDArray[np.uint8]) -> None:
    features = hog_features(image[None])[0]
    assert features.dtype == np.float32
    assert features.shape == (FEATURES,)
    assert np.isfinite(features).all()
    assert FEATURE_LOW <= features.min() <= features.max() <= FEATURE_HIGH
    gradients = gradient_features(image[None])[0]
    assert np.linalg.norm(gradients) <= FEATURES**0.25 + 1e-4
    np.testing.assert_allclose(gradients.reshape(-1, DIRECTIONS).sum(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(gradients - features, np.array(typical.FEATURES) / 100, atol=1e-6)


def test_the_range_is_no_wider_than_it_must_be() -> None:
    one = np.zeros(DIRECTIONS)
    one[0] = 1
    assert (one - one.mean()).max() - min(typical.FEATURES) / 100 == pytest.approx(FEATURE_HIGH)
    seven = np.full(DIRECTIONS, (DIRECTIONS - 1) ** -0.25)
    seven[0] = 0
    assert np.square(seven**2).sum() == pytest.approx(1)
    assert (seven - seven.mean()).min() - max(typical.FEATURES) / 100 == pytest.approx(FEATURE_LOW)


@pytest.mark.parametrize("kind", ["hog", "pixels"])
def test_noise_stays_within_the_declared_range(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 28, 28), dtype=np.uint8)
    low, high = {"hog": (FEATURE_LOW, FEATURE_HIGH), "pixels": (0.0, 1.0)}[kind]
    values = encode(noise, kind)  # type: ignore[arg-type]
    assert low <= values.min() <= values.max() <= high


@pytest.mark.parametrize("shade", [0, 255])
def test_an_even_image_inside_a_blank_frame_has_finite_features(shade: int) -> None:
    image = np.full((1, 28, 28), shade, np.uint8)
    assert np.isfinite(hog_features(image)).all()
    if shade == 0:
        assert not gradient_features(image).any()


@pytest.fixture(scope="module")
def digits() -> NDArray[np.uint8]:
    return load_dataset().validation.images[:200]


def test_what_is_subtracted_is_the_mean_of_digits_drawn_by_rule() -> None:
    for path, text in written().items():
        assert path.read_text() == text, f"python -m tools.typical writes {path.name} anew"


def test_digits_have_little_in_common_once_it_is_subtracted(digits: NDArray[np.uint8]) -> None:
    """The square of the mean's length beside the mean square of the length."""
    before, after = (
        np.square(table.mean(axis=0)).sum() / np.square(table).sum(axis=1).mean()
        for table in (gradient_features(digits), hog_features(digits))
    )
    assert before > 0.25
    assert after < before / 3


def test_place_does_not_matter(digits: NDArray[np.uint8]) -> None:
    inner = np.zeros_like(digits)
    inner[:, 6:-6, 6:-6] = digits[:, 6:-6, 6:-6]
    moved = np.roll(inner, (2, -3), axis=(1, 2))
    np.testing.assert_allclose(hog_features(moved), hog_features(inner), atol=1e-3)


def test_upright_pixels_keep_the_ink(digits: NDArray[np.uint8]) -> None:
    straightened = encode(digits, "pixels").sum(axis=(1, 2, 3))
    np.testing.assert_allclose(straightened, digits.sum(axis=(1, 2)) / 255, rtol=0.02)


def test_brightness_does_not_matter(digits: NDArray[np.uint8]) -> None:
    even = digits // 2 * 2
    np.testing.assert_allclose(hog_features(even // 2), hog_features(even), atol=1e-3)


def test_slant_matters_little(digits: NDArray[np.uint8]) -> None:
    slanted = np.stack(
        [np.roll(digits[:, row], round((13.5 - row) / 5), axis=1) for row in range(28)], axis=1
    )
    there, back = hog_features(digits), hog_features(slanted)
    others = np.linalg.norm(there[:100] - there[100:], axis=1)
    assert np.median(np.linalg.norm(there - back, axis=1)) < 0.25 * np.median(others)


def test_company_does_not_matter(digits: NDArray[np.uint8]) -> None:
    together = hog_features(digits)
    alone = np.concatenate([hog_features(digits[k : k + 1]) for k in range(len(digits))])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_linear_model_on_them_is_good() -> None:
    dataset = load_dataset()
    inputs = load_inputs(dataset, "hog")
    rows = np.arange(10_000)
    x = inputs.train(rows)
    targets = np.eye(10)[dataset.train.labels[rows]] - 0.1
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(FEATURES), x.T @ targets)
    right = (inputs.validation() @ weights).argmax(axis=1) == dataset.validation.labels
    # Ridge regression on raw pixels gets 0.85; these gave 0.979.
    assert right.mean() > 0.97


@pytest.mark.parametrize("kind", ["hog", "pixels"])
def test_the_kept_table_is_what_encode_gives(kind: str, tmp_path: Path) -> None:
    images = load_dataset().train.images
    splits = [
        Split(images[a:b], np.zeros(b - a, np.int64))
        for a, b in ((0, 1500), (1500, 1600), (1600, 1650))
    ]
    dataset = Dataset("few", *splits, fingerprint="few")
    lines: list[str] = []
    for _ in range(2):
        inputs = load_inputs(dataset, kind, cache_dir=tmp_path, notify=lines.append)  # type: ignore[arg-type]
        rows = np.array([7, 3, 1499])
        for got, wanted in (
            (inputs.train(rows), dataset.train.images[rows]),
            (inputs.validation(), dataset.validation.images),
            (inputs.test(), dataset.test.images),
        ):
            np.testing.assert_allclose(got, encode(wanted, kind), atol=1e-6)  # type: ignore[arg-type]
            assert got.flags.writeable
    assert len(lines) == 1
    assert "1,650 images, once" in lines[0]


@pytest.mark.parametrize(
    "images", [np.zeros((28, 28), np.uint8), np.zeros((1, 28, 28)), np.zeros((1, 27, 28), np.uint8)]
)
def test_other_shapes_and_types_are_named(images: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"images has shape .* make it"):
        encode(images, "hog")


def test_straightening_is_an_affine_map_with_linear_interpolation() -> None:
    """As SciPy's, which takes long to load."""
    generator = np.random.default_rng(3)
    noise = generator.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    specks = (generator.random((60, 28, 28)) < 0.02).astype(np.uint8) * 255
    rows, columns = np.mgrid[:28, :28].astype(np.float64)
    images = np.concatenate([noise, specks])
    for image, ours in zip(images, upright(images), strict=True):
        ink = image / 255.0
        if not ink.any():
            continue
        row, column = (ink * rows).sum() / ink.sum(), (ink * columns).sum() / ink.sum()
        spread = (ink * (rows - row) ** 2).sum()
        slant = (ink * (rows - row) * (columns - column)).sum()
        slant = slant / spread if spread > 0 else 0.0
        theirs = ndimage.affine_transform(
            ink,
            [[1.0, 0.0], [slant, 1.0]],
            offset=(row - 13.5, column - 13.5 - slant * 13.5),
            order=1,
        )
        np.testing.assert_allclose(ours, np.clip(theirs, 0, 1), atol=1e-6)
