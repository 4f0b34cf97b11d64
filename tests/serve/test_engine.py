"""The server under load, while it stops, reloads and is killed; tokens, TLS, and the protocol's messages."""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import http.client
import json
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import threading
import time

import pytest

grpc = pytest.importorskip("grpc", reason="onnx-gradcam[serve] is not installed")
triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

pytestmark = pytest.mark.serve


def body_of(photo: bytes) -> bytes:
    entry = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo).decode()]}
    return json.dumps({"inputs": [entry], "outputs": [{"name": "label"}]}).encode()


async def ask(port: int, body: bytes, *, declared: int | None = None) -> int | str:
    """The status of one request on a connection of its own, or the name of what went wrong with it."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v2/models/shapes/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {declared or len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        answer = await asyncio.wait_for(reader.read(), 60)
        return int(answer.split(b" ", 2)[1])
    except (OSError, IndexError, asyncio.TimeoutError) as error:
        return type(error).__name__
    finally:
        if writer is not None:
            writer.close()


def test_a_burst_is_answered_or_refused_and_no_connection_is_reset(server, photo):
    body = body_of(photo)

    async def burst() -> list:
        return await asyncio.gather(*[ask(server.http, body) for _ in range(200)])

    counts = collections.Counter(asyncio.run(burst()))
    assert set(counts) <= {200, 429}, counts
    assert counts[200] >= 60
    assert counts[429] > 0
    assert server.metric("onnx_gradcam_pending") == 0


def test_large_bodies_of_many_clients_get_their_answer(server):
    async def burst() -> list:
        return await asyncio.gather(*[ask(server.http, b"x" * (4 << 20), declared=64 << 20) for _ in range(16)])

    assert set(asyncio.run(burst())) == {413}


def test_slow_headers_and_slow_bodies_do_not_stop_a_fast_client(server, photo):
    body = body_of(photo)

    def times(count: int) -> list[float]:
        found = []
        for _ in range(count):
            start = time.perf_counter()
            assert asyncio.run(ask(server.http, body)) == 200
            found.append(time.perf_counter() - start)
        return found

    idle = times(40)
    head = b"POST /v2/models/shapes/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    with contextlib.ExitStack() as stack:
        slow = []
        for number in range(128):
            connection = socket.create_connection(("127.0.0.1", server.http), timeout=20)
            slow.append(stack.enter_context(connection))
            connection.sendall(head + (b"\r\n{" if number % 2 else b"X-A: "))
        assert statistics.quantiles(times(40), n=20)[-1] < 3 * statistics.quantiles(idle, n=20)[-1] + 0.05
        answers = [connection.recv(1 << 16) for connection in slow]
    assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
    assert b"the headers did not arrive in time" in answers[0]
    assert b"the body did not arrive in time" in answers[1]


def test_headers_without_end_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.http), timeout=20) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"X-A: " + b"x" * 10_000 + b"\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 431")


def test_answers_on_one_connection_do_not_wait_for_an_acknowledgement(server):
    """40 ms each if the socket delays small packets."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=20)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        connection.request("POST", "/v2/models/shapes/infer", b"{" + b" " * 5000 + b"}")
        response = connection.getresponse()
        response.read()
        seconds.append(time.perf_counter() - start)
    connection.close()
    assert response.status == 400
    assert min(seconds) < 0.03


def test_a_signal_to_stop_loses_no_request_in_flight(explained, start_server, photo, rows):
    server = start_server(explained, "--threads=1")
    body, told = body_of(photo), threading.Event()
    lost, answered = [], collections.Counter()

    def over_rest() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)
        while True:
            before = not told.is_set()
            try:
                connection.request("POST", "/v2/models/shapes/infer", body)
                status = connection.getresponse()
                status.read()
                answered[status.status] += 1
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if before and not isinstance(error, ConnectionRefusedError):
                    lost.append(repr(error))
                return

    def over_grpc() -> None:
        tensor = triton.InferInput("image", [5, 3, 96, 96], "FP32")
        tensor.set_data_from_numpy(rows)
        with triton.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
            while True:
                before = not told.is_set()
                try:
                    client.infer("shapes", [tensor])
                    answered["grpc"] += 1
                except triton.InferenceServerException as error:
                    if before:
                        lost.append(repr(error))
                    return

    threads = [threading.Thread(target=one) for one in [over_rest] * 6 + [over_grpc] * 3]
    for thread in threads:
        thread.start()
    time.sleep(1)
    told.set()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    status, answer = server.get("/v2/health/ready")
    assert (status, json.loads(answer)["problem"]) == (503, "the server is being stopped")
    for thread in threads:
        thread.join(40)
    assert server.process.wait(40) == 0
    assert lost == []
    assert set(answered) == {200, "grpc"}
    assert '"event": "stopped"' in server.log.read_text("utf-8")
    start_server.stopped(server)


