"""Verdicts told to others: all of them, in order, whatever happens to the receiver or to us."""

import http.server
import json
import shutil
import socket
import subprocess
import threading
import time

import pytest

from anomalib_lite.serving import delivery as module
from anomalib_lite.serving.delivery import Delivery, Mqtt, Webhook
from anomalib_lite.serving.journal import Journal


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(module, "_LONGEST_WAIT", 0.1)


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j") as journal:
        yield journal


class Web:
    """A server that answers as it is told to."""

    def __init__(self):
        self.got, self.answers = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = outer.answers.pop(0) if outer.answers else 204
                if code == "hang up":
                    self.connection.close()
                    return
                if 200 <= code < 300:
                    outer.got.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/verdicts"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def seqs(self):
        return [entry["seq"] for _, entry in self.got]


@pytest.fixture
def web():
    web = Web()
    yield web
    web.server.shutdown()
    web.server.server_close()


def filled(journal, count):
    for i in range(count):
        journal.append({"verdict": "good", "n": i})


class TestDelivery:
    def test_all_in_order(self, journal, web):
        filled(journal, 3)
        delivery = Delivery(journal, Webhook(web.url))
        filled(journal, 2)
        delivery.tell()
        assert delivery.stop() == 0
        assert web.seqs() == [1, 2, 3, 4, 5]
        assert web.got[0][0] == "application/json"

    @pytest.mark.parametrize("answers", [[500, 503], [404], ["hang up", "hang up"], [302]])
    def test_until_it_is_taken(self, journal, web, answers):
        web.answers = list(answers)
        filled(journal, 3)
        said = []
        delivery = Delivery(journal, Webhook(web.url), said.append)
        assert delivery.stop() == 0
        assert web.seqs() == [1, 2, 3]
        assert len(said) == 2
        assert "trying again" in said[0]
        assert "taken now" in said[1]

    def test_goes_on_where_it_was(self, journal, web):
        filled(journal, 3)
        assert Delivery(journal, Webhook(web.url)).stop() == 0
        filled(journal, 2)
        assert Delivery(journal, Webhook(web.url)).stop() == 0
        assert web.seqs() == [1, 2, 3, 4, 5]

    def test_nobody_is_there(self, journal, web):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        filled(journal, 4)
        said = []
        delivery = Delivery(journal, Webhook(f"http://127.0.0.1:{port}/"), said.append)
        time.sleep(0.1)
        assert delivery.stop(0.1) == 4
        assert len(said) == 1
        assert Delivery(journal, Webhook(web.url)).stop() == 0  # the next one gets all of it
        assert web.seqs() == [1, 2, 3, 4]

    def test_of_another_journal_all_is_new(self, journal, web, tmp_path):
        (tmp_path / "j.webhook").write_text("100000")
        filled(journal, 2)
        assert Delivery(journal, Webhook(web.url)).stop() == 0
        assert web.seqs() == [1, 2]

    def test_what_is_not_on_the_disk_yet_is_not_told(self, journal, web):
        filled(journal, 1)
        with journal.path.open("ab") as file:
            file.write(b'{"seq": 2}\n')
        assert Delivery(journal, Webhook(web.url)).stop() == 1
        assert web.seqs() == [1]

    def test_two_receivers_each_get_all(self, journal, web):
        filled(journal, 2)
        other = Webhook(web.url)
        other.name = "another"
        both = [Delivery(journal, Webhook(web.url)), Delivery(journal, other)]
        assert [one.stop() for one in both] == [0, 0]
        assert sorted(web.seqs()) == [1, 1, 2, 2]


class TestAddresses:
    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/", "host:80", "", "http://"])
    def test_what_is_no_webhook(self, url):
        with pytest.raises(ValueError, match="http://"):
            Webhook(url)

    @pytest.mark.parametrize(
        "url", ["http://host/topic", "mqtt://host", "mqtt:///topic", "mqtt://host/a/#", "mqtt://h/+"]
    )
    def test_what_is_no_broker(self, url):
        pytest.importorskip("paho.mqtt", reason="paho-mqtt, the extra [serve], is not installed")
        with pytest.raises(ValueError, match="mqtt://host/topic"):
            Mqtt(url)

    def test_a_password_on_the_command_line(self):
        pytest.importorskip("paho.mqtt", reason="paho-mqtt, the extra [serve], is not installed")
        with pytest.raises(ValueError, match="ANOMALIB_LITE_MQTT_PASSWORD"):
            Mqtt("mqtt://user:secret@host/topic")


MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class Broker:
    """A real mosquitto on loopback, that can be stopped and started again."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [MOSQUITTO, "-p", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("mosquitto does not answer")

    def stop(self):
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def broker():
    pytest.importorskip("paho.mqtt", reason="paho-mqtt, the extra [serve], is not installed")
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    broker = Broker()
    yield broker
    broker.stop()


@pytest.fixture
def subscribed(broker):
    from paho.mqtt import client

    got = []
    listener = client.Client(client.CallbackAPIVersion.VERSION2)
    listener.on_message = lambda _, __, message: got.append((message.topic, json.loads(message.payload)["seq"]))
    listener.on_connect = lambda one, *_: one.subscribe("line/#", qos=1)
    ready = threading.Event()
    listener.on_subscribe = lambda *_: ready.set()
    listener.connect("127.0.0.1", broker.port)
    listener.loop_start()
    assert ready.wait(5)
    yield got
    listener.disconnect()
    listener.loop_stop()


class TestMqtt:
    def test_a_real_broker_gets_all(self, broker, subscribed, journal):
        got = subscribed
        filled(journal, 5)
        assert Delivery(journal, Mqtt(f"mqtt://127.0.0.1:{broker.port}/line/3")).stop() == 0
        time.sleep(0.3)
        assert got == [("line/3", i) for i in range(1, 6)]

    def test_a_broker_that_goes_and_comes_back(self, broker, subscribed, journal):
        got = subscribed
        filled(journal, 2)
        delivery = Delivery(journal, Mqtt(f"mqtt://127.0.0.1:{broker.port}/line/3"))
        deadline = time.monotonic() + 5
        while len(got) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        broker.stop()
        filled(journal, 3)
        delivery.tell()
        time.sleep(0.3)
        broker.start()
        assert delivery.stop(20) == 0
        assert (journal.path.parent / "j.mqtt").read_text() == str(journal.end)
