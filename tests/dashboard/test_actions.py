"""The actions of each view, by the names of their buttons; and that a viewer has none.

Each test acts on a job, a batch or a key of its own, or undoes its change.
"""

import re

import pytest
from playwright.sync_api import Dialog, Locator, Page, expect

from tests.dashboard.conftest import Sessions, Visiting, submit_key
from tests.dashboard.farm import DashboardFarm
from tests.dashboard.views import VIEWS
from tests.support.workers import quarantine, until

pytestmark = pytest.mark.needs("chromium", "hanzi")


def press(page: Page, name: str, within: Locator | None = None, confirms: str | None = None) -> None:
    """Press the button of this name. `confirms`: a part of the question that it asks first."""
    questions: list[str] = []

    def accept(dialog: Dialog) -> None:
        questions.append(dialog.message)
        dialog.accept()

    if confirms:
        page.once("dialog", accept)
    (within or page.get_by_role("main")).get_by_role("button", name=name, exact=True).click()
    if confirms:
        assert confirms in questions[0]


def notice(page: Page) -> Locator:
    return page.locator("#notice")


# Jobs


def test_jobs_are_filtered_by_the_url_and_searched_in_chinese(page: Page, farm: DashboardFarm) -> None:
    page.goto("/dashboard/jobs")
    page.get_by_label("Words in the prompt").fill("橙色的猫")
    page.get_by_label("State", exact=True).select_option(label="succeeded")
    press(page, "Filter")
    expect(page).to_have_url(re.compile("q=.*state=succeeded"))
    expect(page.get_by_role("row")).to_have_count(2)
    page.get_by_role("link", name="一只橙色的猫").click()
    expect(page).to_have_url(re.compile(farm.jobs["succeeded"]))


def test_matching_jobs_are_counted_cancelled_and_retried(page: Page, farm: DashboardFarm) -> None:
    submitted = [farm.submit("一群要取消的圆形", model="rinna") for _ in range(3)]
    page.goto("/dashboard/jobs?q=一群要取消的圆形")
    press(page, "All matching jobs…")
    expect(page.get_by_text("3 jobs match")).to_be_visible()
    press(page, "Cancel 3", confirms="一群要取消的圆形")
    expect(notice(page)).to_contain_text("3 jobs were cancelled")
    assert [farm.job(job_id)["state"] for job_id in submitted] == 3 * ["cancelled"]
    expect(page.get_by_role("row").filter(has_text="cancelled")).to_have_count(3)
    press(page, "All matching jobs…")
    press(page, "Retry 3", confirms="一群要取消的圆形")
    expect(notice(page)).to_contain_text("3 jobs were submitted again")
    expect(page.get_by_role("row").filter(has_text="queued")).to_have_count(3)


# A job


def test_a_job_is_moved_to_another_tier_cancelled_and_retried(page: Page, farm: DashboardFarm) -> None:
    job_id = farm.submit("要取消的圆形", model="rinna")
    page.goto(f"/dashboard/jobs/{job_id}")
    expect(page.get_by_text("No worker serves its model")).to_be_visible()
    press(page, "Make it interactive")
    expect(notice(page)).to_contain_text("interactive now")
    assert farm.job(job_id)["tier"] == "interactive"
    press(page, "Cancel", confirms="Cancel this job?")
    expect(notice(page)).to_contain_text("is cancelled")
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)
    press(page, "Retry")
    expect(notice(page)).to_contain_text("Submitted again")
    notice(page).get_by_role("link").click()
    expect(page.get_by_role("link", name=job_id)).to_be_visible()


def test_a_failure_is_shown_with_its_remedy(page: Page, farm: DashboardFarm) -> None:
    page.goto(f"/dashboard/jobs/{farm.jobs['failed']}")
    expect(page.get_by_role("main")).to_contain_text("Change scheduler, guidance or seed")
    expect(page.get_by_role("region", name="Timeline").get_by_role("row")).to_have_count(2)


def test_a_job_is_copied_as_a_command(page: Page, farm: DashboardFarm) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/dashboard/jobs/{farm.jobs['succeeded']}")
    press(page, "Copy curl")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("curl ")
    assert "一只橙色的猫" in copied
    assert "huaf_" not in copied


def test_a_job_is_cloned_with_changes_and_its_images_appear(page: Page, farm: DashboardFarm) -> None:
    page.goto(f"/dashboard/jobs/{farm.jobs['succeeded']}")
    page.get_by_role("link", name="Clone with changes").click()
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value("一只橙色的猫，背景是蓝色的")
    prompt.fill("一只紫色的猫，背景是绿色的")
    page.get_by_label("Count").fill("2")
    press(page, "Submit")
    result = page.get_by_role("region", name="Result")
    expect(result.get_by_role("img", name="一只紫色的猫")).to_have_count(2)
    expect(result).to_contain_text("succeeded")