def test_a_killed_server_starts_again_on_its_ports(explained, start_server, photo):
    server = start_server(explained, "--threads=1")
    assert server.request("/v2/models/shapes/infer", body_of(photo))[0] == 200
    server.process.kill()
    server.process.wait(10)
    start_server.stopped(server)
    again = start_server(explained, "--threads=1", ports=(server.http, server.grpc))
    assert again.request("/v2/models/shapes/infer", body_of(photo))[0] == 200


def test_a_folder_of_models_is_read_again_on_a_signal(repository, explained, start_server, photo, tmp_path):
    for version in "12":
        (tmp_path / "shapes" / version).mkdir(parents=True)
        shutil.copy(explained, tmp_path / "shapes" / version / "model.onnx")
    server = start_server(tmp_path, "--threads=1", name="")
    document = json.dumps({"instances": [{"b64": base64.b64encode(photo).decode()}]}).encode()
    assert server.request("/v1/models/shapes/versions/1:predict", document)[0] == 200
    assert server.request("/v1/models/shapes/versions/3:predict", document)[0] == 404
    assert server.request("/v1/models/other:predict", document)[0] == 404
    shutil.copy(repository / "models" / "shapes.onnx", tmp_path / "other.onnx")
    (tmp_path / "models.toml").write_text('[other]\nlabels = ["a", "b", "c", "d", "e", "f"]\n', "utf-8")

    def reload(event: str) -> None:
        before = server.log.read_text("utf-8").count(event)
        server.process.send_signal(signal.SIGHUP)
        for _ in range(600):
            if server.log.read_text("utf-8").count(event) > before:
                return
            time.sleep(0.05)
        raise AssertionError(f"no {event} in the log")

    reload('"event": "reloaded"')
    status, answer = server.request("/v1/models/other:predict", document)
    assert (status, json.loads(answer)["predictions"][0]["label"]) == (200, "e")
    assert server.request("/explain", photo)[0] == 404, "which of the two"
    (tmp_path / "other.onnx").write_bytes(b"no model")
    reload('"event": "reload failed"')
    status, answer = server.get("/v2/health/ready")
    assert status == 200
    assert "the last reload failed" in json.loads(answer)["problem"]
    assert server.request("/v1/models/other:predict", document)[0] == 200


