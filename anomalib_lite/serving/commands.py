"""The commands for the line: they parse, call what is here, and print. Verdicts go to stdout, all else to stderr."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalib_lite.flags import ALARMS, NO_VERDICTS, DecimalComma


def watch(
    folder: Annotated[Path, typer.Argument(help="folder in which pictures arrive")],
    model: Annotated[Path, typer.Option("--model", "-m", help="model file written by fit")],
    journal: Annotated[
        Path | None, typer.Option(help="file of verdicts, a line of JSON each [default: FOLDER.verdicts.jsonl]")
    ] = None,
    move_to: Annotated[Path | None, typer.Option(help="move pictures to a folder in this one, by verdict")] = None,
    webhook: Annotated[str | None, typer.Option(help="POST every verdict to this URL")] = None,
    mqtt: Annotated[str | None, typer.Option(help="publish every verdict: mqtt://[user@]host[:port]/topic")] = None,
    silence: Annotated[
        float | None, typer.Option(help="write down 'no verdict' after so many seconds without a picture")
    ] = None,
    settle: Annotated[float, typer.Option(help="seconds for which a picture must not have changed")] = 0.1,
    patience: Annotated[float, typer.Option(help="seconds, after which a half-written picture is unreadable")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="judge what is there, and end")] = False,
    fail_on_alarm: Annotated[
        bool, typer.Option("--fail-on-alarm", help="exit with 3 on an alarm, with --once")
    ] = False,
    weights: Annotated[str | None, typer.Option(help="the backbone's weights, if they are a local file")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda [default: as fitted]")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="larger pictures get no verdict [default: as fitted]")] = None,
) -> None:
    """Judge pictures as they arrive in a folder, each once, whatever happens to the process.

    With --once the exit code is 4 if there was no verdict on some picture, else 3 with --fail-on-alarm and an alarm.
    """
    from anomalib_lite.detector import Detector
    from anomalib_lite.files.atomic import saved_in, saved_to
    from anomalib_lite.judging import Judge
    from anomalib_lite.serving.delivery import Delivery, Mqtt, Receiver, Webhook
    from anomalib_lite.serving.journal import Journal
    from anomalib_lite.serving.watching import Watch

    def complain(text: str) -> None:
        typer.echo(f"warning: {text}", err=True)

    receivers: list[Receiver] = []
    if webhook is not None:
        receivers.append(Webhook(webhook))
    if mqtt is not None:
        receivers.append(Mqtt(mqtt))
    path = journal or folder.resolve().with_name(f"{folder.resolve().name}.verdicts.jsonl")
    if move_to is not None:
        saved_in(move_to)
    if not path.exists():
        saved_to(path)
    detector = Detector.load(model, weights=weights, device=device, max_pixels=max_pixels, progress=False)
    detector.warm_up()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Journal(path) as lines:
        deliveries: list[Delivery] = []

        def tell(entry: dict[str, Any]) -> None:
            typer.echo(json.dumps(entry, ensure_ascii=False))
            for delivery in deliveries:
                delivery.tell()

        watched = Watch(
            folder,
            Judge(detector),
            lines,
            settle=settle,
            patience=patience,
            move_to=move_to,
            silence=silence,
            tell=tell,
            complain=complain,
        )
        deliveries += [Delivery(lines, receiver, complain) for receiver in receivers]
        typer.echo(f"watching {folder}, verdicts go to {path}", err=True)
        counts = watched.run(stop, once=once)
        for delivery in deliveries:
            if left := delivery.stop():
                complain(f"{left} verdicts were not taken by {delivery.receiver.name}; they are told next time")
    told = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
    typer.echo(f"{counts.total()} verdicts{told and ': ' + told}", err=True)
    if once and counts["no verdict"]:
        raise typer.Exit(NO_VERDICTS)
    if once and fail_on_alarm and counts["alarm"]:
        raise typer.Exit(ALARMS)


def serve(
    folder: Annotated[Path, typer.Argument(help="the server's own folder: history, pictures and versions of models")],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="NAME=FILE: a model by its part type; of a known one new")
    ] = None,
    good: Annotated[
        list[str] | None,
        typer.Option(help="PART=FOLDER: pictures its model was fitted on, shown beside what is judged"),
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on; all but loopback need --tokens")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    tokens: Annotated[Path | None, typer.Option(help="file of tokens, a line each: NAME TOKEN")] = None,
    keep_days: Annotated[float, typer.Option(help="days that pictures of parts that passed are kept")] = 30.0,
    keep_gigabytes: Annotated[float, typer.Option(help="of all pictures; alarms are kept longest")] = 20.0,
    keep_history_days: Annotated[
        float, typer.Option(help="days that verdicts are kept of which nobody said anything; the others stay")
    ] = 400.0,
    keep_alarm_days: Annotated[float, typer.Option(help="the same, of alarms; at least as many")] = 1200.0,
    queue_size: Annotated[int, typer.Option(help="pictures of a part type that may wait")] = 64,
    largest_body: Annotated[int, typer.Option(help="bytes of a request")] = 64 << 20,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda [default: as fitted]")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="larger pictures get no verdict [default: as fitted]")] = None,
) -> None:
    """Serve models over HTTP, with a page that shows what happens and learns from what people say of it."""
    from anomalib_lite.serving.access import Settings, is_loopback
    from anomalib_lite.serving.server import Retention, open_lines, read_tokens, run

    known = read_tokens(tokens)
    if not known and not is_loopback(host):
        raise ValueError(f"--host {host} can be reached from other machines: give --tokens, a file of NAME TOKEN lines")
    given = _by_part("--model", model, "nut=nut.safetensors")
    retention = Retention(keep_history_days, keep_alarm_days)
    lines, history = open_lines(
        folder,
        given,
        days=keep_days,
        gigabytes=keep_gigabytes,
        queue_size=queue_size,
        load={"device": device, "max_pixels": max_pixels},
        good=_by_part("--good", good, "nut=nut/train/good"),
    )
    typer.echo(f"serving {', '.join(sorted(lines))} at http://{host}:{port}", err=True)
    settings = Settings(tokens=known, largest_body=largest_body)
    run(lines, history, settings, host=host, port=port, retention=retention)


def _by_part(flag: str, given: list[str] | None, example: str) -> dict[str, Path]:
    """Paths by part type, of texts PART=PATH."""
    found = {}
    for text in given or []:
        name, _, path = text.partition("=")
        if not path:
            raise ValueError(f"{flag} {text}: give PART=PATH, such as {example}")
        found[name] = Path(path)
    return found


def serve_demo(
    folder: Annotated[Path, typer.Argument(help="folder of the demo's server")] = Path("serve-demo"),
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    seconds: Annotated[float, typer.Option(help="from part to part")] = 1.0,
) -> None:
    """Serve drawn parts before a simulated camera: open the page, and try it."""
    from anomalib_lite.serving.access import Settings
    from anomalib_lite.serving.demo import PART, Camera, demo_model, good_folder
    from anomalib_lite.serving.server import open_lines, run

    typer.echo("drawing and learning good parts ..." if not (folder / "model.safetensors").exists() else "", err=True)
    model = demo_model(folder / "model.safetensors")
    # The page may have gone on to other versions since.
    there = (folder / "server" / "models" / PART).is_dir()
    good = {PART: good_folder(model)} if good_folder(model).is_dir() else {}
    lines, history = open_lines(folder / "server", {} if there else {PART: model}, good=good)
    address = f"http://127.0.0.1:{port}"
    typer.echo(f"open {address} in a browser; Ctrl-C ends it", err=True)
    camera = Camera(address, seconds, lambda text: typer.echo(f"warning: {text}", err=True))
    try:
        run(lines, history, Settings(), host="127.0.0.1", port=port)
    finally:
        camera.stop()


def history(
    folder: Annotated[Path, typer.Argument(help="the folder of a server")],
    part: Annotated[str | None, typer.Option(help="of this part type alone")] = None,
    since: Annotated[str | None, typer.Option(help="from this time on, such as 2026-11-28T06:00 (UTC)")] = None,
    until: Annotated[str | None, typer.Option(help="up to this time")] = None,
    by: Annotated[str, typer.Option(help="report by shift (eight hours from 6, 14 and 22 UTC), day or lot")] = "shift",
    csv: Annotated[Path | None, typer.Option(help="write every verdict to this CSV file")] = None,
    decimal_comma: DecimalComma = False,
    parquet: Annotated[Path | None, typer.Option(help="write every verdict to this Parquet file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Report what a server has judged, by shift, day or lot, and export it; the server may run."""
    from anomalib_lite.files.atomic import saved_to
    from anomalib_lite.serving.history import History
    from anomalib_lite.serving.reporting import as_text, export_csv, export_parquet, report

    for file in (csv, parquet):
        if file is not None:
            saved_to(file)
    path = folder / "history.sqlite"
    if not path.is_file():
        raise ValueError(f"{folder} has no history.sqlite: give the folder of a server")
    known = History(path)
    try:
        chosen: dict[str, Any] = {"part": part, "since": since, "until": until}
        if csv is not None:
            export_csv(known.all(**chosen), csv, decimal_comma=decimal_comma)
        if parquet is not None:
            export_parquet(known.all(**chosen), parquet)
        found = report(known.all(**chosen), by)
    finally:
        known.close()
    typer.echo(json.dumps(found) if as_json else as_text(found, by))
