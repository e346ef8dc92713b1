"""Clients that do not finish the head of a request are let go of; those who do are answered, over one connection."""

import http.client
import socket

import pytest

pytest.importorskip("uvicorn", reason="uvicorn, of the extra [serve], is not installed")

from serving import running

from anomalib_lite.serving.patience import patient_protocol


async def echo(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port():
    with running(echo, http=patient_protocol(0.3)) as address:
        yield int(address.rpartition(":")[2])


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nX-Slow: "])
def test_who_does_not_end_what_was_begun_is_let_go_of(port, head):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(100) == b""


def test_also_after_a_request_that_was_answered(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        told = b""
        while not told.endswith(b"ok"):
            told += connection.recv(1000)
        assert told.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET / HT")
        assert connection.recv(100) == b""


def test_a_connection_serves_again_and_again(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    sockets = set()
    for _ in range(3):
        connection.request("GET", "/")
        sockets.add(connection.sock)
        assert connection.getresponse().read() == b"ok"
    assert len(sockets) == 1
    connection.close()
