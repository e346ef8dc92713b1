"""The server: verdicts over HTTP, history, what people say, versions, and who is let in."""

import datetime
import json
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi, of the extra [serve], is not installed")
pytest.importorskip("sqlalchemy", reason="SQLAlchemy, of the extra [serve], is not installed")

from fastapi.testclient import TestClient
from serving import encoded, part, small_detector, spoilt

from anomalib_lite.serving.access import Settings, is_loopback
from anomalib_lite.serving.app import make_app
from anomalib_lite.serving.history import History
from anomalib_lite.serving.line import Line
from anomalib_lite.serving.pictures import Pictures
from anomalib_lite.serving.server import Retention, open_lines, read_tokens


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "nut": small_detector().save(folder / "nut.safetensors"),
        "other": small_detector(100).save(folder / "other.safetensors"),
    }


@pytest.fixture
def opened(models, tmp_path):
    lines, history = open_lines(tmp_path / "server", models)
    yield lines, history
    for line in lines.values():
        line.stop()
    history.close()


@pytest.fixture
def client(opened):
    lines, history = opened
    return TestClient(make_app(lines, history))


def score(client, pixels, model="nut", **about):
    content = pixels if isinstance(pixels, bytes) else encoded(pixels)
    return client.post(f"/v1/models/{model}/score", content=content, params=about)


