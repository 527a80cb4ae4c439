"""The images and the compose file: hardened, and with health checks that work."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
SERVERS = ("superlink", "supernode", "service")


class Answers(BaseHTTPRequestHandler):
    """200 at /health, 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_health_check_tells_an_answer_from_none(port: int) -> None:
    def check(url: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-I", str(DEPLOY / "healthcheck.py"), url],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    assert check(f"http://127.0.0.1:{port}/health") == (0, "")
    code, said = check(f"http://127.0.0.1:{port}/other")
    assert (code, "answers 503" in said) == (1, True)
    code, said = check(f"https://127.0.0.1:{port}/health")  # which speaks no TLS
    assert (code, "does not answer" in said) == (1, True)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"][0].startswith("/tmp:")  # noqa: S108
    named = {volume.split(":")[0] for volume in service["volumes"]} & set(COMPOSE["volumes"])
    for volume in service["volumes"]:
        source, _, rest = volume.rpartition("}") if "}" in volume else (volume, "", volume)
        assert volume.split(":")[0] in named or rest.endswith(":ro"), f"{source} can be written to"
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])


@pytest.mark.parametrize("name", SERVERS)
def test_compose_and_image_ask_the_same_health_check(name: str) -> None:
    stage = DOCKERFILE.split(f" AS {name}\n")[1].split("\nFROM ")[0]
    given = re.search(r"HEALTHCHECK .*?CMD \[(.*?)\]", stage, re.DOTALL)
    assert given is not None
    command = [part.strip(' "') for part in given[1].split(",")]
    assert COMPOSE["services"][name]["healthcheck"]["test"] == ["CMD", *command]
    assert "deploy/healthcheck.py /opt/bloomseal/healthcheck.py" in DOCKERFILE
    port = re.search(r":(\d+)/health", command[-1])
    assert port is not None
    asked = " ".join(COMPOSE["services"][name]["command"])
    assert name == "supernode" or f"--port={port[1]}" in asked  # a SuperNode's own is 9094


def test_questions_of_invitations_can_be_counted_beside_the_tokens() -> None:
    service = COMPOSE["services"]["service"]
    (tokens,) = (each for each in service["command"] if each.startswith("--tokens="))
    folder = tokens.removeprefix("--tokens=").rpartition("/")[0]
    assert f"service-tokens:{folder}" in service["volumes"]
    runtime = DOCKERFILE.split(" AS runtime\n")[1]
    assert f" {folder} " in runtime.split("install -d -o 10001")[1].split("&&")[0]


def test_no_stage_that_runs_is_roots() -> None:
    runtime = DOCKERFILE.split(" AS runtime\n")[1]
    assert "\nUSER 10001:10001\n" in runtime
    assert runtime.count("\nUSER ") == 1
    for name in SERVERS:
        base = re.search(rf"^FROM (\w+) AS {name}$", DOCKERFILE, re.MULTILINE)
        assert base is not None
        assert base[1] in ("runtime", "federation")