def test_a_form_shows_its_errors(visiting: Visiting, sessions: Sessions) -> None:
    with visiting(session=sessions["admin"], refusals=[422]) as page:
        page.goto("/dashboard/new")
        page.get_by_label("Prompt", exact=True).fill("红" * 400)
        press(page, "Submit")
        expect(page.get_by_label("Prompt", exact=True)).to_have_attribute("aria-invalid", "true")
        expect(page.get_by_role("main")).to_contain_text("too many tokens for this model")


# Batches


def test_a_batch_is_paused_resumed_and_cancelled(page: Page, farm: DashboardFarm) -> None:
    batch_id = farm.submit_batch("要取消的批次", ["要取消的圆形"], defaults={"model": "rinna"})
    until(lambda: farm.batch(batch_id)["state"] == "running")
    page.goto(f"/dashboard/batches/{batch_id}")
    press(page, "Pause")
    expect(notice(page)).to_contain_text("Paused")
    press(page, "Resume")
    expect(notice(page)).to_contain_text("Resumed")
    press(page, "Cancel", confirms="Cancel this batch?")
    expect(notice(page)).to_contain_text("Cancelled")
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)
    assert farm.batch(batch_id)["cancelled_at"]


def test_a_batch_groups_its_failures_and_retries_them(page: Page, farm: DashboardFarm) -> None:
    page.goto(f"/dashboard/batches/{farm.batches['with failures']}")
    errors = page.get_by_role("region", name="Failures")
    expect(errors.get_by_role("row").filter(has_text="nan_image")).to_contain_text("心形 #nan")
    press(page, "Retry failed images")
    notice(page).get_by_role("link").click()
    expect(page.get_by_role("main")).to_contain_text("0 of 1 images stored")


def test_a_batch_is_exported_and_its_files_downloaded(page: Page, farm: DashboardFarm) -> None:
    page.goto(f"/dashboard/batches/{farm.batches['with failures']}")
    page.get_by_label("Layout").select_option("parquet")
    press(page, "Export")
    expect(notice(page)).to_contain_text("is being written")
    row = page.get_by_role("region", name="Datasets").get_by_role("row").filter(has_text="parquet")
    expect(row).to_contain_text("ready")
    row.get_by_role("link").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="data/train-00000.parquet", exact=True).click()
    assert download.value.path().read_bytes().startswith(b"PAR1")


# Workers, keys, licences


def test_a_worker_is_drained_and_resumed(page: Page, farm: DashboardFarm) -> None:
    page.goto("/dashboard/workers")
    worker = page.get_by_role("article").filter(has=page.get_by_role("heading", name="画室"))
    press(page, "Drain", worker, confirms="画室")
    expect(notice(page)).to_contain_text("claims nothing more")
    expect(worker).to_contain_text("draining")
    press(page, "Resume", worker)
    expect(notice(page)).to_contain_text("claims work again")
    expect(worker).to_contain_text("ready")


def test_a_quarantined_worker_is_resumed(page: Page, farm: DashboardFarm) -> None:
    quarantine(farm.story, "画室", "its calls fail")
    page.goto("/dashboard/")
    alert = page.get_by_role("listitem").filter(has_text="Worker 画室 was quarantined")
    expect(alert).to_contain_text("its calls fail")
    page.goto("/dashboard/workers")
    worker = page.get_by_role("article").filter(has=page.get_by_role("heading", name="画室"))
    expect(worker).to_contain_text(re.compile("Quarantined .*: its calls fail"))
    expect(worker).to_contain_text(re.compile("Next trial: in (1 hr|59 min)"))
    press(page, "Resume", worker)
    expect(notice(page)).to_contain_text("claims work again")
    expect(worker).not_to_contain_text("Quarantined")


def test_the_quarantine_of_a_worker_that_is_gone_is_lifted(page: Page, farm: DashboardFarm) -> None:
    quarantine(farm.story, "elsewhere-1")
    page.goto("/dashboard/workers")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="elsewhere-1"))
    expect(row).to_contain_text(re.compile("in (1 hr|59 min)"))
    press(page, "Resume", row)
    expect(notice(page)).to_contain_text("is lifted")
    expect(row).to_have_count(0)


def test_a_key_is_created_shown_once_and_revoked(page: Page, farm: DashboardFarm) -> None:
    page.goto("/dashboard/admin")
    page.get_by_text("New API key").click()
    page.get_by_label("Name: who or what uses it").fill("测试用的钥匙")
    press(page, "Create key")
    secret = page.get_by_label("Secret").inner_text()
    with farm.api.stranger(headers={"Authorization": f"Bearer {secret}"}) as holder:
        assert holder.get("/v1/jobs").status_code == 200
        page.reload()
        expect(page.get_by_role("main")).not_to_contain_text(secret)
        row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="测试用的钥匙"))
        press(page, "Revoke", row, confirms="测试用的钥匙")
        expect(notice(page)).to_contain_text("revoked")
        assert holder.get("/v1/jobs").status_code == 401
    expect(page.get_by_role("region", name="Audit")).to_contain_text("revoked an API key")


# Tenants


