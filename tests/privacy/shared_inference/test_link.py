"""Links: whole messages both ways at once, of any size, over mutual TLS, with limits."""

import datetime
import ipaddress
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from privacy.shared_inference import (
    DataOwner,
    Link,
    Party,
    Provider,
    Worker,
    compile_model,
    converse,
    share_model,
    tls_context,
)
from privacy.shared_inference.errors import LinkError
from tests.privacy.shared_inference.shared_models import made

ROOT = Path(__file__).parents[3]
HERE = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def authority(folder: Path, *names: str) -> Path:
    """A folder with an authority and certificates it signed, for names."""
    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    root = ec.generate_private_key(ec.SECP256R1())
    for name in ("ca", *names):
        key = root if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        own = f"ca of {folder.name}" if name == "ca" else name
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, own)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ca of {folder.name}")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), HERE]), critical=False)
        )
        pem = serialization.Encoding.PEM
        signed = builder.sign(root, hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(signed.public_bytes(pem))
        kind, secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, kind, secret))
    return folder


def context(folder: Path, name: str, trusted: Path, *, listens: bool) -> ssl.SSLContext:
    files = folder / f"{name}.crt", folder / f"{name}.key", trusted / "ca.crt"
    return tls_context(*files, listens=listens)


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def both(first: Callable[[], object], second: Callable[[], object]) -> list[object]:
    """Two parties at once; what each returns or raises."""
    ends: list[object] = [None, None]

    def run(side: int, work: Callable[[], object]) -> None:
        try:
            ends[side] = work()
        except Exception as error:
            ends[side] = error

    threads = [
        threading.Thread(target=run, args=(side, work)) for side, work in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Link, Link]]:
    one, other = connected()
    if request.param == "tls":
        folder = authority(tmp_path / "trusted", "alice", "bob")
        calling = context(folder, "alice", folder, listens=False)
        listening = context(folder, "bob", folder, listens=True)
        one, other = both(  # type: ignore[assignment]
            lambda: calling.wrap_socket(one, server_hostname="bob"),
            lambda: listening.wrap_socket(other, server_side=True),
        )
    with Link(one, timeout=60.0) as first, Link(other, timeout=60.0) as second:
        yield first, second


