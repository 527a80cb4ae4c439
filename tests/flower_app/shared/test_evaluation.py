"""A run whose model is tested in shares, by two workers as processes."""

from pathlib import Path

from tests.flower_app.app_runs import run_app


def test_a_run_tests_its_relu_network_in_shares(tmp_path: Path) -> None:
    run = run_app(
        tmp_path,
        rounds=1,
        sampling_rate=0.5,
        model="relu-cnn",
        encrypted_test_images=4,
        encrypted_backend="shared",
    )
    shared = run.metrics["encrypted"]
    assert (shared["backend"], shared["images"], shared["agreement"]) == ("shared", 4, 1.0)
    assert shared["max_logit_error"] <= shared["proved_logit_error"]
    assert shared["exchanges"] == 6
    page = (run.folder / "report.html").read_text()
    for words in (
        "Questions and answers in secret shares",
        "no two of them collude",
        "Each of the two workers",
        "Inference in shares: the certificate",
        "from a malicious worker",
        "Images that neither worker saw",
    ):
        assert words in page
    assert "CKKS" not in page
