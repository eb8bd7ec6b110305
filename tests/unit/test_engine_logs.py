"""One line per thing that happened, for people and for machines."""

from __future__ import annotations

import json
import logging

from engine.logs import JsonLines, KeyValue


def record(**extras: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "engine.worker", "levelno": logging.INFO, "levelname": "INFO"})
    made.msg = "run failed"
    for name, value in extras.items():
        setattr(made, name, value)
    return made


def test_key_value_lines_stay_one_line_whatever_a_value_holds() -> None:
    line = KeyValue().format(record(vm='web "one"\nlevel=error', why="no cable", job=None, number=3))
    assert "\n" not in line
    assert line.endswith('engine.worker: run failed vm="web \\"one\\"\\nlevel=error" why="no cable" number=3')


def test_json_lines_hold_every_extra() -> None:
    said = json.loads(JsonLines().format(record(vm="web", path=object)))
    assert (said["event"], said["level"], said["vm"]) == ("run failed", "info", "web")
