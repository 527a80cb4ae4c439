"""What tests of the app share: a whole small run, made once."""

import pytest

from tests.flower_app.app_runs import Run, run_app


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Forty clients, four rounds, hog-linear, twenty encrypted questions."""
    return run_app(
        tmp_path_factory.mktemp("results"), rounds=4, sampling_rate=0.5, encrypted_test_images=20
    )
