"""What a client holds, in a simulation and in a folder of its own."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from flower_app.data import (
    PartitionSpec,
    check_node_folder,
    load_dataset,
    load_inputs,
    load_node_folder,
    load_partitions,
    simulated_client,
)
from flower_app.data.idx import to_idx
from flower_app.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


@pytest.mark.parametrize("kind", ["hog", "pixels"])
def test_a_simulated_client_holds_its_rows(kind: str) -> None:
    dataset = load_dataset()
    inputs = load_inputs(dataset, kind)  # type: ignore[arg-type]
    partitions = load_partitions(PartitionSpec(), dataset)
    client = simulated_client(inputs, partitions, 7)
    rows = partitions.rows(7)
    assert len(client) == 50
    np.testing.assert_array_equal(client.labels, dataset.train.labels[rows])
    np.testing.assert_array_equal(client.inputs, inputs.train(rows))


def write_idx(folder: Path, *, packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        content = to_idx(array)
        path = folder / f"train-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("layout", ["flat", "packed", "torchvision", "npz"])
def test_a_node_reads_its_own_folder(layout: str, tmp_path: Path) -> None:
    if layout == "npz":
        np.savez(tmp_path / "mine.npz", images=IMAGES, labels=LABELS.astype(np.int32))
    else:
        place = tmp_path / "MNIST" / "raw" if layout == "torchvision" else tmp_path
        write_idx(place, packed=layout == "packed")
    assert check_node_folder(tmp_path) == []
    split = load_node_folder(tmp_path)
    np.testing.assert_array_equal(split.images, IMAGES)
    np.testing.assert_array_equal(split.labels, LABELS)
    assert split.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"images": IMAGES / 255}, "images are float64"),
        ({"images": IMAGES[:, :27]}, r"of shape \(5, 27, 28\)"),
        ({"labels": LABELS.astype(float)}, "labels are float64"),
        ({"labels": LABELS[:4]}, "5 images and 4 labels"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "there are no images"),
    ],
)
def test_each_fault_names_the_file(
    changed: dict[str, np.ndarray], fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **({"images": IMAGES, "labels": LABELS} | changed))
    assert len(check_node_folder(tmp_path)) == 1
    with pytest.raises(DataError, match=rf"mine\.npz.*{fault}"):
        load_node_folder(tmp_path)


@pytest.mark.parametrize(
    ("labels", "kept", "fault"),
    [
        (LABELS + 7, 2, r"not every label is from 0 to 9 \(10 of image 0, 11 of image 2, 12 of"),
        (LABELS.astype(int) - 2, 3, r"\(-1 of image 1, -1 of image 3\)"),
        (LABELS.astype(np.uint64) + np.uint64(2**63), 0, "no images that can be used"),
    ],
)
def test_an_image_whose_label_is_no_digit_is_left_out_and_named(
    labels: np.ndarray, kept: int, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.savez(tmp_path / "mine.npz", images=IMAGES, labels=labels)
    assert re.search(rf"mine\.npz: .*{fault}", " ".join(check_node_folder(tmp_path)))
    if not kept:
        with pytest.raises(DataError, match=fault):
            load_node_folder(tmp_path)
        return
    split = load_node_folder(tmp_path)
    assert len(split) == kept
    good = [row for row, label in enumerate(labels) if 0 <= label < 10]
    assert np.array_equal(split.images, IMAGES[good])
    assert np.array_equal(split.labels, labels[good])
    assert re.search(fault, caplog.text)


def test_every_fault_is_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=IMAGES[0], labels=LABELS + 0.5)
    assert len(check_node_folder(tmp_path)) == 2


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_an_archive_without_one_part(missing: str, tmp_path: Path) -> None:
    parts = {"images": IMAGES, "labels": LABELS}
    del parts[missing]
    np.savez(tmp_path / "mine.npz", **parts)
    with pytest.raises(DataError, match=f"mine.npz has no {missing}; add it"):
        load_node_folder(tmp_path)


def test_a_pickle_in_an_archive_is_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=np.array([object()]), labels=LABELS, allow_pickle=True)
    with pytest.raises(DataError, match=r"mine\.npz cannot be read .*; replace it"):
        load_node_folder(tmp_path)


def test_a_broken_archive(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"mine\.npz cannot be read"):
        load_node_folder(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte has 3,933 bytes where .* 3,936"):
        load_node_folder(tmp_path)


def test_no_labels_no_folder_two_archives(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert "train-labels-idx1-ubyte" in check_node_folder(tmp_path)[0]
    assert "is not a folder" in check_node_folder(tmp_path / "nowhere")[0]
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", images=IMAGES, labels=LABELS)
    assert "several .npz files (a.npz, b.npz)" in check_node_folder(tmp_path)[0]