@pytest.fixture(scope="module")
def guarded(explained, start_server, tmp_path_factory):
    """A server with a token and TLS, its token and its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("guarded")
    certificate, key, token = folder / "cert.pem", folder / "key.pem", folder / "token"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out"]
    subprocess.run([*command, certificate, *names], check=True, capture_output=True)
    token.write_text("0123456789abcdef\n", "ascii")
    options = [f"--token-file={token}", f"--tls-cert={certificate}", f"--tls-key={key}", "--threads=1"]
    return start_server(explained, *options), "0123456789abcdef", certificate


def test_requests_need_the_token_and_health_does_not(guarded, photo):
    server, token, certificate = guarded
    connection = http.client.HTTPSConnection(
        "127.0.0.1", server.http, context=ssl.create_default_context(cafile=certificate), timeout=20
    )

    def status(path: str, given: str | None, body: bytes | None = None) -> int:
        headers = {} if given is None else {"Authorization": given}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status

    infer, body = "/v2/models/shapes/infer", body_of(photo)
    assert status("/v2/health/ready", None) == 200
    for path, sent in ((infer, body), ("/metrics", None), ("/v2/models/shapes", None), ("/openapi.json", None)):
        assert status(path, f"Bearer {token}", sent) == 200
        for wrong in (None, "", "Bearer ", f"Bearer {token}x", token, f"Bearer {token[:-1]}"):
            assert status(path, wrong, sent) == 401, path
    connection.close()


def test_grpc_needs_the_token_too(guarded, rows):
    server, token, certificate = guarded
    tensor = triton.InferInput("image", [1, 3, 96, 96], "FP32")
    tensor.set_data_from_numpy(rows[:1])
    with triton.InferenceServerClient(
        f"localhost:{server.grpc}", ssl=True, root_certificates=str(certificate)
    ) as client:
        assert client.is_server_live()
        for headers in (None, {"authorization": "Bearer x"}):
            with pytest.raises(triton.InferenceServerException, match="UNAUTHENTICATED"):
                client.infer("shapes", [tensor], headers=headers)
        assert (
            client.infer("shapes", [tensor], headers={"authorization": f"Bearer {token}"}).as_numpy("cam") is not None
        )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tls-cert", "cert.pem"], "a certificate needs its key"),
        (["--token-file", "short"], "is no word of 16 or more ASCII characters"),
        (["--token-file", "nothing"], "nothing"),
        (["--tls-cert", "short", "--tls-key", "short"], "cannot use the certificate"),
    ],
)
def test_tokens_and_certificates_that_are_none(explained, tmp_path, start_server, options, says):
    (tmp_path / "short").write_text("abc", "ascii")
    options = [str(tmp_path / one) if one in ("short", "nothing") else one for one in options]
    with pytest.raises(RuntimeError, match=says) as refused:
        start_server(explained, *options)
    assert len(str(refused.value).strip().splitlines()) == 1


def test_messages_are_those_of_the_protocol():
    """As tritonclient's generated module has them, which registers the same names in this process."""
    from onnx_gradcam.serve.rpc import MESSAGES, message_class  # noqa: PLC0415

    for name in MESSAGES:
        outer, _, inner = name.partition(".")
        theirs = getattr(triton.service_pb2, outer).DESCRIPTOR
        theirs = theirs.nested_types_by_name[inner] if inner else theirs
        ours = message_class(name).DESCRIPTOR
        assert [field_of(f) for f in ours.fields] == [
            field_of(f) for f in theirs.fields if f.name in ours.fields_by_name
        ]
        missing = {f.name for f in theirs.fields} - {f.name for f in ours.fields}
        assert missing <= {"bf16_contents"}, name


def field_of(field) -> tuple:
    kind = field.message_type.full_name if field.message_type else None
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.name, field.number, field.type, kind, oneof


def test_a_line_of_the_log_says_what_happened_and_not_what_was_sent(server, photo):
    before = len(server.log.read_text("utf-8").splitlines())
    server.request("/v2/models/shapes/infer", body_of(photo))
    server.request("/v2/models/shapes/infer", b'{"inputs": [{"name": "SECRET"}]}')
    time.sleep(0.2)
    lines = [json.loads(line) for line in server.log.read_text("utf-8").splitlines()[before:]]
    assert [line["event"] for line in lines] == ["answered", "refused"]
    assert lines[0]["model"] == "shapes"
    assert lines[0]["ms"] > 0
    assert (lines[1]["status"], lines[1]["transport"]) == (400, "rest")
    assert base64.b64encode(photo).decode()[:40] not in server.log.read_text("utf-8")


def test_metrics_of_stages_reasons_and_heat(server, explainer, photo):
    server.request("/v2/models/shapes/infer", body_of(photo))
    text = server.get("/metrics")[1].decode()
    for stage in ("read", "parse", "answer", "encode"):
        assert f'onnx_gradcam_stage_seconds_count{{model="shapes",stage="{stage}"}}' in text
    assert 'reason="malformed"' in text
    label = explainer(photo).maps[0].target.label
    count = server.metric(f'onnx_gradcam_heat_count{{class="{label}",model="shapes"}}')
    total = server.metric(f'onnx_gradcam_heat_sum{{class="{label}",model="shapes"}}')
    assert total / count == pytest.approx(float(explainer(photo).heatmap.mean()), rel=0.2)
