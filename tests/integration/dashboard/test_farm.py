"""The overview, the workers and the administration: what they show to whom, and their actions."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from api.dashboard.alerts import SEVERITY
from api.dashboard.i18n import LOCALE
from common import failures
from common.accounts import audit, keys, tenants
from common.accounts.audit import Action
from common.db import new_id, transaction
from common.enums import ImageState, Scope, Tier
from common.queue import workers
from common.queue.claim import Microbatch
from tests.support.serving import EVERYTHING, Api
from tests.support.stories import CATALOG, Story
from tests.support.workers import quarantine, quarantined

pytestmark = pytest.mark.timeout(60)

ZH = {"Accept-Language": "zh-CN"}
HOSTILE = "<script>alert(1)</script>"


class Visitor:
    """A browser that is signed in."""

    def __init__(self, api: Api, *scopes: Scope, tenant: str = "somebody") -> None:
        self.origin = {"Origin": api.url}
        self.browser = api.stranger()
        with transaction(api.database) as connection:
            tenant_id = tenants.ensure_tenant(connection, tenant)
            pepper = api.settings.key_pepper.get_secret_value()
            self.key = keys.create_key(connection, tenant_id, "a key of the tests", scopes, pepper)
        self.browser.post("/dashboard/sign-in", data={"key": self.key.secret}, headers=self.origin)

    def close(self) -> None:
        self.browser.close()

    def page(self, path: str, **headers: str) -> str:
        return self.browser.get(f"/dashboard{path}", headers=headers).raise_for_status().text

    def do(self, path: str, **fields: object) -> httpx.Response:
        """Press a button of a page."""
        found = re.search('"X-CSRF-Token": "([0-9a-f]+)"', self.page("/"))
        assert found
        return self.browser.post(f"/dashboard{path}", data=fields, headers=self.origin | {"X-CSRF-Token": found[1]})


@pytest.fixture
def admin(api: Api) -> Iterator[Visitor]:
    with closing(Visitor(api, Scope.ADMIN)) as visitor:
        yield visitor


@pytest.fixture
def operator(api: Api) -> Iterator[Visitor]:
    """An administrator who also runs the farm."""
    with closing(Visitor(api, *EVERYTHING)) as visitor:
        yield visitor


@pytest.fixture
def viewer(api: Api) -> Iterator[Visitor]:
    with closing(Visitor(api, Scope.VIEWER)) as visitor:
        yield visitor


@pytest.fixture
def stranger(api: Api) -> Iterator[Visitor]:
    """An administrator of another tenant."""
    with closing(Visitor(api, Scope.ADMIN, tenant="another")) as visitor:
        yield visitor


NOT_TOLD: dict[str, Any] = {"utilisation": None, "temperature_c": None, "errors": []}
CPU = {"name": "AVX512", "device": "cpu", "precision": "fp32", "torch": "2.13.0"}


def register_worker(story: Story, name: str = "gpu-1", about: Mapping[str, str] = CPU, **changes: object) -> UUID:
    """Register a worker that serves mini-zh: the one that the story claims for."""
    worker = workers.Worker(story.worker_id, name, about, ["mini-zh"], ["mini-zh"], capacity={"mini-zh": 8}, **changes)  # type: ignore[arg-type]
    with transaction(story.database) as connection:
        workers.heartbeat(connection, worker, ready=True)
    return worker.id


def fail(story: Story, microbatch: Microbatch) -> None:
    story.publish(microbatch, ImageState.FAILED, error_code="out_of_memory", error_message=f"No room. {HOSTILE}")


def row_of(page: str, row_id: str) -> list[str]:
    """The text of each cell of a row."""
    row = re.search(rf'<tr id="{row_id}".*?</tr>', page, re.S)
    assert row, page
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row[0], re.S)
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in cells]


@pytest.mark.parametrize(("template", "codes"), [("audit_table.html", Action), ("alerts.html", SEVERITY)])
def test_the_template_has_a_text_for_every_code(template: str, codes: Iterable[str]) -> None:
    text = (LOCALE.parent / "templates" / template).read_text()
    assert [code for code in codes if f'"{code}"' not in text] == []


def test_an_empty_farm_shows_what_to_do(operator: Visitor) -> None:
    page = operator.page("/")
    assert "Nothing needs attention." in page
    assert "No image waits, and none ended in the last 15 minutes." in page
    assert "huafang serve worker" in page
    assert "没有运行中的工作进程" in operator.page("/", **ZH)
    assert "huafang serve worker" in operator.page("/workers")
    assert "The audit is empty." not in operator.page("/admin")  # it has the sign-in


def test_the_overview_shows_load_failures_and_alerts(operator: Visitor, story: Story) -> None:
    register_worker(story, HOSTILE, refusals={"zh-v0": "It is gated."})
    story.submit(count=5)
    fail(story, story.started(capacity=5))
    story.submit()
    story.publish(story.started(capacity=1))
    story.submit(count=2)
    story.submit(count=3, tier=Tier.INTERACTIVE, model="zh-v1")
    keeps_failing(story, "expire", HOSTILE)
    held = story.started(capacity=1)
    page = operator.page("/")
    assert row_of(page, "load-mini-zh-standard")[2] == "1"
    assert row_of(page, "load-mini-zh-standard")[4:] == ["1", "1", "1", "0", "5"]
    assert row_of(page, "load-zh-v1-interactive")[1:3] == ["interactive", "3"]
    assert "No worker serves zh-v1 (images waiting: 3)." in page
    assert "5 images of mini-zh failed in the last 15 minutes (83%)." in page
    assert "It is gated." in page
    assert re.search(
        r"step expire keeps failing at .* \(5 times in a row since .*search the logs of the farm for 12ab34", page
    )
    assert HOSTILE not in page
    assert row_of(page, f"worker-{story.worker_id}")[1:] == [
        "ready", "AVX512 · cpu · fp32", "mini-zh", "1 image · mini-zh · standard",
    ]  # fmt: skip
    assert 'class="failed" d="M59.1' in page  # in the last minute
    assert "stored 1, flagged 0, failed 5, peak 6" in page
    chinese = operator.page("/", **ZH)
    assert "没有工作进程提供 zh-v1（等待的图像：3）。" in chinese
    assert "已存储 1, 被拦下 0, 失败 5, 最多 6" in chinese
    assert re.search(r"步骤 expire 在处理 .* 时因意外错误一再失败", chinese)
    assert len(held.images) == 1


def keeps_failing(story: Story, step: str, row: str) -> None:
    for _ in range(5):
        with transaction(story.database) as connection:
            failures.record(connection, step, row, "12ab34")
            connection.execute(text("UPDATE step_failures SET retry_at = now()"))


@pytest.mark.parametrize("headers", [{}, {"HX-Request": "true"}], ids=["page", "notice"])
def test_an_unforeseen_error_is_shown_with_its_reference(admin: Visitor, story: Story, headers: dict[str, str]) -> None:
    admin.page("/")
    with story.database.begin() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO gone"))
    answer = admin.browser.get("/dashboard/jobs", headers=headers)
    assert answer.status_code == 500
    assert f"searching the log for {answer.headers['X-Request-Id']}." in answer.text


def test_a_worker_shows_its_microbatches_but_no_job_of_another_tenant(admin: Visitor, story: Story) -> None:
    worker = register_worker(story)
    broken = story.submit()
    fail(story, story.started())
    mine, theirs = story.submit(count=2), story.submit("another")
    story.started(capacity=8)
    page = admin.page("/workers")
    assert f"/dashboard/jobs/{mine}" in page
    assert f"/dashboard/jobs/{broken}" in page
    assert str(theirs) not in page
    assert "1 job of other tenants" in page
    assert "out_of_memory" in page
    assert HOSTILE not in page
    assert "just now" in page
    with transaction(story.database) as connection:
        workers.stop(connection, worker, "it was asked to stop")
    stopped = row_of(admin.page("/workers", **ZH), f"worker-{worker}")
    assert stopped[:3] == ["gpu-1", "AVX512 · cpu · fp32", "收到停止信号"]


def test_a_worker_is_drained_and_resumed(operator: Visitor, viewer: Visitor, story: Story) -> None:
    worker = register_worker(story, about={"device": "stub"})
    drain, resume = f"/workers/{worker}/drain", f"/workers/{worker}/resume"
    assert drain in operator.page("/workers")
    assert drain not in viewer.page("/workers")
    assert viewer.do(drain).status_code == 403
    assert operator.browser.post(f"/dashboard{drain}", headers=operator.origin).status_code == 403  # without the token
    assert "gpu-1" in viewer.page("/workers")
    assert "an operator asked for it" not in operator.page("/workers")

    assert "claims nothing more" in operator.do(drain).raise_for_status().text
    page = operator.page("/workers")
    assert "an operator asked for it" in page
    assert resume in page
    assert "claims work again" in operator.do(resume).raise_for_status().text
    assert drain in operator.page("/workers")
    assert operator.do(f"/workers/{new_id()}/drain").status_code == 404
    recorded = story.rows("SELECT action, via::text FROM audit WHERE action LIKE 'worker.%' ORDER BY id")
    assert recorded == [("worker.drain", "dashboard"), ("worker.resume", "dashboard")]


def test_a_quarantined_worker_says_why_and_is_resumed(operator: Visitor, viewer: Visitor, story: Story) -> None:
    worker = register_worker(story)
    quarantine(story, "gpu-1", HOSTILE)
    resume = f"/workers/{worker}/resume"
    page = operator.page("/workers")
    assert 'class="state ready"' in page
    assert 'class="state quarantined"' in page
    assert "Quarantined <time" in page
    assert "Next trial: <time" in page
    assert HOSTILE not in page
    assert resume in page
    assert f"/workers/{worker}/drain" in page
    assert resume not in viewer.page("/workers")
    assert row_of(operator.page("/"), f"worker-{worker}")[1] == "ready quarantined"
    assert "Worker gpu-1 was quarantined" in operator.page("/")
    assert "工作进程 gpu-1 于" in operator.page("/", **ZH)
    assert "已隔离" in operator.page("/workers", **ZH)
    assert "claims work again" in operator.do(resume).raise_for_status().text
    assert quarantined(story) == []


def test_the_quarantine_of_a_worker_that_is_gone_is_lifted(operator: Visitor, viewer: Visitor, story: Story) -> None:
    register_worker(story)
    quarantine(story, HOSTILE, "its calls fail")
    page = operator.page("/workers")
    assert "Quarantined, and not running" in page
    assert row_of(page, "quarantine-1")[2] == "its calls fail"
    assert HOSTILE not in page
    assert viewer.do("/quarantines/lift", name=HOSTILE).status_code == 403
    assert "is lifted" in operator.do("/quarantines/lift", name=HOSTILE).raise_for_status().text
    assert operator.do("/quarantines/lift", name=HOSTILE).status_code == 404
    assert "Quarantined, and not running" not in operator.page("/workers")
    assert "resumed" in operator.page("/admin/audit")


def test_a_worker_shows_how_its_device_does(admin: Visitor, story: Story) -> None:
    device = {"name": "cuda:0", "memory_used": 9 * 10**9, "memory_total": 24 * 10**9, "utilisation": 98}
    told = [device | {"temperature_c": 64, "errors": [HOSTILE]}]
    told += [{"name": "cpu", "memory_used": 5 * 10**8, "memory_total": None} | NOT_TOLD]
    register_worker(story, devices=told)
    page = " ".join(re.sub(r"<[^>]+>", " ", admin.page("/workers")).split())
    assert "cuda:0 · memory 9.0 GB / 24.0 GB · load 98 % · 64 °C" in page
    assert "cpu · memory 500 MB Last" in page
    assert "Device cuda:0:" in page
    assert "内存 9.0 GB" in admin.page("/workers", **ZH)
    assert HOSTILE not in admin.page("/workers")


def test_a_licence_is_accepted_for_all_its_models(admin: Visitor, viewer: Visitor, stranger: Visitor) -> None:
    licence = CATALOG.get("zh-v0").licence
    accept = "/admin/models/zh-v0/licence"
    assert row_of(admin.page("/admin"), "model-taiyi")[4] == f"{licence.name} not accepted"
    assert accept in admin.page("/admin")
    assert accept not in viewer.page("/admin")
    assert viewer.do(accept, version=licence.version).status_code == 403
    assert admin.do(accept, version="1999-01-01").status_code == 409
    assert admin.do(accept, version=licence.version).status_code == 200
    page = admin.page("/admin")
    assert row_of(page, "model-taiyi")[4] == f"{licence.name} accepted for your tenant"
    assert accept not in page
    assert row_of(stranger.page("/admin"), "model-taiyi")[4].endswith("not accepted")


def test_a_key_is_created_shown_once_and_revoked(api: Api, admin: Visitor, viewer: Visitor, stranger: Visitor) -> None:
    fields = {"name": HOSTILE, "scopes": ["jobs:read", "viewer"]}
    assert viewer.do("/admin/keys", **fields).status_code == 403
    assert admin.do("/admin/keys", name="none").status_code == 422
    answer = admin.do("/admin/keys", **fields).raise_for_status().text
    found = re.search("huaf_[A-Za-z0-9_-]{43}", answer)
    assert found
    assert HOSTILE not in answer
    with api.stranger(headers={"Authorization": f"Bearer {found[0]}"}) as client:
        assert client.get("/v1/jobs").status_code == 200
        page = admin.page("/admin")
        assert found[0] not in page
        keys = re.findall(r'<tr id="key-([0-9a-f-]+)"', page)
        assert row_of(page, f"key-{keys[0]}")[:2] == ["&lt;script&gt;alert(1)&lt;/script&gt;", "jobs:read viewer"]

        assert keys[0] not in stranger.page("/admin")
        assert stranger.do(f"/admin/keys/{keys[0]}/revoke").status_code == 404
        assert viewer.do(f"/admin/keys/{keys[0]}/revoke").status_code == 403
        assert client.get("/v1/jobs").status_code == 200
        assert admin.do(f"/admin/keys/{keys[0]}/revoke").status_code == 200
        assert client.get("/v1/jobs").status_code == 401
    assert row_of(admin.page("/admin"), f"key-{keys[0]}")[4].startswith("revoked")


def test_keys_and_the_audit_are_for_administrators(admin: Visitor, viewer: Visitor) -> None:
    page = viewer.page("/admin")
    assert "mini-zh" in page
    assert "need an API key with the scope admin" in page
    assert str(admin.key.id) not in page
    for path in ("/admin/audit", "/live/admin/audit"):
        assert viewer.browser.get(f"/dashboard{path}").status_code == 403


def test_the_audit_is_paged_newest_first_and_of_the_own_tenant(admin: Visitor, stranger: Visitor, story: Story) -> None:
    caller = keys.Caller(story.tenant(), admin.key.id, frozenset())
    with transaction(story.database) as connection:
        for number in range(3):
            audit.record(connection, caller, Action.REVOKE_KEY, f"key {number}", why=HOSTILE)
    page = admin.page("/admin/audit?limit=2")
    assert re.findall("key [0-9]</a>", page) == ["key 2</a>", "key 1</a>"]
    assert HOSTILE not in page
    older = re.search(r'href="/dashboard(/admin/audit\?cursor=[^"]+)"', page)
    assert older
    rest = admin.page(older[1].replace("&amp;", "&"))
    assert re.findall("key [0-9]</a>", rest) == ["key 0</a>"]
    assert "signed in" in rest
    assert "登录" in admin.page("/admin/audit", **ZH)
    assert "key 0" not in stranger.page("/admin/audit")
    assert all(datetime.fromisoformat(moment) for moment in re.findall(r'<time datetime="([^"]+)"', page))
