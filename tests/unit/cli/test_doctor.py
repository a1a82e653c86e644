"""What `huafang doctor` finds among the workers of a farm."""

from typing import Any

from cli.client import Client
from cli.commands.doctor import check_workers
from tests.support.command_line import Response, fake_farm

READY: dict[str, Any] = {"name": "gpu-1", "state": "ready", "models": ["mini-zh"], "refusals": {}, "devices": []}
UNLABELLED = ("ok", "off: pictures say nothing of AI (HUAFANG_AI_LABEL)")
QUARANTINE = {"quarantined_at": "2026-11-29T07:40:00Z", "next_trial_at": "2026-11-29T08:00:00Z"}


def found(*workers: dict[str, Any], quarantined: str | None = None) -> list[tuple[str, str]]:
    quarantines = [{"name": quarantined, "reason": "its calls fail", **QUARANTINE}] if quarantined else []
    with fake_farm(lambda request: Response(body={"items": workers, "quarantines": quarantines})) as farm:
        return [(finding.verdict, finding.says) for finding in check_workers(Client(farm.url, "k"))]


def test_a_quarantined_worker_is_named_with_its_reason() -> None:
    sick = READY | QUARANTINE | {"name": "gpu-2"}
    because = "gpu-2 is quarantined since 2026-11-29T07:40:00Z: its calls fail (next trial: 2026-11-29T08:00:00Z)"
    assert found(READY, sick, quarantined="gpu-2") == [
        ("warn", because),
        ("ok", "gpu-1 is ready"),
        ("ok", "gpu-2 is ready"),
        UNLABELLED,
    ]
    verdicts = [verdict for verdict, _ in found(sick, quarantined="gpu-2")]
    assert verdicts == ["fail", "warn", "ok", "ok"]  # nobody renders


def test_a_worker_that_did_not_start_and_a_sick_device_are_named() -> None:
    refused = {"name": "gpu-3", "state": "stopped", "models": [], "reason": "This machine has an NVIDIA GPU."}
    hot = READY | {"devices": [{"name": "cuda:0", "errors": ["its driver does not answer"]}]}
    assert found(hot, refused) == [
        ("warn", "gpu-3 did not start: This machine has an NVIDIA GPU."),
        ("ok", "gpu-1 is ready"),
        ("warn", "gpu-1, device cuda:0: its driver does not answer"),
        UNLABELLED,
    ]


def test_a_farm_of_an_older_version_is_read() -> None:
    older = {name: value for name, value in READY.items() if name != "devices"}
    with fake_farm(lambda request: Response(body={"items": [older]})) as farm:
        assert [finding.verdict for finding in check_workers(Client(farm.url, "k"))] == ["ok", "ok"]


def test_it_says_whether_pictures_are_labelled() -> None:
    labelled = READY | {"class": {"device": "cpu", "ai_label": "visible"}}
    on = "visible: pictures have the AI label of GB 45438-2025 (HUAFANG_AI_LABEL)"
    assert found(labelled)[-1] == ("ok", on)
    mixed = "workers differ (off, visible): give them all the same HUAFANG_AI_LABEL"
    assert found(labelled, READY)[-1] == ("warn", mixed)