def bomb(side):
    """A PNG of black pixels that is small as a file."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(b"\0" * (1 + 3 * side)) for _ in range(side)) + packed.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class TestScore:
    def test_is_what_the_detector_says(self, client, opened):
        detector = opened[0]["nut"].detector(1)
        for pixels in (part(50), spoilt(51), part(52, "bent")):
            answer = score(client, pixels, name="a", lot="7")
            assert answer.status_code == 200
            told, scores = answer.json(), detector.score([pixels])
            assert (told["verdict"], told["score"]) == (scores.verdicts[0], scores.scores[0])
            assert told["model"] == detector.digest
            entry = client.get(f"/v1/verdicts/{told['id']}").json()
            assert {entry[key] for key in ("name", "lot", "part")} == {"a", "7", "nut"}
            assert entry["score"] == told["score"]
            assert (entry["version"], entry["said"]) == (1, [])

    def test_a_form_and_a_batch(self, client):
        files = [("file", (f"{i}.png", encoded(part(50 + i)), "image/png")) for i in range(3)]
        one = client.post("/v1/models/nut/score", files=files[:1]).json()
        assert (one["name"], one["part"]) == ("0.png", "nut")
        several = client.post("/v1/models/nut/score", files=files).json()
        assert [entry["name"] for entry in several] == ["0.png", "1.png", "2.png"]
        assert several[0]["score"] == pytest.approx(one["score"], rel=1e-6)
        assert len({entry["id"] for entry in several}) == 3

    @pytest.mark.parametrize(
        "content", [b"no picture", encoded(part(50))[:300], encoded(np.zeros((64, 64, 3), np.uint8))]
    )
    def test_what_cannot_be_judged_has_no_verdict(self, client, content):
        answer = score(client, content)
        assert answer.status_code == 200
        assert answer.json()["verdict"] == "no verdict"
        assert answer.json()["reason"]

    def test_a_frozen_camera(self, client):
        verdicts = [score(client, part(50), camera=camera).json()["verdict"] for camera in ("a", "a", "b", "", "")]
        assert [verdict == "no verdict" for verdict in verdicts] == [False, True, False, False, False]

    def test_nothing_and_nobody(self, client):
        assert score(client, b"").status_code == 422
        assert score(client, part(50), model="none").status_code == 404
        assert client.get("/v1/verdicts/999").status_code == 404
        assert client.get("/v1/verdicts/999/picture").status_code == 404
        files = [("file", (f"{i}.png", b"x", "image/png")) for i in range(65)]
        assert client.post("/v1/models/nut/score", files=files).status_code in (400, 422)

    def test_many_at_once_each_get_their_own(self, client, opened):
        detector = opened[0]["nut"].detector(1)
        pictures = [spoilt(200 + i) if i % 3 == 0 else part(200 + i) for i in range(40)]
        expected = detector.score(pictures).scores
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: score(client, pictures[i], name=str(i)).json(), range(40)))
        assert [answer["name"] for answer in answers] == [str(i) for i in range(40)]
        assert np.allclose([answer["score"] for answer in answers], expected, rtol=1e-5)
        assert len({answer["id"] for answer in answers}) == 40

    def test_bombs_do_not_stop_others(self, client):
        huge = bomb(20_000)  # 1.2 GB of pixels in a megabyte
        assert len(huge) < 2_000_000
        with ThreadPoolExecutor(3) as pool:
            bombs = [pool.submit(score, client, huge) for _ in range(2)]
            started = time.monotonic()
            assert score(client, part(50)).json()["verdict"] == "good"
            assert time.monotonic() - started < 20
            assert [one.result().json()["verdict"] for one in bombs] == ["no verdict"] * 2

    def test_a_full_queue_is_said(self, models, tmp_path):
        lines, history = open_lines(tmp_path / "server", {"nut": models["nut"]}, queue_size=2)
        with TestClient(make_app(lines, history)) as client:
            line = lines["nut"]
            with line._changing, ThreadPoolExecutor(8) as pool:  # as while a version is released
                waiting = [pool.submit(score, client, part(50 + i)) for i in range(6)]
                time.sleep(1.0)
                refused = [one for one in waiting if one.done()]
                assert refused
                assert {one.result().status_code for one in refused} == {429}
                assert refused[0].result().headers["Retry-After"] == "1"
                line._changing.release()
                taken = [one.result().status_code for one in waiting if one not in refused]
                line._changing.acquire()
            assert taken
            assert set(taken) == {200}
        history.close()

    def test_who_gives_up_waiting_does_not_stop_the_line(self, client, opened):
        line = opened[0]["nut"]
        with line._changing:
            told = [line.submit(encoded(part(50 + i))) for i in range(3)]
            told[1].cancel()
            told[2].cancel()
        told[0].result(20)
        assert score(client, part(53)).status_code == 200

    def test_what_cannot_be_written_down_is_no_verdict(self, client, opened, monkeypatch):
        _, history = opened

        def full(entries):
            raise OSError("database or disk is full")

        monkeypatch.setattr(history, "write", full)
        answer = score(client, part(50))
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
        monkeypatch.setattr(history, "check", lambda: full([]))
        assert client.get("/readyz").status_code == 503
        monkeypatch.undo()
        assert client.get("/readyz").status_code == 200
        assert score(client, part(50)).status_code == 200


class TestHistory:
    def test_outlives_the_server(self, models, tmp_path):
        lines, history = open_lines(tmp_path / "server", models)
        with TestClient(make_app(lines, history)) as client:
            identity = score(client, spoilt(51)).json()["id"]
            client.post(f"/v1/verdicts/{identity}/said", json={"good": False, "kind": "colour"})
        history.close()
        lines, history = open_lines(tmp_path / "server", {})
        assert sorted(lines) == ["nut", "other"]
        with TestClient(make_app(lines, history)) as client:
            entry = client.get(f"/v1/verdicts/{identity}").json()
            assert entry["good"] is False
            assert entry["said"][0]["kind"] == "colour"
            assert client.get("/v1/models/nut/versions").json()[0]["current"]
        history.close()

    def test_kept_pictures(self, client, opened):
        alarm, good = (score(client, pixels).json() for pixels in (spoilt(51), part(50)))
        for told in (alarm, good):
            answer = client.get(f"/v1/verdicts/{told['id']}/picture")
            assert answer.headers["Content-Type"] == "image/jpeg"
            assert len(answer.content) > 500
        heat, plain = (
            client.get(f"/v1/verdicts/{alarm['id']}/picture", params={"heat": heat}).content for heat in (True, False)
        )
        assert heat != plain

    def test_another_part_types_verdicts_are_not_listed(self, client):
        mine, theirs = score(client, part(50)).json()["id"], score(client, part(150), "other").json()["id"]
        assert [entry["id"] for entry in client.get("/v1/models/nut/verdicts").json()] == [mine]
        assert [entry["id"] for entry in client.get("/v1/models/other/verdicts").json()] == [theirs]

    def test_old_and_too_many_pictures_go_and_alarms_last(self, tmp_path):
        pictures = Pictures(tmp_path / "pictures", days=30, gigabytes=1e-6)
        for identity in range(4):
            assert pictures.keep(identity, b"x" * 400, None, alarm=identity < 2)
        assert pictures.sweep(now=True) == 2
        assert [pictures.read(identity) is not None for identity in range(4)] == [True, True, False, False]
        assert Pictures(tmp_path / "pictures", days=-1, gigabytes=1).sweep(now=True) == 0  # alarms do not age

    def test_without_room_for_pictures_parts_are_judged_on(self, client, opened, monkeypatch):
        from anomalib_lite.serving import pictures

        monkeypatch.setattr(pictures, "_LEAST_FREE", 1 << 62)
        told = score(client, part(50)).json()
        assert told["verdict"] == "good"
        assert client.get(f"/v1/verdicts/{told['id']}/picture").status_code == 404
        assert client.get("/v1/models/nut/state").json()["pictures_full"]
        assert b"anomalib_lite_pictures_full 1.0" in client.get("/metrics").content

    def test_what_is_no_history(self, tmp_path):
        (tmp_path / "history.sqlite").write_bytes(b"something else" * 100)
        with pytest.raises(OSError, match="cannot be opened as a history"):
            History(tmp_path / "history.sqlite")


class TestPeople:
    def test_say_and_take_back(self, client):
        identity = score(client, spoilt(51)).json()["id"]
        path = f"/v1/verdicts/{identity}/said"
        assert client.post(path, json={"good": True, "note": "only dust", "who": "Ada"}).json()["good"] is True
        assert client.post(path, json={"good": None}).json()["good"] is None
        said = client.get(f"/v1/verdicts/{identity}").json()["said"]
        assert [one["good"] for one in said] == [True, None]
        assert (said[0]["note"], said[0]["who"]) == ("only dust", "Ada")
        assert client.post("/v1/verdicts/999/said", json={"good": True}).status_code == 404
        assert client.post(path, json={"good": "perhaps"}).status_code == 422
        assert client.post(path, json={"good": True, "note": "x" * 3000}).status_code == 422

    def test_what_is_to_be_looked_at(self, client, opened):
        alarm = score(client, spoilt(51)).json()["id"]
        score(client, part(50))
        dead = score(client, b"dead").json()["id"]
        queue = client.get("/v1/models/nut/verdicts", params={"to_look_at": True}).json()
        assert {alarm, dead} <= {entry["id"] for entry in queue}
        client.post(f"/v1/verdicts/{alarm}/said", json={"good": False})
        queue = client.get("/v1/models/nut/verdicts", params={"to_look_at": True}).json()
        assert alarm not in {entry["id"] for entry in queue}

    def test_a_sample_of_the_passes(self, client, opened):
        opened[0]["nut"]._random.seed(0)
        for i in range(80):
            score(client, part(300 + i))
        entries = client.get("/v1/models/nut/verdicts", params={"limit": 1000}).json()
        assert 0 < sum(entry["sampled"] for entry in entries) < 20
        assert not any(entry["sampled"] for entry in entries if entry["verdict"] != "good")


class TestVersions:
    def test_a_false_alarm_is_learnt_released_and_taken_back(self, client):
        bad = score(client, spoilt(51)).json()
        false = score(client, part(60, green=True)).json()
        assert (bad["verdict"], false["verdict"]) == ("alarm", "alarm")
        assert client.post("/v1/models/nut/versions", json={}).status_code == 409  # nothing is confirmed
        client.post(f"/v1/verdicts/{false['id']}/said", json={"good": True})
        client.post(f"/v1/verdicts/{bad['id']}/said", json={"good": False})
        told = client.post("/v1/models/nut/versions", json={}).json()
        assert told["version"]["state"] == "proposed"
        comparison = told["comparison"]
        assert (comparison["cured"], comparison["lost"]) == ([false["id"]], [])
        assert (comparison["before"]["good_that_alarm"], comparison["after"]["good_that_alarm"]) == (1, 0)
        assert score(client, part(60, green=True)).json()["verdict"] == "alarm"  # nothing changes by itself
        released = client.post("/v1/models/nut/versions/2/release").json()
        assert released["current"]
        after = score(client, part(60, green=True)).json()
        assert after["verdict"] == "good"
        assert after["model"] != false["model"]
        assert score(client, spoilt(51)).json()["verdict"] == "alarm"
        assert client.post("/v1/models/nut/versions", json={}).status_code == 409  # learnt already
        client.post("/v1/models/nut/versions/1/release")
        back = score(client, part(60, green=True)).json()
        assert (back["verdict"], back["score"], back["model"]) == ("alarm", false["score"], false["model"])

    def test_survives_a_restart(self, models, tmp_path):
        lines, history = open_lines(tmp_path / "server", models)
        with TestClient(make_app(lines, history)) as client:
            identity = score(client, part(60, green=True)).json()["id"]
            client.post(f"/v1/verdicts/{identity}/said", json={"good": True})
            client.post("/v1/models/nut/versions", json={})
            client.post("/v1/models/nut/versions/2/release")
        history.close()
        lines, history = open_lines(tmp_path / "server", models)  # the same files: no new versions
        with TestClient(make_app(lines, history)) as client:
            assert score(client, part(60, green=True)).json()["verdict"] == "good"
            assert len(client.get("/v1/models/nut/versions").json()) == 2
        history.close()

    def test_discarded_and_unknown_ones(self, client):
        identity = score(client, part(60, green=True)).json()["id"]
        client.post(f"/v1/verdicts/{identity}/said", json={"good": True})
        client.post("/v1/models/nut/versions", json={})
        states = client.post("/v1/models/nut/versions/2/discard").json()
        assert [one["state"] for one in states] == ["released", "discarded"]
        assert client.post("/v1/models/nut/versions/1/discard").status_code == 409
        for path in ("release", "discard"):
            assert client.post(f"/v1/models/nut/versions/9/{path}").status_code in (404, 409)
        assert client.get("/v1/models/nut/versions/9/comparison").status_code == 404

    def test_another_rate(self, client):
        told = client.post("/v1/models/nut/versions", json={"false_alarm_rate": 0.3}).json()
        assert told["comparison"]["after"]["threshold"] < told["comparison"]["before"]["threshold"]
        assert client.post("/v1/models/nut/versions", json={"false_alarm_rate": 2}).status_code == 422

    def test_judging_goes_on_while_a_version_is_made(self, client):
        identity = score(client, part(60, green=True)).json()["id"]
        client.post(f"/v1/verdicts/{identity}/said", json={"good": True})
        found = []
        busy = threading.Thread(
            target=lambda: found.append(client.post("/v1/models/nut/versions", json={}).status_code)
        )
        busy.start()
        while busy.is_alive():
            assert score(client, part(50)).status_code == 200
        assert found == [200]


class TestCourse:
    def test_the_rate_beside_its_band(self, client):
        for i in range(12):
            score(client, part(400 + i))
        score(client, spoilt(51))
        score(client, b"dead")
        told = client.get("/v1/models/nut/course").json()
        alarms = told["alarms"]
        entries = client.get("/v1/models/nut/verdicts").json()
        expected = [entry["verdict"] == "alarm" for entry in reversed(entries) if entry["verdict"] != "no verdict"]
        assert (alarms["judged"], alarms["alarms"]) == (13, sum(expected))
        assert alarms["rates"] == [sum(expected[: i + 1]) / (i + 1) for i in range(13)]
        assert alarms["promised"] == pytest.approx(2 / 25)  # the largest of 24 parts' levels up to 0.1
        assert all(low <= alarms["promised"] <= high for low, high in zip(alarms["low"], alarms["high"], strict=True))
        assert alarms["high"][12] < alarms["high"][0]  # more parts, less room for chance
        assert len(told["latency"]["milliseconds"]) == 14
        assert 0 < told["latency"]["median"] <= told["latency"]["p95"]
        assert len(told["drift"]["evidence"]) == told["drift"]["seen"] == 13
        assert client.get("/v1/models/none/course").status_code == 404

    def test_before_anything_is_judged(self, client):
        told = client.get("/v1/models/nut/course").json()
        assert (told["alarms"]["rates"], told["latency"]["median"]) == ([], None)

    def test_starts_anew_with_another_version(self, client):
        score(client, part(50))
        assert client.get("/v1/models/nut/course").json()["alarms"]["judged"] == 1
        client.post("/v1/models/nut/versions", json={"false_alarm_rate": 0.2})
        client.post("/v1/models/nut/versions/2/release")
        assert client.get("/v1/models/nut/course").json()["alarms"]["judged"] == 0
        client.post("/v1/models/nut/versions/1/release")
        assert client.get("/v1/models/nut/course").json()["alarms"]["judged"] == 1

    def test_no_more_than_the_last_ones_and_none_left_out(self, opened):
        from anomalib_lite.serving import course

        line, history = opened[0]["nut"], opened[1]
        seen = line.judge.look(encoded(part(50)))
        verdict = line.judge.judge_all([seen], ["a"])[0]
        about = {"part": "nut", "lot": "", "camera": "", "version": 1, "sampled": False}
        told = course.Course(line, history)
        for _ in range(3):  # more at a time than one page of the history
            history.write([(verdict, about)] * 1500)
            found = told.tell()
        assert len(found["alarms"]["rates"]) == 200
        assert found["drift"]["seen"] == 4500
        assert course.Course(line, history).tell()["drift"] == found["drift"]


class TestNearest:
    @pytest.fixture
    def good(self, tmp_path):
        """Pictures that a model is fitted on, in a folder."""
        from PIL import Image

        (tmp_path / "good").mkdir()
        for i in range(24):
            Image.fromarray(part(i)).save(tmp_path / "good" / f"{i}.png")
        return tmp_path / "good"

    @pytest.fixture
    def with_good(self, good, tmp_path):
        from anomalib_lite import Detector

        detector = Detector(image_size=64, workers=0, false_alarm_rate=0.1).fit(good, groups="each")
        model = detector.save(tmp_path / "nut.safetensors")
        lines, history = open_lines(tmp_path / "server", {"nut": model}, good={"nut": good})
        yield lines, history, detector
        lines["nut"].stop()
        history.close()

    def test_is_what_the_detector_says(self, with_good):
        lines, history, detector = with_good
        client = TestClient(make_app(lines, history))
        identity = score(client, spoilt(51)).json()["id"]
        told = client.get(f"/v1/verdicts/{identity}/nearest").json()
        (nearest,) = detector.score([spoilt(51)]).nearest
        assert (told["train_id"], tuple(told["box"])) == (nearest.train_id, nearest.box)
        assert told["distance"] == pytest.approx(nearest.distance)
        assert told["missing"] == ""
        sides = [client.get(f"/v1/verdicts/{identity}/nearest/{side}") for side in ("part", "good")]
        assert {answer.headers["Content-Type"] for answer in sides} == {"image/jpeg"}
        assert sides[0].content != sides[1].content
        assert client.get(f"/v1/verdicts/{identity}/nearest/..%2fgood").status_code in (404, 422)

    def test_without_pictures_it_says_so(self, client):
        identity = score(client, spoilt(51)).json()["id"]
        assert "--good" in client.get(f"/v1/verdicts/{identity}/nearest").json()["missing"]
        assert client.get(f"/v1/verdicts/{identity}/nearest/part").status_code == 200
        assert client.get(f"/v1/verdicts/{identity}/nearest/good").status_code == 404
        dead = score(client, b"dead").json()["id"]
        assert client.get(f"/v1/verdicts/{dead}/nearest").status_code == 404

    def test_other_pictures_of_the_same_names_are_not_shown(self, with_good, good):
        from PIL import Image

        lines, history, _ = with_good
        client = TestClient(make_app(lines, history))
        identity = score(client, spoilt(51)).json()["id"]
        for path in good.iterdir():
            Image.fromarray(part(1)[:50]).save(path)
        assert "is not the one" in client.get(f"/v1/verdicts/{identity}/nearest").json()["missing"]

    def test_what_was_learnt_is_kept_and_shown(self, client, opened):
        line = opened[0]["nut"]
        green = score(client, part(60, green=True)).json()["id"]
        other = score(client, spoilt(51)).json()["id"]
        client.post(f"/v1/verdicts/{green}/said", json={"good": True})
        client.post("/v1/models/nut/versions", json={})
        client.post("/v1/models/nut/versions/2/release")
        line.pictures.gigabytes = 0.0
        line.pictures.sweep(now=True)
        assert line.pictures.read(other) is None
        assert line.pictures.read(green) is not None
        line.pictures.forget([green])
        assert line.pictures.grid(green) is not None
        line.pictures.gigabytes = 1.0
        found = []
        for seed in range(60, 70):
            again = score(client, part(seed, green=True)).json()["id"]
            told = client.get(f"/v1/verdicts/{again}/nearest").json()
            shown = client.get(f"/v1/verdicts/{again}/nearest/good").status_code == 200
            found.append((told["train_id"], shown))
        assert (f"verdict {green}", True) in found
        assert all(shown == (name == f"verdict {green}") for name, shown in found)

    def test_a_part_of_an_earlier_version(self, client):
        identity = score(client, spoilt(51)).json()["id"]
        before = client.get(f"/v1/verdicts/{identity}/nearest").json()
        client.post("/v1/models/nut/versions", json={"false_alarm_rate": 0.2})
        client.post("/v1/models/nut/versions/2/release")
        told = TestClient(client.app).get(f"/v1/verdicts/{identity}/nearest").json()
        assert told == before

    def test_outlines(self, client):
        alarm, good = (score(client, pixels).json()["id"] for pixels in (spoilt(51), part(50)))
        told = client.get(f"/v1/verdicts/{alarm}/outlines").json()
        assert (told["height"], told["width"]) == (64, 64)
        corners = np.array([corner for rings in told["regions"] for ring in rings for corner in ring])
        assert np.all((corners >= 0) & (corners <= 64))
        assert np.ptp(corners, axis=0).max() > 8
        assert client.get(f"/v1/verdicts/{good}/outlines").json()["regions"] == []
        painted = [
            client.get(f"/v1/verdicts/{alarm}/picture", params={"outline": outline}).content for outline in (0, 1)
        ]
        assert painted[0] != painted[1]

    @pytest.mark.parametrize(("good", "text"), [({"bolt": "."}, "no part type 'bolt'"), ({"nut": "none"}, "none")])
    def test_pictures_that_are_none(self, models, tmp_path, good, text):
        given = {name: tmp_path / folder for name, folder in good.items()}
        with pytest.raises((ValueError, OSError), match=text):
            open_lines(tmp_path / "server", {"nut": models["nut"]}, good=given)
        assert not (tmp_path / "server").exists()


class TestRetention:
    @staticmethod
    def aged(opened, days):
        """An alarm, a pass, an alarm spoken of and one spoken of and taken back, all so old."""
        lines, history = opened
        client = TestClient(make_app(lines, history))
        ids = [score(client, pixels).json()["id"] for pixels in (spoilt(51), part(50), spoilt(52), part(53))]
        client.post(f"/v1/verdicts/{ids[2]}/said", json={"good": True})
        client.post(f"/v1/verdicts/{ids[3]}/said", json={"good": True})
        client.post(f"/v1/verdicts/{ids[3]}/said", json={"good": None})
        time = (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=days)).isoformat()
        with history._transaction() as connection:
            connection.execute(history._verdicts.update().values(time=time))
        return lines["nut"].pictures, history, ids

    @pytest.mark.parametrize(("days", "left"), [(399, [0, 1, 2, 3]), (401, [0, 2, 3]), (1201, [2, 3])])
    def test_by_days_and_never_what_was_spoken_of(self, opened, days, left):
        pictures, history, ids = self.aged(opened, days)
        assert Retention().apply(history, pictures) == 4 - len(left)
        assert [i for i, identity in enumerate(ids) if history.entry(identity) is not None] == left
        assert [i for i, identity in enumerate(ids) if pictures.read(identity) is not None] == left

    def test_new_ones_stay_and_get_new_numbers(self, opened):
        pictures, history, ids = self.aged(opened, 5000)
        lines = opened[0]
        fresh = lines["nut"].submit(encoded(part(54))).result(20)[0]
        assert Retention().apply(history, pictures) == 2
        assert history.entry(fresh) is not None
        assert lines["nut"].submit(encoded(part(55))).result(20)[0] > fresh > max(ids)

    def test_many_are_removed_a_few_at_a_time(self, opened, monkeypatch):
        from anomalib_lite.serving import history as module

        pictures, history, _ = self.aged(opened, 5000)
        monkeypatch.setattr(module, "_FORGOTTEN_AT_ONCE", 1)
        assert Retention().apply(history, pictures) == 2

    @pytest.mark.parametrize(("days", "alarm_days"), [(0, 10), (10, 9), (-1, -1)])
    def test_days_that_are_none(self, days, alarm_days):
        with pytest.raises(ValueError, match="--keep-history-days"):
            Retention(days, alarm_days)

    def test_forever(self, opened):
        pictures, history, _ = self.aged(opened, 5000)
        assert Retention(1e12, 1e12).apply(history, pictures) == 0


class TestImproving:
    @staticmethod
    def confirm(client, pixels, good):
        told = score(client, pixels).json()
        client.post(f"/v1/verdicts/{told['id']}/said", json={"good": good})
        return told

    @staticmethod
    def propose(client, **wish):
        return client.post("/v1/models/nut/versions", json=wish)

    def test_from_confirmed_good_parts(self, client):
        for i in range(30):
            self.confirm(client, part(500 + i), True)
        told = self.propose(client, learn=False, recalibrate=True).json()
        assert "threshold from 30 confirmed good parts" in told["version"]["note"]
        assert told["comparison"]["before"]["threshold"] != told["comparison"]["after"]["threshold"]
        assert not any("alarms that were good" in doubt for doubt in told["doubts"])

    def test_few_parts_and_alarms_alone_are_doubted(self, client):
        for i in range(4):
            self.confirm(client, part(60 + i, green=True), True)
        doubts = " ".join(self.propose(client, learn=False, recalibrate=True).json()["doubts"])
        assert "too few" in doubts
        assert "alarms that were good" in doubts

    def test_every_confirmed_defect_alarms(self, client):
        weak = next(
            told
            for seed in range(600, 640)
            if (told := score(client, part(seed)).json())["verdict"] == "good" and told["p_value"] < 0.5
        )
        client.post(f"/v1/verdicts/{weak['id']}/said", json={"good": False})  # a defect that passed
        told = self.propose(client, learn=False, find_confirmed=True).json()
        assert told["comparison"]["newly_found"] == [weak["id"]]
        assert told["comparison"]["after"]["threshold"] < told["comparison"]["before"]["threshold"]
        assert "of good parts" in told["version"]["note"]

    def test_defects_that_alarm_already_raise_no_threshold(self, client):
        self.confirm(client, spoilt(51), False)
        answer = self.propose(client, learn=False, find_confirmed=True)
        assert answer.status_code == 409
        assert "already" in answer.json()["detail"]

    def test_nothing_to_go_by(self, client):
        for wish, text in (
            ({"recalibrate": True}, "as good"),
            ({"find_confirmed": True}, "as bad"),
            ({"find_confirmed": True, "false_alarm_rate": 0.1}, "choose one"),
            ({"learn": False}, "nothing to learn"),
        ):
            answer = self.propose(client, **wish)
            assert answer.status_code == 409
            assert text in answer.json()["detail"]
        assert len(client.get("/v1/models/nut/versions").json()) == 1

    def test_a_rate_that_cannot_be_promised(self, client):
        assert "cannot be promised" in self.propose(client, false_alarm_rate=0.001).json()["doubts"][0]

    def test_what_was_confirmed_is_counted(self, client):
        self.confirm(client, spoilt(51), False)
        self.confirm(client, part(50), True)
        self.confirm(client, part(60, green=True), True)
        told = client.get("/v1/models/nut/state").json()["confirmed"]
        assert told == {"good": 2, "false_alarms": 1, "bad": 1}


class TestWhoIsLetIn:
    @pytest.fixture
    def guarded(self, opened):
        lines, history = opened
        return TestClient(make_app(lines, history, Settings(tokens={"s" * 20: "line 1"})))

    def test_nobody_without_a_token(self, guarded):
        schema = guarded.get("/openapi.json", headers={"Authorization": "Bearer " + "s" * 20}).json()
        tried = 0
        for path, methods in schema["paths"].items():
            if path in ("/healthz", "/readyz"):
                continue
            for method in methods:
                concrete = path.replace("{part}", "nut").replace("{identity}", "1").replace("{number}", "1")
                for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic " + "s" * 20}):
                    assert guarded.request(method, concrete, headers=header).status_code == 401
                    tried += 1
        assert tried > 30
        assert guarded.get("/openapi.json").status_code == 401

    def test_with_one(self, guarded):
        answer = guarded.post(
            "/v1/models/nut/score", content=encoded(part(50)), headers={"Authorization": "Bearer " + "s" * 20}
        )
        assert answer.status_code == 200
        assert guarded.get("/healthz").status_code == 200
        assert guarded.get("/").status_code == 200

    def test_a_strangers_page_may_not_ask(self, client):
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
            answer = client.post("/v1/models/nut/versions/1/release", headers=headers)
            assert answer.status_code == 403
        assert client.get("/healthz", headers={"Origin": "http://testserver"}).status_code == 200

    def test_bodies_that_are_too_large(self, opened):
        lines, history = opened
        client = TestClient(make_app(lines, history, Settings(largest_body=10_000)))
        assert score(client, b"x" * 10_001).status_code == 413

        def without_length():
            for _ in range(100):
                yield b"x" * 1000

        assert client.post("/v1/models/nut/score", content=without_length()).status_code == 413
        assert client.post("/v1/verdicts/1/said", content=without_length()).status_code == 411
        assert client.post("/v1/verdicts/1/said", content=b"x" * 70_000).status_code == 413

    def test_what_the_page_may_load(self, client):
        answer = client.get("/")
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "http" not in answer.text.replace("http-equiv", "")

    @pytest.mark.parametrize("path", ["/v1/models/..%2f..%2fetc/score", "/../history.sqlite", "/page.py", "/v1/../1"])
    def test_no_path_of_the_server(self, client, path):
        assert client.get(path).status_code in (404, 405)

    def test_whoever_is_reached_from_elsewhere_needs_tokens(self):
        assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "host")] == [
            *[True] * 3,
            *[False] * 3,
        ]

    @pytest.mark.parametrize("text", ["", "name short", "name", "# a comment"])
    def test_tokens_that_are_none(self, tmp_path, text):
        (tmp_path / "tokens").write_text(text)
        with pytest.raises(ValueError, match="tokens"):
            read_tokens(tmp_path / "tokens")

    def test_tokens(self, tmp_path):
        (tmp_path / "tokens").write_text(f"# who may\nline1 {'a' * 16}\n\nline2 {'b' * 16}\n")
        assert read_tokens(tmp_path / "tokens") == {"a" * 16: "line1", "b" * 16: "line2"}
        assert read_tokens(None) == {}


class TestOpening:
    def test_a_new_file_is_a_new_version(self, models, tmp_path):
        lines, history = open_lines(tmp_path / "server", {"nut": models["nut"]})
        lines["nut"].stop()
        history.close()
        lines, history = open_lines(tmp_path / "server", {"nut": models["other"]})
        assert lines["nut"].version.number == 2
        lines["nut"].stop()
        history.close()

    def test_without_a_model(self, tmp_path):
        with pytest.raises(ValueError, match="no models yet"):
            open_lines(tmp_path / "server", {})

    @pytest.mark.parametrize("name", ["../nut", "a/b", "", ".hidden", "x" * 65, "a b"])
    def test_names_that_are_none(self, models, tmp_path, name):
        with pytest.raises(ValueError, match="part type"):
            open_lines(tmp_path / "server", {name: models["nut"]})

    def test_what_is_no_model(self, tmp_path):
        (tmp_path / "m").write_bytes(b"none")
        with pytest.raises(ValueError, match="not a model file"):
            open_lines(tmp_path / "server", {"nut": tmp_path / "m"})
        assert not (tmp_path / "server").exists()  # nothing was begun

    def test_the_folder_is_its_owners_alone(self, opened, tmp_path):
        assert (tmp_path / "server").stat().st_mode & 0o077 == 0


class TestReport:
    def test_by_shift_day_and_lot(self, opened, client, tmp_path):
        from anomalib_lite.serving.reporting import as_text, export_csv, report

        for pixels, lot in ((part(50), "a"), (spoilt(51), "a"), (part(52), "b")):
            told = score(client, pixels, lot=lot, name="=cmd()").json()
            if told["verdict"] == "alarm":
                client.post(f"/v1/verdicts/{told['id']}/said", json={"good": True})
        history = opened[1]
        found = report(history.all(), "lot")
        assert [(line["lot"], line["good"], line["alarm"], line["false alarms"]) for line in found] == [
            ("a", 1, 1, 1),
            ("b", 1, 0, 0),
        ]
        assert report(history.all(), "day")[0]["good"] == 2
        assert report(history.all(), "shift")[0]["shift"].endswith(("06:00", "14:00", "22:00"))
        assert "false alarms" in as_text(found, "lot")
        assert as_text([], "lot") == "nothing has been judged"
        with pytest.raises(ValueError, match="shift, day or lot"):
            report([], "week")
        assert report(history.all(part="other"), "lot") == []
        assert report(history.all(since="2999"), "lot") == []
        text = export_csv(history.all(), tmp_path / "all.csv").read_text()
        assert len(text.splitlines()) == 4
        assert ",'=cmd()," in text

    def test_parquet(self, opened, client, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        from anomalib_lite.serving.reporting import export_parquet

        told = score(client, spoilt(51)).json()
        (row,) = parquet.read_table(export_parquet(opened[1].all(), tmp_path / "all.parquet")).to_pylist()
        assert (row["id"], row["score"]) == (told["id"], told["score"])
        assert json.loads(row["regions"]) == told["regions"]


def test_metrics(client):
    score(client, part(50))
    text = client.get("/metrics").text
    assert 'anomalib_lite_verdicts_total{part="nut",verdict="good"} 1.0' in text
    assert 'anomalib_lite_verdicts_total{part="nut",verdict="no verdict"} 0.0' in text
    assert 'anomalib_lite_version{part="nut"} 1.0' in text


def test_a_line_needs_a_model(tmp_path):
    history = History(tmp_path / "h.sqlite")
    with pytest.raises(ValueError, match="no model yet"):
        Line("nut", tmp_path / "nut", history, Pictures(Path(tmp_path))).start()
    history.close()