@pytest.mark.parametrize("size", [0, 1, 1 << 15, (1 << 15) + 1, 20_000_000])
def test_messages_cross_whole_whatever_their_sizes(pair: tuple[Link, Link], size: int) -> None:
    generator = np.random.default_rng(size)
    messages = [generator.bytes(size), generator.bytes(size + size // 3)]
    got = both(*(lambda s=s: pair[s].exchange(messages[s]) for s in (0, 1)))
    assert got == messages[::-1]
    assert both(lambda: pair[0].send(b"after"), pair[1].receive)[1] == b"after"


def test_who_is_gone_or_sends_too_much_is_an_error(pair: tuple[Link, Link]) -> None:
    one, other = pair
    one._connection.sendall(struct.pack("<I", (1 << 28) + 1))
    with pytest.raises(LinkError, match="announced 268435457 bytes"):
        other.receive()
    with pytest.raises(LinkError, match="gone"):
        one.exchange(bytes(1 << 20))


def test_a_link_is_encrypted_until_nothing_can_be_sent(
    pair: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    secured: list[bool] = []
    shutdown = socket.socket.shutdown

    def watched(connection: socket.socket, how: int) -> None:
        secured.append(getattr(connection, "_sslobj", True) is not None)
        shutdown(connection, how)

    monkeypatch.setattr(socket.socket, "shutdown", watched)
    pair[0].close()
    assert secured == [True]


def test_no_more_is_taken_than_is_allowed() -> None:
    one, other = connected()
    with Link(one, timeout=60.0) as sender, Link(other, timeout=60.0, max_bytes=8) as link:
        sender.send(bytes(8))
        assert link.receive() == bytes(8)
        sender.send(bytes(9))
        with pytest.raises(LinkError, match="announced 9 bytes, 8 are allowed"):
            link.receive()


def test_messages_that_come_at_once_are_taken_one_by_one() -> None:
    one, other = connected()
    messages = [b"a", b"", bytes(70_000), b"b" * 40_000, b"c" * 40_000, b"d"]
    with one, Link(other, timeout=60.0) as link:
        assert link.quiet
        sender = threading.Thread(
            target=one.sendall, args=(b"".join(struct.pack("<I", len(m)) + m for m in messages),)
        )
        sender.start()
        for message in messages[:-1]:
            assert link.receive() == message
        assert not link.quiet
        assert link.exchange(bytes(1 << 16)) == b"d"
        sender.join()


@pytest.mark.parametrize("weak", ["client without a certificate", "older client", "older server"])
def test_both_sides_have_certificates_and_tls_of_today(weak: str, tmp_path: Path) -> None:
    """Whoever wraps a connection by hand relies on it."""
    folder = authority(tmp_path / "trusted", "alice", "bob")
    calling = context(folder, "alice", folder, listens=False)
    listening = context(folder, "bob", folder, listens=True)
    if weak == "older server":
        listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        listening.load_cert_chain(folder / "bob.crt", folder / "bob.key")
        listening.maximum_version = ssl.TLSVersion.TLSv1_2
    else:
        calling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        calling.load_verify_locations(folder / "ca.crt")
        if weak == "older client":
            calling.load_cert_chain(folder / "alice.crt", folder / "alice.key")
            calling.maximum_version = ssl.TLSVersion.TLSv1_2
    one, other = connected()

    def listen() -> bytes:
        with listening.wrap_socket(other, server_side=True) as secured:
            return secured.recv(1)

    def call() -> None:
        with calling.wrap_socket(one, server_hostname="bob") as secured:
            secured.sendall(b"!")

    ends = both(listen, call)
    assert isinstance(ends[weak == "older server"], ssl.SSLError), ends


def test_silence_ends() -> None:
    one, other = connected()
    silent = pytest.raises(LinkError, match="said nothing for 0\\.05 s")
    with Link(one, timeout=0.05) as link, other, silent:
        link.receive()


@pytest.mark.parametrize("stranger", ["alice", "bob"])
def test_a_certificate_of_another_authority_is_refused(stranger: str, tmp_path: Path) -> None:
    trusted = authority(tmp_path / "trusted", "alice", "bob")
    strange = authority(tmp_path / "strange", "alice", "bob")
    folder = {name: strange if name == stranger else trusted for name in ("alice", "bob")}
    one, other = connected()
    calling = context(folder["alice"], "alice", trusted, listens=False)
    listening = context(folder["bob"], "bob", trusted, listens=True)

    def call() -> bytes:
        with Link(calling.wrap_socket(one, server_hostname="bob"), timeout=60.0) as link:
            return link.exchange(b"hello")

    def listen() -> bytes:
        with Link(listening.wrap_socket(other, server_side=True), timeout=60.0) as link:
            return link.exchange(b"hello")

    ends = both(call, listen)
    assert all(isinstance(end, OSError) for end in ends), ends


BOB = """
import socket, sys
from pathlib import Path
from privacy.shared_inference import Link, Plan, Worker, converse, tls_context

folder = Path(sys.argv[1])
plan = Plan.from_bytes((folder / "plan").read_bytes())
bob = Worker(plan, *((folder / name).read_bytes() for name in ("letter", "model")))
bob.material.add((folder / "material").read_bytes())
files = [folder / "trusted" / name for name in ("bob.crt", "bob.key", "ca.crt")]
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection = server.accept()[0]
context = tls_context(*files, listens=True)
with Link(context.wrap_socket(connection, server_side=True)) as link:
    for _ in range(int(sys.argv[2])):
        link.send(converse(bob.answer(link.receive()), link.exchange))
"""


def test_workers_in_two_processes_answer(tmp_path: Path) -> None:
    """Bob in a process of his own; here he gets the question over alice's link."""
    shape, model = made("pools")
    compiled = compile_model(model, input_shape=shape, input_range=(-1, 1), batch_size=400)
    plan, provider = compiled.plan, Provider(compiled.plan)
    models = share_model(compiled, provider.letter(Party.MODEL_OWNER))
    material = provider.provision(3)
    folder = authority(tmp_path / "trusted", "alice", "bob")
    for name, content in {
        "plan": plan.to_bytes(),
        "letter": provider.letter(Party.BOB),
        "model": models[1],
        "material": material.bob,
    }.items():
        (tmp_path / name).write_bytes(content)
    alice = Worker(plan, provider.letter(Party.ALICE), models[0])
    owner = DataOwner(plan, provider.letter(Party.DATA_OWNER))
    alice.material.add(material.alice)
    owner.material.add(material.data_owner)
    inputs = np.random.default_rng(0).uniform(-1, 1, (400, *shape))
    command = [sys.executable, "-c", BOB, str(tmp_path), "3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        calling = context(folder, "alice", folder, listens=False)
        connection = socket.create_connection(("127.0.0.1", port))
        with Link(calling.wrap_socket(connection, server_hostname="bob")) as link:
            for _ in range(3):
                question = owner.ask(inputs)
                link.send(question.for_bob)
                answer = converse(alice.answer(question.for_alice), link.exchange)
                logits = owner.logits(question, answer, link.receive())
                assert np.abs(logits - compiled.predict(inputs)).max() <= plan.error
    assert process.returncode == 0
