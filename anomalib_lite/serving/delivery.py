"""Verdicts told to others: every line of the journal, in order, until it has been taken.

The journal is the outbox. How far a receiver has got stands in a small file beside it, written after each line that was
taken, so that nothing is lost when the power goes, or while the receiver is away; a line may come twice then, with the
same `seq`.
"""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, Protocol

from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.serving.journal import Journal

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between attempts
_TIMEOUT = 10.0  # seconds for a receiver to take a line
_MOST_READ = 1 << 16  # bytes of an answer


class Receiver(Protocol):
    """Takes verdicts."""

    name: str

    def send(self, line: bytes) -> None:
        """Hand over one line of JSON; raises OSError where it was not taken."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Webhook:
    """POSTs every verdict to a URL, as JSON; any answer of 2xx means that it was taken.

    Raises
    ------
    ValueError
        If it is no http or https URL.
    """

    def __init__(self, url: str):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"webhook {url}: give a URL that begins with http:// or https://")
        self.url, self.name = url, "webhook"

    def send(self, line: bytes) -> None:
        request = urllib.request.Request(
            self.url, line, {"Content-Type": "application/json", "User-Agent": "anomalib_lite"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                answer.read(_MOST_READ)
        except urllib.error.HTTPError as error:
            error.close()
            raise OSError(f"{self.url} answered {error.code} {error.reason}") from error

    def close(self) -> None:
        """Nothing to let go of."""


class Mqtt:
    """Publishes every verdict to a topic, with quality of service 1 (paho-mqtt).

    Parameters
    ----------
    url : "mqtt://[user@]host[:port]/topic", or "mqtts://" with TLS
        The password is the environment's ANOMALIB_LITE_MQTT_PASSWORD, since others see command lines.

    Raises
    ------
    ValueError
        If it is no such URL.
    ImportError
        Without paho-mqtt.
    """

    def __init__(self, url: str):
        try:
            from paho.mqtt import client
        except ImportError as error:
            raise ImportError("MQTT needs paho-mqtt: pip install 'anomalib_lite[serve]'") from error
        parts = urllib.parse.urlsplit(url)
        topic = urllib.parse.unquote(parts.path.lstrip("/"))
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not topic or "#" in url or "+" in topic:
            raise ValueError(f"mqtt {url}: give mqtt://host/topic, or mqtts:// with TLS; a topic without # and +")
        if parts.password:
            raise ValueError("mqtt: give the password as ANOMALIB_LITE_MQTT_PASSWORD; others see command lines")
        self.url, self.name, self.topic = url, "mqtt", topic
        self._address = parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        self._client: Any = client.Client(client.CallbackAPIVersion.VERSION2)
        if parts.username:
            self._client.username_pw_set(parts.username, os.environ.get("ANOMALIB_LITE_MQTT_PASSWORD"))
        if parts.scheme == "mqtts":
            self._client.tls_set()
        self._running = False

    def send(self, line: bytes) -> None:
        if not self._running:
            self._client.connect(*self._address, keepalive=30)
            self._client.loop_start()
            self._running = True
        message = self._client.publish(self.topic, line.rstrip(b"\n"), qos=1)
        try:
            message.wait_for_publish(_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            self.close()
            raise OSError(f"{self.url}: {error}") from error
        if not message.is_published():
            self.close()  # a message that is still queued would come twice
            raise OSError(f"{self.url} has not confirmed it within {_TIMEOUT:g} s")

    def close(self) -> None:
        """Disconnect."""
        if self._running:
            self._client.disconnect()
            self._client.loop_stop()
            self._running = False


class Delivery:
    """Tells one receiver what stands in a journal, in a thread of its own.

    Parameters
    ----------
    journal : Journal
    receiver : Receiver
    complain : called with a text when a receiver cannot be reached, and when it can be again
    """

    def __init__(self, journal: Journal, receiver: Receiver, complain: Callable[[str], None] = lambda text: None):
        self.journal, self.receiver, self.complain = journal, receiver, complain
        self.cursor = journal.path.with_name(f"{journal.path.name}.{receiver.name}")
        self._position = self._known_position()
        self._more, self._ending = threading.Event(), threading.Event()
        self._deadline = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"anomalib_lite-{receiver.name}", daemon=True)
        self._thread.start()

    def tell(self) -> None:
        """There is more in the journal."""
        self._more.set()

    def stop(self, seconds: float = 5.0) -> int:
        """Hand over what is left, for so long at most; returns how many lines were not taken. They are, next time."""
        self._ending.set()
        self._more.set()
        self._thread.join(seconds)
        self._deadline.set()
        self._thread.join(_TIMEOUT + 1)
        self.receiver.close()
        with self.journal.path.open("rb") as file:
            file.seek(self._position)
            return sum(line.endswith(b"\n") for line in file)

    def _known_position(self) -> int:
        try:
            position = int(self.cursor.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        # A journal that is shorter is another: all of it is new.
        return position if 0 <= position <= self.journal.end else 0

    def _run(self) -> None:
        while True:
            self._more.clear()
            with self.journal.path.open("rb") as file:
                file.seek(self._position)
                for line in file:
                    # Beyond its end stands what is not on the disk yet, and may be taken back.
                    if self._position + len(line) > self.journal.end or not self._sent(line):
                        break
                    self._position += len(line)
                    self._remember()
            if self._deadline.is_set() or (self._ending.is_set() and not self._more.is_set()):
                return
            self._more.wait()

    def _remember(self) -> None:
        try:
            write_atomically(self.cursor, str(self._position).encode())
        except OSError as error:  # then lines come twice after a restart
            self.complain(str(error))

    def _sent(self, line: bytes) -> bool:
        """Send a line until it is taken; False where the time is up."""
        wait, failed = _FIRST_WAIT, False
        while True:
            try:
                self.receiver.send(line)
            except (OSError, http.client.HTTPException) as error:
                if not failed:
                    self.complain(f"{self.receiver.name}: {error}; trying again until it is taken")
                failed = True
                if self._deadline.wait(wait):
                    return False
                wait = min(2 * wait, _LONGEST_WAIT)
            else:
                if failed:
                    self.complain(f"{self.receiver.name}: taken now")
                return True
