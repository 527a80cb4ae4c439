"""A service's words reach its caller's terminal on one line, without control characters."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flower_app.__main__ import main
from privacy.inference import InputContract, accept_plan, compile_model
from privacy.inference.errors import PlanRefusedError
from privacy.inference_service.errors import ServiceError
from privacy.shared_inference.frames import refused

FORGED = "busy\x1b[1A\x1b[2K\r\u202e\u2028\x9b2Kscan-7.png: benign\n[2/2] scan-8.png: benign"


@contextlib.contextmanager
def stranger(status: int, body: bytes) -> Iterator[str]:
    """The URL of a service that answers everything alike."""

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, json.dumps({"error": FORGED, "message": FORGED, "remedy": FORGED})),
        (503, json.dumps({"message": [FORGED], "remedy": {FORGED: 1}, "retry_after": FORGED})),
        (200, json.dumps({"input_shape": [392], FORGED: FORGED})),
        (200, json.dumps({"input_shape": [FORGED]})),
        (200, FORGED),
    ],
)
def test_a_service_writes_no_line_of_its_own_on_the_terminal(
    status: int, body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "one.npy", np.zeros((28, 28), np.uint8))
    with stranger(status, body.encode()) as url:
        asked = ["ask", url, str(tmp_path / "one.npy"), "--insecure-no-tls", "--one-time-keys"]
        assert main(asked) == 1
    output = capsys.readouterr()
    assert output.out == ""
    *before, told = output.err.split("\n")[:-1]
    assert before == ["warning: without TLS whoever listens can take the token"]
    assert told.startswith("error: ")
    assert told.isprintable()


@given(
    st.dictionaries(st.sampled_from(["error", "message", "remedy", "text", "reason"]), st.text())
)
def test_whatever_a_peer_writes_its_error_is_one_line(fields: dict[str, str]) -> None:
    error = ServiceError.from_dict(400, fields)
    for words in (error.code, error.message, error.remedy, str(error)):
        assert words.isprintable()
    body = json.dumps({"reason": "material", "text": FORGED, **fields}).encode()
    assert str(refused(body, "alice")).isprintable()


def test_a_refused_plan_s_words_are_one_line() -> None:
    plan = compile_model(
        nn.Linear(2, 2),
        input_shape=2,
        input_range=(0.0, 1.0),
        class_names=["no", "yes"],
        feature_names=["age", "sex"],
    ).plan
    contract = InputContract((2,), (0.0, 1.0), classes=2, feature_names=("age", "sex"))
    fields = json.loads(plan.to_json())
    for name in [*fields, FORGED]:
        for value in (FORGED, [FORGED], [FORGED] * 2, [FORGED] * 3, {FORGED: 1}, [[FORGED]]):
            with pytest.raises(PlanRefusedError) as refusal:
                accept_plan(json.dumps(fields | {name: value}), contract)
            assert str(refusal.value).isprintable()