def test_a_second_tenant_is_made_limited_used_suspended_and_resumed(
    page: Page, visiting: Visiting, farm: DashboardFarm
) -> None:
    page.goto("/dashboard/tenants")
    page.get_by_text("New tenant").click()
    page.get_by_label("Name").fill("隔壁的画坊")
    page.get_by_label("Limits").fill("waiting_images=1000")
    page.get_by_label("standard").check()
    press(page, "Create tenant")
    secret = page.get_by_label("Secret").inner_text()
    page.get_by_role("link", name="隔壁的画坊").click()
    expect(page.get_by_label("Limits")).to_have_value("waiting_images=1000\n")
    page.get_by_label("Keep pictures").fill("30")
    press(page, "Save")
    expect(notice(page)).to_contain_text("The tenant is changed")
    assert farm.story.rows("SELECT limits, tiers::text, keep_pictures_days FROM tenants WHERE name = '隔壁的画坊'") == [
        ({"waiting_images": 1000}, "{standard}", 30)
    ]

    with visiting(refusals=[403]) as theirs:
        submit_key(theirs, secret)
        theirs.wait_for_url("**/dashboard/")
        theirs.goto("/dashboard/new")
        theirs.get_by_label("Prompt", exact=True).fill("红色的圆形")
        theirs.get_by_label("Tier", exact=True).select_option(label="standard")
        press(theirs, "Submit")
        expect(theirs.get_by_role("region", name="Result")).to_contain_text("Submitted")
        theirs.goto("/dashboard/jobs")
        expect(theirs.get_by_role("row").filter(has_text="succeeded")).to_have_count(1)
        press(page, "Suspend", confirms="隔壁的画坊")
        expect(notice(page)).to_contain_text("The tenant is suspended")
        theirs.goto("/dashboard/jobs")
        expect(theirs.get_by_role("main")).to_contain_text("Your tenant is suspended")
        press(page, "Resume")
        expect(notice(page)).to_contain_text("The tenant is resumed")
        theirs.goto("/dashboard/jobs")
        expect(theirs.get_by_role("row")).to_have_count(2)


def test_a_tenant_is_erased_once_its_name_was_typed(
    visiting: Visiting, sessions: Sessions, farm: DashboardFarm
) -> None:
    tenant_id = farm.story.tenant("要抹除的画坊")
    farm.story.submit("要抹除的画坊")
    with visiting(session=sessions["admin"], refusals=[422]) as page:
        page.goto(f"/dashboard/tenants/{tenant_id}")
        press(page, "Suspend", confirms="要抹除的画坊")
        expect(notice(page)).to_contain_text("The tenant is suspended")
        page.get_by_text("Erase", exact=True).click()
        page.get_by_label("Type its name to confirm").fill("别的画坊")
        press(page, "Erase for good")
        expect(notice(page)).to_contain_text("is not the name of this tenant")
        page.get_by_label("Type its name to confirm").fill("要抹除的画坊")
        press(page, "Erase for good")
        expect(notice(page)).to_contain_text("The tenant is being erased")
        erasure = page.get_by_role("region", name="Erasure")
        expect(erasure.get_by_role("row").filter(has_text="images")).to_have_text("images1")
        expect(page.get_by_role("button", name="Resume")).to_have_count(0)


# Without permission


def test_a_viewer_finds_no_action(viewers_page: Page, farm: DashboardFarm) -> None:
    for view in VIEWS.keys() - {"audit", "tenants", "tenant"}:
        viewers_page.goto(farm.address(VIEWS[view]))
        expect(viewers_page.locator("[hx-post], [hx-put], [hx-delete], [hx-patch]")).to_have_count(0)


def test_an_action_without_the_pages_token_is_refused(
    visiting: Visiting, sessions: Sessions, farm: DashboardFarm
) -> None:
    job_id = farm.submit("不该被取消的圆形", model="rinna")
    with visiting(session=sessions["admin"], refusals=[403]) as page:
        page.goto(f"/dashboard/jobs/{job_id}")
        for headers in ("{}", '{"X-CSRF-Token": "0"}'):
            page.evaluate("headers => document.body.setAttribute('hx-headers:inherited', headers)", headers)
            press(page, "Cancel", confirms="Cancel this job?")
            expect(notice(page)).to_contain_text("not allowed")
            notice(page).evaluate("e => e.replaceChildren()")
    assert farm.job(job_id)["state"] == "queued"


def test_an_action_of_a_viewer_is_refused(visiting: Visiting, sessions: Sessions, farm: DashboardFarm) -> None:
    """With a valid token and the right URL."""
    with visiting(session=sessions["viewer"], refusals=[403]) as page:
        page.goto(f"/dashboard/jobs/{farm.jobs['waiting']}")
        cancel = f"/dashboard/jobs/{farm.jobs['waiting']}/cancel"
        page.evaluate("path => htmx.ajax('POST', path, {target: '#notice', source: document.body})", cancel)
        expect(notice(page)).to_contain_text("not allowed")
    assert farm.job(farm.jobs["waiting"])["state"] == "queued"
